"""What reading the weights tells: NaN and infinite entries, heads that are tied or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mergescope.merging.differences import config_of, grouped
from mergescope.merging.findings import Finding
from mergescope.merging.vocabulary import HEADS, INPUTS
from mergescope.weights.chunks import all_finite, chunks_of, in_order
from mergescope.weights.geometry import CHUNK, Geometry


def value_findings(models: Sequence[Any], measured: Geometry | None, threads: int = 2) -> list[Finding]:
    """Name every tensor with NaN or infinite entries.

    Args:
        models: checkpoints, in the order in which they were measured.
        measured: counts of the tensors that were measured; all others are read here.
        threads: chunks read at once.

    Returns:
        One finding a model that has such entries.

    Example:
        >>> from mergescope import Checkpoint
        >>> value_findings([Checkpoint({"w": torch.tensor([1.0, torch.inf])}, name="a")], None)[0].message
        'a has NaN or infinite weights in 1 tensor: w (1 of 2).'
    """
    out = []
    for position, model in enumerate(models):
        tensors = measured.tensors if measured is not None else {}
        bad = {key: int(sums.bad[position]) for key, sums in tensors.items()}
        rest = [key for key in model.spec if key not in bad and model.spec[key].dtype.is_floating_point]
        bad |= _count_bad(model, rest, threads)
        found = {key: count for key, count in bad.items() if count}
        if found:
            items = tuple(f"{key} ({count:,} of {model.spec[key].numel:,})" for key, count in found.items())
            told = items[0] if len(items) == 1 else grouped(list(found))
            number = "1 tensor" if len(items) == 1 else f"{len(items)} tensors"
            out.append(
                Finding(
                    "error", "values", f"{model.name} has NaN or infinite weights in {number}: {told}.", items
                )
            )
    return out


def _count_bad(model: Any, keys: Iterable[str], threads: int) -> dict[str, int]:
    def work(key: str, start: int, stop: int) -> int:
        rows = model.rows(key, start, stop)
        if all_finite(rows):
            return 0
        wide = rows if rows.dtype.itemsize > 1 else rows.float()  # float8 has no isfinite
        return int((~torch.isfinite(wide)).sum())

    counts: dict[str, int] = {}
    for key, count in in_order(work, chunks_of(model, keys, CHUNK), threads):
        counts[key] = counts.get(key, 0) + count
    return counts


def tied_findings(models: Sequence[Any]) -> list[Finding]:
    """Compare stored heads with the embeddings that they may be tied to.

    Args:
        models: checkpoints.

    Returns:
        A warning where a configuration ties a head that has weights of its own, and where the head
        equals the embedding in some models only.
    """
    out, equal, own = [], [], []
    for model in models:
        head = next((key for key in model.spec if key.endswith(HEADS)), None)
        rows = next((key for key in model.spec if key.endswith(INPUTS)), None)
        if rows is None or (head is not None and model.spec[head].shape != model.spec[rows].shape):
            continue
        if head is None or equal_tensors(model, head, rows):
            equal.append(model.name)
            continue
        own.append(model.name)
        if (config_of(model) or {}).get("tie_word_embeddings") is True:
            out.append(Finding(
                "warning", "tied", f"{model.name} stores {head} with weights other than {rows}, but its config.json "
                "says tie_word_embeddings: transformers 4 drops that head when it loads the model, 5 keeps it, and so "
                "does a merge.", (head, rows),
            ))  # fmt: skip
    if equal and own and any(key.endswith(HEADS) for model in models for key in model.spec):
        out.append(Finding(
            "warning", "tied", f"The head equals the embedding in {', '.join(equal)}, but not in {', '.join(own)}: "
            "the merge needs a head of its own.",
        ))  # fmt: skip
    return out


def equal_tensors(model: Any, one: str, other: str) -> bool:
    """Whether two tensors of a model are the same numbers.

    Args:
        model: a checkpoint.
        one: a tensor's name.
        other: of a tensor of its shape.

    Returns:
        Whether they are. Reading ends with the first chunk that differs.

    Example:
        >>> from mergescope import Checkpoint
        >>> equal_tensors(Checkpoint({"wte.weight": torch.ones(2, 2), "head": torch.ones(2, 2)}), "head", "wte.weight")
        True
    """
    return all(
        torch.equal(model.rows(one, start, stop), model.rows(other, start, stop))
        for _, start, stop in chunks_of(model, [one], CHUNK)
    )
