"""Evaluation, addition, negation and compared methods of somebody's models: tables, rows, run directories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mergescope.display import View, as_html, as_pandas, as_pretty
from mergescope.plain import plain
from mergescope.protocols.arithmetic import Addition
from mergescope.protocols.coefficients import CoefficientSearch
from mergescope.protocols.scores import ModelScores, best_of, score_grid, score_table, scores_of
from mergescope.protocols.tuning import ArithmeticSettings
from mergescope.studies.families import is_family
from mergescope.studies.given import split_name
from mergescope.studies.protocol_runs import Opened, write_protocol_run
from mergescope.studies.rundir import Row, RunDirectory
from mergescope.studies.search_plans import models_of
from mergescope.weights import Point
from mergescope.weights.files import atomic_file

EVALUATE, SEARCH, SOUP = "evaluate", "search", "soup"
"""What ``run.yaml`` calls them."""


class Result(Protocol):
    """What every protocol here returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""

    @property
    def network(self) -> str:
        """Name of the network's class."""

    @property
    def linearized(self) -> bool:
        """Whether figures are of the network linearised around the base."""

    @property
    def forward_passes(self) -> int:
        """Forward passes of a batch."""

    @property
    def seconds(self) -> float:
        """Seconds of all passes."""

    def rows(self) -> list[dict[str, Any]]:
        """Fields of rows."""


@dataclass(frozen=True)
class Evaluated:
    """Models on all data; it prints as a table.

    Attributes:
        models: the scores, one a line.
        linearized: whether all figures are of the network linearised around the base.
        notes: what the user should know.
        network: name of its class.
        forward_passes: of a batch.
        seconds: of all passes.
    """

    models: tuple[ModelScores, ...]
    linearized: bool
    notes: tuple[str, ...]
    network: str
    forward_passes: int
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """The result as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        return [row for scores in self.models for row in scores.rows("accuracy")]

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        return View(best_of(self.models), (score_grid(self.models, "Accuracy"),), self.notes)

    def __str__(self) -> str:
        width = max(len(line.name) for line in self.models) + 2
        losses = [
            f"{line.name:<{width}}" + "  ".join(f"{task} {loss.mean:.4f}" for task, loss in line.loss.items())
            for line in self.models
        ]
        cost = f"{self.forward_passes:,} forward passes, {self.seconds:.1f} s"
        notes = [f"Note: {note}." for note in self.notes]
        return "\n".join(["Accuracy", *score_table(self.models), "Loss", *losses, cost, *notes])


def evaluate_opened(opened: Opened, extra: Mapping[str, Point], settings: ArithmeticSettings) -> Evaluated:
    """Accuracy and loss of models on all data.

    Args:
        opened: models and data.
        extra: name to further point.
        settings: of the passes.

    Returns:
        The scores; normalised where every data set has a model of its own.
    """
    points, held = models_of(opened, extra), opened.data
    linear, notes = opened.linear(settings.linearized)
    around = opened.base if linear else None
    found = settings.run(dict.fromkeys(held, list(points.values())), held, around)
    owners = {name: data.owner for name, data in held.items() if data.owner is not None}
    single = {name: points[owner] for name, owner in owners.items()}
    # Of several data sets of one fine-tune, it is not known which one it learned.
    own = single if len(set(owners.values())) == len(held) else None
    lines = [scores_of(name, found, point, own, seed=settings.seed) for name, point in points.items()]
    network = type(opened.given.held[0].model).__name__
    told = (*opened.given.notes, *notes)
    return Evaluated(tuple(lines), linear, told, network, found.forward_passes, found.seconds)


def rows(result: Result, regime: str) -> list[Row]:
    """A result as a tidy table.

    Args:
        result: of a protocol.
        regime: how the models were fine-tuned.

    Returns:
        The rows.
    """
    cost = {"seconds": result.seconds, "forward_passes": result.forward_passes}
    return [Row(**{"network": result.network, "regime": regime, **cost, **row}) for row in result.rows()]


def write_result(
    run: RunDirectory, study: str, result: Result, parts: Mapping[str, Opened], settings: Any
) -> None:
    """Write ``results.parquet`` and ``run.yaml``.

    Args:
        run: the run directory.
        study: what ``run.yaml`` calls it.
        result: of a protocol.
        parts: ``validation`` and ``test``, or one of them, to models and data.
        settings: of the protocol.
    """
    regime = next(iter(parts.values())).regime
    cost = {"forward_passes": result.forward_passes, "seconds": round(result.seconds, 2)}
    about = {
        "cost": cost,
        "linearized": result.linearized,
        "notes": list(result.notes),
        "says": str(result),
    }
    write_protocol_run(run, study, rows(result, regime), parts, settings, about)


def write_recipe(run: RunDirectory, result: Any, opened: Opened) -> Path | None:
    """Write the merge recipe of what a search found, for ``mergescope merge``.

    Args:
        run: the run directory.
        result: of a search.
        opened: the models.

    Returns:
        ``recipe.yml``; None where no recipe says it: other results than coefficients of whole task vectors,
        coefficients of the linearised network, models whose heads differ.
    """
    import yaml

    path = run.path / "recipe.yml"
    path.unlink(missing_ok=True)  # of an earlier search
    if isinstance(result, Addition):
        weights = dict.fromkeys(opened.models, result.lam)
    elif isinstance(result, CoefficientSearch) and len({group for _, group in result.coefficients}) == 1:
        weights = {task: value for (task, _), value in result.coefficients.items()}
    else:
        return None
    options = opened.given.options
    specs = [
        {key: tuple(spec.shape) for key, spec in source.spec.items()}
        for source in opened.given.sources.values()
    ]
    if result.linearized or options.base is None or any(spec != specs[0] for spec in specs):
        return None
    places = dict(zip(opened.models, (split_name(text)[1] for text in options.models), strict=True))
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": options.base,
        "models": [
            {"model": places[task], "parameters": {"weight": weight}} for task, weight in weights.items()
        ],
    }
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def merge_command(result: Any, opened: Opened, recipe: Path | None) -> str | None:
    """How to write the model that a search found.

    Args:
        result: of a search.
        opened: the models.
        recipe: of [`write_recipe`][].

    Returns:
        A command, in which OUT is the directory to make; None if no merge says it. Of a published family, whose models
        have other tensors than their base, no recipe does, but the family by its name.
    """
    if recipe is not None:
        return f"mergescope merge {recipe} OUT"
    published = opened.family is not None and not is_family(Path(opened.family))
    if not published or not isinstance(result, Addition) or result.linearized:
        return None
    method = f"--method task_arithmetic --parameter weight={result.lam:g}"
    return f"mergescope merge --family {opened.family} {method} --out OUT"


def to_dict(result: Result, regime: str) -> dict[str, Any]:
    """A result for scripts.

    Args:
        result: of a protocol.
        regime: how the models were fine-tuned.

    Returns:
        Plain values; NaN becomes None.
    """
    fields = ("kind", "points", "parameter", "data", "layer", "measure", "mean", "std", "low", "high", "n")
    return plain({
        "network": result.network,
        "regime": regime,
        "linearized": result.linearized,
        "notes": list(result.notes),
        "cost": {"forward_passes": result.forward_passes, "seconds": round(result.seconds, 3)},
        "results": [{name: getattr(row, name) for name in fields} for row in rows(result, regime)],
    })
