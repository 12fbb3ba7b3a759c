"""merge(): a recipe to a directory that loads everywhere."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mergescope.documents import read_settings
from mergescope.errors import CheckpointError, DiskError, MergescopeError
from mergescope.merging.card import model_card
from mergescope.merging.execute import MAX_SHARD_BYTES, write_tensors
from mergescope.merging.parents import Parents
from mergescope.merging.partial import PartialMerge
from mergescope.merging.plan import Plan, make_plan
from mergescope.merging.recipe import Recipe, read_recipe
from mergescope.merging.shards import replace_tensors
from mergescope.merging.writer import require_replaceable, write_side_files
from mergescope.weights.files import recover, refused_by_disk

RECIPE_FILE = "mergescope.yml"


def merge(
    recipe: Plan | Recipe | str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    seed: int | None = None,
    threads: int | None = None,
    max_shard_size: int | str = MAX_SHARD_BYTES,
    overwrite: bool = False,
    resume: bool = False,
    digests: bool = True,
    calibration: Iterable[Any] | None = None,
    network: nn.Module | None = None,
    progress: bool = True,
) -> Path:
    """Merge models by a recipe into a Hugging Face directory.

    Tensors are read, merged in float32 and written chunk by chunk, several at a time; no tensor
    is held whole (but for the methods that factorise matrices). The directory appears complete
    or not at all.

    Args:
        recipe: a recipe, a YAML file or text, a mapping of the same structure, or a plan made of one.
        out: the directory to make.
        seed: of methods that draw random numbers; results depend on nothing else. By default the
            recipe's, or 0.
        threads: tensors merged at once; by default one a core, at most 8.
        max_shard_size: bytes, or text such as ``"5GB"``.
        overwrite: replace an existing directory.
        resume: go on from what an interrupted merge of the same recipe left.
        digests: put content digests of the parents into the model card.
        calibration: batches on which BatchNorm statistics of the result are re-estimated.
        network: the network that is run for it, if ``config.json`` does not name it; not changed.
        progress: show a bar on a terminal.

    Returns:
        The directory.

    Raises:
        RecipeError: the recipe has problems; all are listed.
        CheckpointError: an input is damaged or NaN, or the output exists or is an input.
        MismatchError: the models don't fit together; everything is named.
        DiskError: the disk is full or can't be written; a later merge can go on.

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
    """  # noqa: DOC501, DOC502 (raised again, or by what this calls)
    if not isinstance(recipe, Plan):
        plan = make_plan(recipe if isinstance(recipe, Recipe) else read_recipe(recipe), seed=seed)
    elif seed is None:
        plan = recipe
    else:
        raise MergescopeError("A plan has its seed already: give the seed to make_plan.")
    target = Path(os.path.realpath(out))
    recover(target)
    require_free(plan, target, overwrite)
    threads = threads or default_threads()
    limit = parse_size(max_shard_size)
    if calibration is not None and plan.statistics:
        plan.notes = [note for note in plan.notes if "BatchNorm" not in note]
        plan.notes.append(f"{len(plan.statistics)} running statistics of BatchNorm were re-estimated on data")
    partial: PartialMerge | None = None
    try:
        partial = PartialMerge(target, f"{plan.digest} {limit}", resume)
        _require_room(plan, partial)
        side = partial.folder / "side"  # a tokenizer that can't be made is found before tensors are merged
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir()
        _write_side_files(plan, side)
        parents = Parents() if digests else None
        write_tensors(plan, partial, parents, threads=threads, max_shard_bytes=limit, progress=progress)
        _move(side, partial.folder)
        if calibration is not None and plan.statistics:
            _reestimate(partial.folder, calibration, network)
        found = parents.digests(plan, threads) if parents else {}
        (partial.folder / "README.md").write_text(model_card(plan, found), encoding="utf-8")
        text = plan.recipe.text_with_seed(plan.seed)
        (partial.folder / RECIPE_FILE).write_text(text, encoding="utf-8")
        partial.publish()
    except MergescopeError as error:
        if partial is None or isinstance(error, DiskError):
            raise
        if (partial.begun or partial.resumed) and _may_pass(error):
            raise DiskError(
                f"{error} What is done is kept in {partial.folder}: if that is mended, merge again with resume=True "
                "(--resume)."
            ) from error
        if partial.begun or not partial.resumed:
            partial.abandon()
        raise
    except Exception as error:
        why = refused_by_disk(error)
        if why is None and not isinstance(error, OSError):
            raise
        kept = f"; what is done is kept in {partial.folder}" if partial is not None else ""
        raise DiskError(
            f"Writing {target} failed: {why or error}. Nothing appeared under that name{kept}. Make room "
            "or correct the permissions, and merge again with resume=True (--resume)."
        ) from error
    finally:
        if partial is not None:
            partial.close()
    return Path(out)


def _move(side: Path, folder: Path) -> None:
    for path in sorted(side.rglob("*")):
        if path.is_file():  # what is moved needs no room
            place = folder / path.relative_to(side)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    shutil.rmtree(side)


def _may_pass(error: BaseException | None) -> bool:
    # What the system refused once, as a network's file system does, it may give the next time.
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__
    return False


def require_free(plan: Plan, target: Path, overwrite: bool) -> None:
    """Refuse an output that is there already, or that is or holds an input.

    Args:
        plan: the plan.
        target: the directory to make.
        overwrite: whether it may be replaced.

    Raises:
        CheckpointError: it is refused.
    """
    target = Path(os.path.realpath(target))
    for name, model in plan.models.items():
        homes = [getattr(model, "directory", None), *getattr(model, "files", ())]
        for home in homes:
            if home is not None and (home.resolve() == target or target in home.resolve().parents):
                raise CheckpointError(
                    f"{target} is or holds the input {name}: choose another output directory."
                )
    require_replaceable(target, overwrite)


def _require_room(plan: Plan, partial: PartialMerge) -> None:
    free = shutil.disk_usage(partial.folder).free
    have = sum(path.stat().st_blocks * 512 for path in partial.folder.glob("*.safetensors"))
    missing = plan.bytes_written - have - free
    if free and missing > 0:
        if not partial.resumed:
            partial.abandon()
        raise DiskError(
            f"{partial.target} needs {plan.bytes_written / 1e6:,.1f} MB, but there is room for "
            f"{(free + have) / 1e6:,.1f} MB: no space left on that disk. Nothing was written there. Make room, or "
            "choose a directory on another disk."
        )


def _write_side_files(plan: Plan, folder: Path) -> None:
    write_side_files(plan.home, folder, plan.config)
    if plan.alignment is not None or plan.recipe.chat_template is not None:
        from mergescope.merging.tokenizers import write_tokenizer

        write_tokenizer(
            folder, plan.alignment, models=plan.models, base=plan.recipe.base_model,
            chat_template=plan.recipe.chat_template,
        )  # fmt: skip
    generation = folder / "generation_config.json"
    if plan.alignment is not None and generation.is_file():
        home = plan.recipe.base_model or plan.recipe.references[0]
        changed = plan.alignment.config(
            read_settings(generation, named=plan.home.directory / generation.name), home
        )
        generation.write_text(json.dumps(changed, indent=2) + "\n")


def _reestimate(folder: Path, calibration: Iterable[Any], network: nn.Module | None) -> None:
    from mergescope.models import load_model, reestimate_batchnorm
    from mergescope.models.loading import key_map, load_weights
    from mergescope.weights import Checkpoint

    merged = Checkpoint(folder)
    if network is None:
        network = load_model(merged)
        names = key_map(network, merged)
    else:
        network = copy.deepcopy(network)
        names = key_map(network, merged)
        load_weights(network, merged, names)
    found = reestimate_batchnorm(network, calibration)
    replace_tensors(folder, {names[name]: values for name, values in found.items()})


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
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMGT]?)(i?)B?\s*", str(size), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise MergescopeError(f"{size!r} is no size. Write bytes, or a number with KB, MB, GB or MiB, GiB.")
    power = " KMGT".index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
