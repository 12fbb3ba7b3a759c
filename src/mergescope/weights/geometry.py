"""Geometry of task vectors: lengths, angles and sign conflicts, in one pass over the files.

With ``tau_k = theta_k - theta_0``:

- relative distance ``|tau_k| / |theta_0|``;
- cosine ``<tau_i, tau_j> / (|tau_i| |tau_j|)`` (ATTN, Fig. 5);
- sign conflict: of the entries that both models changed, the share that they changed in opposite
  directions (what TIES resolves, Yadav et al. 2023, section 3);
- share of unchanged entries.

Each for every tensor, block and kind of module, and for the whole model. These are sums over
entries, so a pass reads every file once, chunk by chunk, and keeps a few numbers a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

import torch

from mergescope.display import NONE, Cell, Table, View, as_html, as_pandas, as_pretty, as_text, figure
from mergescope.errors import CheckpointError, MismatchError, PointError
from mergescope.progress import progress_bar
from mergescope.weights.chunks import chunks_of, in_order
from mergescope.weights.kinds import KIND_NAMES, STATISTICS, is_derived, kind_of, layer_of, layer_order
from mergescope.weights.sums import Sums

CHUNK = 1 << 18
"""Entries of one chunk of one model; a chunk of rows is at least one row."""

Scope = Literal["model", "layer", "kind", "tensor"]


@dataclass(frozen=True)
class GeometryRow:
    """One number, as a line of a tidy table.

    Attributes:
        scope: what it is about: ``"model"``, ``"layer"``, ``"kind"`` or ``"tensor"``.
        name: which layer, kind or tensor; empty for the model.
        measure: ``norm`` (of the task vector), ``base_norm``, ``distance`` (relative), ``unchanged``,
            ``cos`` or ``sign_conflict``.
        model: whose.
        other: the second model of ``cos`` and ``sign_conflict``, else empty.
        value: the number. A distance from a base that is zero is infinite.
        entries: how many weights it is about.
    """

    scope: str
    name: str
    measure: str
    model: str
    other: str
    value: float
    entries: int


@dataclass(frozen=True, eq=False)
class Geometry:
    """What [`geometry`][mergescope.weights.geometry.geometry] found.

    Attributes:
        base: the base's name.
        models: the models' names.
        tensors: tensor name to its sums.
        left_out: tensors that are no weights (integers, BatchNorm statistics, position numbers, masks).
        matrices: which tensors have two dimensions or more.
    """

    base: str
    models: tuple[str, ...]
    tensors: Mapping[str, Sums]
    left_out: tuple[str, ...] = ()
    matrices: frozenset[str] = frozenset()

    @property
    def total(self) -> Sums:
        """The sums of the whole model."""
        return reduce(add, self.tensors.values())

    def groups(self, scope: Scope) -> dict[str, Sums]:
        """The sums by block, kind of module or tensor.

        Args:
            scope: ``"layer"``, ``"kind"``, ``"tensor"``, or ``"model"`` for one group named ``""``.

        Returns:
            Group name to sums: blocks in their order, kinds in the order of
            [`KIND_NAMES`][mergescope.weights.kinds.KIND_NAMES], tensors in the base's order.

        Example:
            >>> from mergescope import Checkpoint
            >>> base, a = (Checkpoint({"h.0.w": torch.full((2,), v), "head.weight": torch.ones(1)}, name=n)
            ...            for n, v in (("base", 3.0), ("a", 4.0)))
            >>> {name: sums.norms for name, sums in geometry(base, [a]).groups("layer").items()}
            {'h.0': [1.4142135623730951], 'head': [0.0]}
        """
        if scope == "model":
            return {"": self.total}
        if scope == "tensor":
            return dict(self.tensors)
        grouped: dict[str, Sums] = {}
        for name, sums in self.tensors.items():
            group = layer_of(name) if scope == "layer" else kind_of(name)
            grouped[group] = grouped[group] + sums if group in grouped else sums
        if scope == "layer":
            return {name: grouped[name] for name in sorted(grouped, key=layer_order)}
        return {name: grouped[name] for name in KIND_NAMES if name in grouped}

    def rows(self, scopes: Iterable[Scope] = ("model", "layer", "kind", "tensor")) -> list[GeometryRow]:
        """Every number, as a tidy table.

        Args:
            scopes: which groups.

        Returns:
            The rows.
        """
        groups = ((scope, name, sums) for scope in scopes for name, sums in self.groups(scope).items())
        return [row for group in groups for row in self._of(*group)]

    def _of(self, scope: str, name: str, sums: Sums) -> Iterator[GeometryRow]:
        def row(measure: str, model: str, value: float, other: str = "") -> GeometryRow:
            return GeometryRow(scope, name, measure, model, other, float(value), sums.entries)

        yield row("base_norm", self.base, sums.base_norm)
        for k, model in enumerate(self.models):
            yield row("norm", model, sums.norms[k])
            yield row("distance", model, sums.distances[k])
            yield row("unchanged", model, sums.unchanged[k])
        cosines, conflicts = sums.cosines, sums.conflicts
        for i, model in enumerate(self.models):
            for j, other in enumerate(self.models[:i]):
                yield row("cos", other, float(cosines[i, j]), model)
                yield row("sign_conflict", other, float(conflicts[i, j]), model)

    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty

    def _view(self) -> View:
        total, blocks = self.total, self.groups("layer")
        count = len(self.models)
        # A model that equals the base has no direction: a cosine of 0 would say that it is orthogonal.
        cosines = [float(total.cosines[i, j]) for i in range(count) for j in range(i) if total.moved(i, j)]
        said = f"Task vectors against {self.base}, {total.entries:,} weights" + (
            f": their cosines are {min(cosines):.3f} to {max(cosines):.3f}" if cosines else ""
        )
        lengths = tuple(
            (model, *map(figure, (total.norms[k], total.distances[k], total.unchanged[k])))
            for k, model in enumerate(self.models)
        )
        angles = tuple(
            (
                model,
                *(
                    figure(float(total.cosines[i, j])) if i != j and total.moved(i, j) else Cell(NONE)
                    for j in range(count)
                ),
            )
            for i, model in enumerate(self.models)
        )
        depth = tuple((name, *map(figure, map(float, sums.distances))) for name, sums in blocks.items())
        tables = [
            Table("Length", ("model", "|τ|", "|τ| / |θ₀|", "share unchanged"), lengths),
            *([Table("Cosine of task vectors", ("model", *self.models), angles)] if cosines else []),
            Table("Relative distance |τ| / |θ₀| by block", ("block", *self.models), depth),
        ]
        return View(said, tuple(tables))


def geometry(
    base: Any,
    models: Sequence[Any],
    *,
    threads: int = 2,
    chunk: int = CHUNK,
    progress: bool = False,
) -> Geometry:
    """Measure the task vectors of models against their base, reading every file once.

    Differences are formed in float32 (float64 for such tensors) and summed in float64. The result
    does not depend on the number of threads, and on the size of chunks only in rounding.

    Args:
        base: the base's checkpoint.
        models: one or more checkpoints with the same tensors.
        threads: chunks worked on at once.
        chunk: entries of a chunk; memory is about ``20 * chunk * (models + 1) * threads`` bytes.
        progress: show a bar on a terminal.

    Returns:
        The geometry.

    Raises:
        PointError: no models, or two of one name.
        MismatchError: tensors are missing or differ in shape; all are named.
        CheckpointError: weights are NaN or infinite (all tensors are named), or can't be read.

    Example:
        >>> from mergescope import Checkpoint
        >>> base, a, b = (Checkpoint({"w": torch.tensor(v)}, name=n)
        ...               for n, v in (("base", [3.0, 4.0]), ("a", [4.0, 4.0]), ("b", [2.0, 5.0])))
        >>> found = geometry(base, [a, b]).total
        >>> found.distances[0], found.unchanged, found.conflicts[0, 1].item()
        (0.2, [0.5, 0.0], 1.0)
        >>> round(found.cosines[0, 1].item(), 4)
        -0.7071
    """  # noqa: DOC502 (raised by what this calls)
    names = [base.name, *(model.name for model in models)]
    if not models or len(set(names)) < len(names):
        raise PointError(
            "Geometry needs a base and one or more models of different names, got "
            f"{', '.join(map(repr, names))}. Name checkpoints with Checkpoint(..., name=...)."
        )
    _require_same_tensors(base, models)
    found = measure(base, models, threads=threads, chunk=chunk, progress=progress)
    bad = [
        f"{name} of {owner} ({count:,} of {sums.entries:,} entries)"
        for name, sums in found.tensors.items()
        for owner, count in zip(names, sums.bad.tolist(), strict=True)
        if count
    ]
    if bad:
        raise CheckpointError(
            "NaN or infinite weights have no geometry: " + ", ".join(bad)
            + ". Training diverged or the file is damaged: leave the model out or fetch it again."
        )  # fmt: skip
    return found


def measure(
    base: Any,
    models: Sequence[Any],
    *,
    keys: Iterable[str] | None = None,
    threads: int = 2,
    chunk: int = CHUNK,
    progress: bool = False,
) -> Geometry:
    """Measure some tensors, whatever is in them: NaN and infinite entries are counted, not refused.

    Args:
        base: the base's checkpoint.
        models: checkpoints that have these tensors in the same shapes.
        keys: which tensors; all of the base by default. Those that are no weights are left out.
        threads: chunks worked on at once.
        chunk: entries of a chunk.
        progress: show a bar on a terminal.

    Returns:
        The geometry; measures of a model with NaN are NaN.

    Raises:
        MismatchError: there is no tensor to measure.
        CheckpointError: a file can't be read.
    """  # noqa: DOC502 (raised by what this calls)
    everything = (base, *models)
    chosen = list(base.spec if keys is None else keys)
    weights = [key for key in chosen if not _left_out(key, everything)]
    if not any(base.spec[key].numel for key in weights):
        raise MismatchError(
            "The models share no weights to measure.", [f"{base.name} has {len(base.spec)} tensors"],
            "Name checkpoints of one architecture.",
        )  # fmt: skip

    @torch.no_grad()
    def work(key: str, start: int, stop: int) -> Sums:
        rows = [model.rows(key, start, stop).reshape(-1) for model in everything]
        wide = torch.float64 if any(part.dtype == torch.float64 for part in rows) else torch.float32
        # A single row may be longer than a chunk.
        pieces = [[part.to(wide) for part in row.split(max(chunk, 1))] for row in rows]
        return reduce(add, (Sums.of(first, rest) for first, *rest in zip(*pieces, strict=True)))

    tensors: dict[str, Sums] = {}
    with progress_bar("measuring", sum(base.spec[key].numel for key in weights), progress) as advance:
        for key, sums in in_order(work, chunks_of(base, weights, chunk), max(threads, 1)):
            tensors[key] = tensors[key] + sums if key in tensors else sums
            advance(sums.entries)
    left_out = tuple(key for key in chosen if key not in tensors)
    matrices = frozenset(key for key in tensors if len(base.spec[key].shape) > 1)
    return Geometry(base.name, tuple(model.name for model in models), tensors, left_out, matrices)


def _left_out(key: str, models: Sequence[Any]) -> bool:
    specs = [model.spec[key] for model in models if key in model.spec]
    return (
        key.endswith(STATISTICS)
        or not all(spec.dtype.is_floating_point for spec in specs)
        or is_derived(key, specs[0].shape)
    )


def _require_same_tensors(base: Any, models: Sequence[Any]) -> None:
    problems = []
    for model in models:
        for key in dict.fromkeys([*base.spec, *model.spec]):
            if _left_out(key, (base, model)):
                continue
            if key not in base.spec or key not in model.spec:
                owner, lacking = (base, model) if key in base.spec else (model, base)
                problems.append(f"{key}: in {owner.name}, missing in {lacking.name}")
            elif base.spec[key].shape != model.spec[key].shape:
                problems.append(
                    f"{key}: {list(base.spec[key].shape)} in {base.name}, "
                    f"{list(model.spec[key].shape)} in {model.name}"
                )
    if problems:
        raise MismatchError(
            f"{len(problems)} tensor(s) differ between the base and the models, so there are no task vectors:",
            problems,
            "Name models of one architecture; 'mergescope check' tells more.",
        )
