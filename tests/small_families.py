"""A tiny base with two text tasks, as a user has them, and what a test asks of directories."""

from given_models import make, save, save_rows, texts
from safetensors.torch import load_file

WORDS = ("maybe", "no", "yes")
FAST = {"epochs": 1, "batch": 8, "lr": 1e-3}


def save_task(folder, shift=0, train=24, test=9, names=WORDS, sure=False):
    """A directory with a train and a test split; the class follows from the row's number.

    To be sure that no accuracy is 0, whatever a version of torch trains, the test ends in one text under every class,
    and a validation split consists of one.
    """
    for split, count in (("train", train), ("test", test)):
        kinds = [names[(row + shift) % len(names)] for row in range(count)]
        lines = texts(count, seed=7 * shift + len(split))
        if sure and split == "test":
            lines[-len(names) :] = lines[-1:] * len(names)
        save_rows(folder / f"{split}.csv", lines, label=kinds)
    if sure:
        save_rows(folder / "validation.csv", texts(1) * len(names), label=list(names))
    return folder


def make_inputs(folder, sure=False):
    """A base without a head, and the tasks ``left`` and ``right``."""
    save(make("BertModel"), folder / "base")
    save_task(folder / "left", sure=sure)
    save_task(folder / "right", 1, sure=sure)
    return folder


def described(folder, **more):
    """What a family of both tasks is fine-tuned by, as a YAML file says it."""
    tasks = {name: str(folder / name) for name in ("left", "right")}
    return {
        "base": str(folder / "base"), "tasks": tasks, "regimes": ["full", "attention"], "recipe": dict(FAST),
    } | more  # fmt: skip


def contents(folder):
    """Every file's path, bytes and time of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights_of(folder):
    """All weights in a directory by path: bytes of models, tensors of what others' writers made."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        name = str(path.relative_to(folder))
        if path.name == "model.safetensors":
            found[name] = path.read_bytes()
        else:  # its header is in any order
            found[name] = {key: value.numpy().tobytes() for key, value in load_file(path).items()}
    return found


class Killed(Exception):
    """Not one of ours: as a kill would be, nothing catches it."""


def killing(after):
    """A log that breaks off after so many steps of the training."""
    seen = []

    def log(kind, numbers):
        seen.append(kind)
        if seen.count("train") == after:
            raise Killed

    return log
