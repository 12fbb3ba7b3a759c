"""The page of stitching: mixed features in the pretrained network, rebuilt from what is stored."""

from __future__ import annotations

import numpy as np

from mergescope.errors import StudyError
from mergescope.protocols.stitching_result import MIXED, SINGLE, WHOLE, Score, Stitching
from mergescope.readings import Summary
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.protocol_view import AGAIN, Drawing, Shown, Stored
from mergescope.reports.stitching_figures import PANELS, by_coefficient, by_layer, ends_of, mean_by_layer
from mergescope.reports.tables import NONE, Cell, Grid, interval, number
from mergescope.studies.rundir import Row

PROTOCOLS = ("addition", "negation")


def stitching_page(stored: Stored) -> Shown:
    """What the page of stitching shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    found = stored_stitching(stored)
    shown, told = f"λ = {found.shown:g}", len(ends_of(found))
    more = f" The first {PANELS} of {told}; all are in the table." if told > PANELS else ""
    adding = found.protocol == "addition"
    drawings = {}
    if told > 2:
        drawings["stitching-mean"] = Drawing(
            mean_by_layer(found),
            "mean accuracy by the block after which the pretrained network goes on",
            f"Means over all {told} pairs of mixed features and data. "
            + (
                "Mixed features should do for both tasks what a model’s own features do for its task."
                if adding
                else "Where the curves agree, features subtract as weights do."
            ),
        )
    drawings |= {
        "stitching-layers": Drawing(
            by_layer(found),
            "accuracy by the block after which the pretrained network goes on",
            (
                "A panel a pair and data set. Mixed features of both models, and either model’s features alone, go "
                "through the rest of the pretrained network."
                if adding
                else "A panel a negated task and data set. Features subtracted (mixed) and features of negated "
                "weights go through the rest of the pretrained network; where the curves agree, "
                "features subtract as weights do."
            )
            + f" {shown}.{more}",
        )
    }
    if len(found.lams) > 1:
        drawings["stitching-coefficients"] = Drawing(
            by_coefficient(found),
            "accuracy by coefficient, stitched after the first, middle and last block",
            f"Mixed features after the first, middle and last block, next to networks that are not stitched.{more}",
        )
    return Shown(
        "Does the pretrained network understand mixed features?",
        f"Accuracy of the pretrained network’s rest on features that are {'added' if adding else 'subtracted'}, after "
        "every block.",
        _headline(found),
        _sentences(found),
        drawings,
        [_grid(found, data) for data in found.layers],
        [f"stitching, {found.protocol}", "task vector"],
    )


def stored_stitching(stored: Stored) -> Stitching:
    """The scores of a run.

    Args:
        stored: the run.

    Returns:
        Everything that was measured, but for what the passes cost.

    Raises:
        StudyError: something is missing.
    """
    protocol = stored.provenance.get("protocol")
    if protocol not in PROTOCOLS:
        raise StudyError(
            f"{stored.path / 'run.yaml'} names no protocol of stitching ({' or '.join(PROTOCOLS)}) under 'provenance'. "
            f"{AGAIN}"
        )
    kinds = {
        f"stitch-{protocol}": MIXED,
        f"stitch-{protocol}-single": SINGLE,
        f"stitch-{protocol}-whole": WHOLE,
        "accuracy": "base",
    }
    both: dict[tuple[str, str, str, str, float], dict[str, Row]] = {}
    for row in stored.rows:
        if row.kind in kinds:
            key = kinds[row.kind], row.points, row.data, row.layer, row.parameter
            both.setdefault(key, {})[row.measure] = row
    scores: list[Score] = []
    bases: dict[str, Score] = {}
    for (kind, points, data, layer, lam), measures in both.items():
        if not {"accuracy", "loss"} <= measures.keys():
            raise stored.lacks(f"accuracy or loss of {points!r} on {data!r} after {layer!r}")
        values = _summary(measures["accuracy"]), _summary(measures["loss"])
        if kind == "base":
            bases[data] = Score(WHOLE, points, data, layer, lam, *values)
        else:
            scores.append(Score(kind, points, data, layer, lam, *values))
    mixed = [score for score in scores if score.kind == MIXED]
    names = list(dict.fromkeys(score.points for score in scores if score.kind == SINGLE))
    layers = {
        data: tuple(dict.fromkeys(score.layer for score in mixed if score.data == data)) for data in bases
    }
    found = Stitching(
        protocol, tuple(scores), bases, tuple(dict.fromkeys(score.lam for score in mixed)), layers,
        _members(mixed, names, protocol), {}, tuple(stored.provenance.get("notes") or ()),
    )  # fmt: skip
    _require_complete(stored, found)
    return found


def _summary(row: Row) -> Summary:
    return Summary(row.mean, row.std, row.low, row.high, row.n, row.dead)


def _members(mixed: list[Score], names: list[str], protocol: str) -> dict[str, tuple[str, ...]]:
    wanted = dict.fromkeys(score.points for score in mixed)
    if protocol == "negation":
        return {points: (points,) for points in wanted}
    pairs = {f"{one} + {other}": (one, other) for one in names for other in names}
    return {points: pairs[points] for points in wanted if points in pairs}


def _require_complete(stored: Stored, found: Stitching) -> None:
    if not found.base or not found.lams:
        raise stored.lacks(f"stitched {found.protocol}")
    have = {(score.kind, score.points, score.data, score.layer, score.lam) for score in found.scores}
    for points, data in ends_of(found):
        if points not in found.members or data not in found.base:
            raise stored.lacks(f"the base or the single models of {points!r} on {data!r}")
        for lam in found.lams:
            wanted = [(MIXED, points, data, layer, lam) for layer in found.layers[data]]
            for name in found.members[points]:
                wanted += [(SINGLE, name, data, layer, lam) for layer in found.layers[data]]
                wanted.append((WHOLE, name, data, "", lam))
            for key in wanted:
                if key not in have:
                    raise stored.lacks(f"{key[0]} {key[1]!r} on {data!r} after {key[3]!r} at lambda {lam:g}")


def _depths(found: Stitching) -> dict[str, int]:
    count = min(len(layers) for layers in found.layers.values())
    return {"first": 0, "middle": count // 2, "last": -1} if count > 2 else {"first": 0, "last": -1}


def _headline(found: Stitching) -> str:
    where = f"(means over pairs and data, λ = {found.shown:g})"
    depth = list(_depths(found).values())[-1]
    if found.protocol == "negation":
        own, other = _differences(found, depth)
        return (
            f"Subtracting features after the last block, in place of weights, changes accuracy by {number(own)} on the "
            f"task itself and {number(other)} on other data {where}."
        )
    mixed, own, _ = _means(found, depth)
    return (
        f"Mixed features after the last block reach accuracy {number(mixed)}; the task’s own features alone reach "
        f"{number(own)} {where}."
    )


def _sentences(found: Stitching) -> list[str]:
    base = float(np.mean([score.accuracy.mean for score in found.base.values()]))
    said = [f"The base without any task vector: {number(base)}."]
    for name, depth in _depths(found).items():
        if found.protocol == "negation":
            own, other = _differences(found, depth)
            said.append(
                f"After the {name} block, features and weights subtracted differ by {number(own)} on the task itself, "
                f"by {number(other)} on other data."
            )
        else:
            mixed, own, other = _means(found, depth)
            said.append(
                f"After the {name} block: mixed {number(mixed)}, the task’s own features alone {number(own)}, the "
                f"other model’s alone {number(other)}."
            )
    return said


def _means(found: Stitching, depth: int) -> tuple[float, float, float]:
    # Of mixed features, of the task's own model, of the other one.
    values: tuple[list[float], list[float], list[float]] = ([], [], [])
    for points, data in ends_of(found):
        layer = found.layers[data][depth]
        values[0].append(found.score(MIXED, points, data, layer, found.shown).accuracy.mean)
        for name in found.members[points]:
            single = found.score(SINGLE, name, data, layer, found.shown).accuracy.mean
            values[1 if name == data else 2].append(single)
    return _mean(values[0]), _mean(values[1]), _mean(values[2])


def _differences(found: Stitching, depth: int) -> tuple[float, float]:
    # Between features and weights subtracted: on the task itself, and on other data.
    values: tuple[list[float], list[float]] = ([], [])
    for points, data in ends_of(found):
        layer = found.layers[data][depth]
        mixed, single = (found.score(kind, points, data, layer, found.shown) for kind in (MIXED, SINGLE))
        values[points != f"- {data}"].append(abs(mixed.accuracy.mean - single.accuracy.mean))
    return _mean(values[0]), _mean(values[1])


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _grid(found: Stitching, data: str) -> Grid:
    layers = found.layers[data]
    body: list[tuple[str, tuple[Cell, ...]]] = []
    single: dict[str, None] = {}
    for points, where in ends_of(found):
        if where == data:
            single |= dict.fromkeys(found.members[points])
            scores = [found.score(MIXED, points, data, layer, found.shown) for layer in layers]
            body.append((f"{points}, mixed", (*map(_cell, scores), Cell(NONE))))
    for name in single:
        scores = [found.score(SINGLE, name, data, layer, found.shown) for layer in layers]
        scores.append(found.score(WHOLE, name, data, "", found.shown))
        called = "negated weights" if found.protocol == "negation" else "alone"
        body.append((f"{name}, {called}", tuple(map(_cell, scores))))
    body.append(("base", (*(Cell(NONE) for _ in layers), _cell(found.base[data]))))
    heads = [f"after {name}" for name in short_layers(layers)]
    return Grid(f"Accuracy on {data}, λ = {found.shown:g}", ("features", *heads, "not stitched"), tuple(body))


def _cell(score: Score) -> Cell:
    value = score.accuracy
    return Cell(number(value.mean), interval(value.low, value.high))
