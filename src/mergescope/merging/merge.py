"""merge(): a recipe to a directory that loads everywhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mergescope.errors import CheckpointError, MergescopeError
from mergescope.merging.card import model_card
from mergescope.merging.execute import MAX_SHARD_BYTES, PartialMerge, write_tensors
from mergescope.merging.plan import Plan, make_plan
from mergescope.merging.recipe import Recipe, read_recipe
from mergescope.merging.writer import copy_side_files

RECIPE_FILE = "mergescope.yml"


def merge(
    recipe: Recipe | str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    threads: int | None = None,
    max_shard_size: int | str = MAX_SHARD_BYTES,
    overwrite: bool = False,
    resume: bool = False,
    digests: bool = True,
    calibration: Iterable[Any] | None = None,
    progress: bool = True,
) -> Path:
    """Merge models by a recipe into a Hugging Face directory.

    Tensors are read, merged in float32 and written chunk by chunk, several at a time; no tensor
    is held whole (but for the methods that factorise matrices). The directory appears complete
    or not at all.

    Args:
        recipe: a recipe, a YAML file or text, or a mapping of the same structure.
        out: the directory to make.
        seed: of methods that draw random numbers; results depend on nothing else.
        threads: tensors merged at once; by default one a core, at most 8.
        max_shard_size: bytes, or text such as ``"5GB"``.
        overwrite: replace an existing directory.
        resume: go on from what an interrupted merge of the same recipe left.
        digests: put content digests of the parents into the model card (reads them once more).
        calibration: batches on which BatchNorm statistics of the result are re-estimated.
        progress: show a bar on a terminal.

    Returns:
        The directory.

    Raises:
        RecipeError: the recipe has problems; all are listed.
        CheckpointError: an input is damaged or NaN, or the output exists or is an input.
        MismatchError: the models don't fit together; everything is named.

    Example:
        >>> import tempfile, torch, mergescope as ms
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, value in (("a", 1.0), ("b", 3.0)):
        ...         _ = ms.save(ms.Checkpoint({"w": torch.full((2,), value)}), f"{folder}/{name}")
        ...     out = merge({"merge_method": "linear", "models": [
        ...         {"model": f"{folder}/a", "parameters": {"weight": 1}},
        ...         {"model": f"{folder}/b", "parameters": {"weight": 1}}]}, f"{folder}/merged")
        ...     ms.Checkpoint(out).tensor("w")
        tensor([2., 2.])
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    return run_plan(
        make_plan(recipe, seed=seed), out, threads=threads, max_shard_size=max_shard_size, overwrite=overwrite,
        resume=resume, digests=digests, calibration=calibration, progress=progress,
    )  # fmt: skip


def run_plan(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    max_shard_size: int | str = MAX_SHARD_BYTES,
    overwrite: bool = False,
    resume: bool = False,
    digests: bool = True,
    calibration: Iterable[Any] | None = None,
    progress: bool = True,
) -> Path:
    """Carry out a plan; arguments as of [`merge`][].

    Args:
        plan: the plan.
        out: the directory to make.
        threads: tensors merged at once.
        max_shard_size: bytes, or text such as ``"5GB"``.
        overwrite: replace an existing directory.
        resume: go on from what an interrupted merge left.
        digests: put content digests of the parents into the model card.
        calibration: batches on which BatchNorm statistics are re-estimated.
        progress: show a bar on a terminal.

    Returns:
        The directory.

    Raises:
        CheckpointError: the output exists or is an input, the disk is full, or an input is damaged.
    """
    target = Path(out)
    _require_free(plan, target, overwrite)
    threads = threads or default_threads()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = PartialMerge(target, plan, resume)
    try:
        write_tensors(plan, partial, threads=threads, max_shard_bytes=parse_size(max_shard_size), progress=progress)
        if plan.home.directory is not None:
            copy_side_files(plan.home.directory, partial.folder)
        if plan.config is not None:
            (partial.folder / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n")
        if plan.alignment is not None or plan.recipe.chat_template is not None:
            from mergescope.merging.tokenizers import write_tokenizer

            write_tokenizer(
                partial.folder, plan.alignment, models=plan.models, base=plan.recipe.base_model,
                chat_template=plan.recipe.chat_template,
            )  # fmt: skip
        if calibration is not None:
            _reestimate(partial.folder, calibration)
        found = parent_digests(plan, threads) if digests else {}
        (partial.folder / "README.md").write_text(model_card(plan, found))
        (partial.folder / RECIPE_FILE).write_text(plan.recipe.text.rstrip() + "\n")
        partial.publish(overwrite)
    except MergescopeError:
        partial.abandon()
        raise
    except OSError as error:
        raise CheckpointError(
            f"Writing {target} failed: {error.strerror or error}. Nothing appeared under that name; what is done is "
            f"kept in {partial.folder} and is used if you make room and merge again with resume (--resume)."
        ) from error
    return target


def _require_free(plan: Plan, target: Path, overwrite: bool) -> None:
    for name, model in plan.models.items():
        home = getattr(model, "directory", None)
        if home is not None and (home.resolve() == target.resolve() or target.resolve() in home.resolve().parents):
            raise CheckpointError(f"{target} is or holds the input {name}: choose another output directory.")
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists. Choose another directory, or overwrite it (--overwrite).")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file: choose another output directory.")


def parent_digests(plan: Plan, threads: int) -> dict[str, str]:
    """Content digests of the parents' files.

    Args:
        plan: the plan.
        threads: files read at once.

    Returns:
        Model reference to digest: XXH3-128 over the files' digests in order of their names.
    """
    import xxhash

    def one(path: Path) -> bytes:
        state = xxhash.xxh3_128()
        with path.open("rb", buffering=0) as stream:
            buffer = bytearray(1 << 20)
            while count := stream.readinto(buffer):
                state.update(memoryview(buffer)[:count])
        return state.digest()

    out = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, model in plan.models.items():
            files = sorted(getattr(model, "files", ()))
            if files:
                out[name] = "xxh3:" + xxhash.xxh3_128(b"".join(pool.map(one, files))).hexdigest()
    return out


def _reestimate(folder: Path, calibration: Iterable[Any]) -> None:
    from mergescope.merging.writer import save
    from mergescope.models import load_model, reestimate_batchnorm
    from mergescope.weights import Checkpoint

    model = load_model(folder)
    tensors = Checkpoint(folder).state_dict() | reestimate_batchnorm(model, calibration)
    scratch = folder / ".calibrated"
    save(Checkpoint(tensors), scratch)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (scratch / "model.safetensors").rename(folder / "model.safetensors")
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()


def default_threads() -> int:
    """One thread a core this process may use, at most 8.

    Returns:
        The number.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


def parse_size(size: int | str) -> int:
    """Bytes of a size such as ``"5GB"`` (decimal) or ``"512MiB"`` (binary).

    Args:
        size: bytes or text.

    Returns:
        Bytes.

    Raises:
        MergescopeError: it is no size.

    Example:
        >>> parse_size("5GB"), parse_size("1MiB"), parse_size(7)
        (5000000000, 1048576, 7)
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(i?)B?\s*", str(size), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise MergescopeError(f"{size!r} is no size. Write bytes, or a number with KB, MB, GB or MiB, GiB.")
    power = " KMGT".index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
