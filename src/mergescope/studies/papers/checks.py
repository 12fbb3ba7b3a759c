"""Claims from rows: what a study's checks say of the results of its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.studies.claims import Claim, half_width, over_seeds
from mergescope.studies.papers.spec import Check, PaperStudy
from mergescope.studies.rundir import Row


@dataclass(frozen=True)
class Result:
    """Rows of one step in one regime and repetition.

    Attributes:
        step: its number, from 0.
        regime: label of the regime.
        seed: of the repetition.
        rows: of its run directory.
    """

    step: int
    regime: str
    seed: int
    rows: Sequence[Row]


def claims_of(study: PaperStudy, results: Sequence[Result]) -> list[Claim]:
    """Check a study's claims.

    Args:
        study: with its checks.
        results: of all steps.

    Returns:
        One claim a check: of one repetition the interval of the rows that decide, of several Student's t over them.

    Raises:
        StudyError: results lack what a check is about.
    """  # noqa: DOC502 (raised by what this calls)
    return [_claim(check, study, results) for check in study.checks]


@dataclass(frozen=True)
class _Value:
    """What should be above 0 in one repetition; ``sides`` is what was compared, ``place`` where the worst case is."""

    value: float
    low: float
    high: float
    n: int
    sides: tuple[float, ...]
    place: str = ""


def _claim(check: Check, study: PaperStudy, results: Sequence[Result]) -> Claim:
    seeds = sorted({result.seed for result in results})
    each = [_value(check, [result for result in results if result.seed == seed]) for seed in seeds]
    found = [value for value in each if value is not None]
    if not found:
        raise StudyError(
            f"The results of {study.name} have no rows for the claim {check.says!r}: {check.rows}."
        )
    here = _here(check, found)
    if len(found) > 1:
        values = [of_seed.value for of_seed in found]
        claim = over_seeds(check.says, values, source=study.source, reference=check.reference)
        return replace(claim, here=here)
    (only,) = found
    return Claim(check.says, only.value, only.low, only.high, only.n, study.source, check.reference, here)


def _here(check: Check, found: Sequence[_Value]) -> str:
    known = [one for one in found if not math.isnan(one.value)] or found
    worst = min(known, key=lambda one: one.value)
    every = check.kind == "every"
    sides = worst.sides if every else np.mean([one.sides for one in known], axis=0)
    texts = [_short(float(side)) for side in sides]
    if check.times != 1:
        texts[1] = f"{check.times:g} x {_short(float(sides[1] / check.times))}"
    return " against ".join(texts) + (f" ({worst.place})" if every else "")


def _short(number: float) -> str:
    # Three digits; as many as it takes where they would say that a cosine is 1.
    text = f"{number:.3g}"
    return text if text != "1" or number == 1 else f"{number:.7f}".rstrip("0").rstrip(".")


def _value(check: Check, results: Sequence[Result]) -> _Value | None:
    rows = list(_having(check.rows, results, check))
    if not rows:
        return None
    found: list[tuple[Row, tuple[float, float, float], tuple[float, ...]]]
    if check.than is None:
        found = [(row, _against(row, check), (row.mean,)) for row in rows]
    else:
        others = list(_having({**check.rows, **check.than}, results, check))
        if check.members:
            rows, others = _with_members(rows, others)
        if not others:
            return None
        if check.kind == "mean":
            return _means(rows, others, check.times)
        by_place = {_place(row): row for row in others}
        pairs = [(row, by_place[_place(row)]) for row in rows if _place(row) in by_place]
        found = [
            (row, _difference(row, other, check.times), (row.mean, check.times * other.mean)) for row, other in pairs
        ]  # fmt: skip
    found = [one for one in found if math.isfinite(one[1][0])]
    if not found:  # such as the correlation of accuracies that are all the same
        return _Value(math.nan, -math.inf, math.inf, 0, (math.nan,) * (1 if check.than is None else 2))
    if check.kind == "mean":
        values = np.array([ends[0] for _, ends, _ in found])
        sides = (float(np.mean([row.mean for row, _, _ in found])),)
        if len(values) == 1:
            return _Value(*found[0][1], 1, sides)
        value, half = float(values.mean()), _students(values)
        return _Value(value, value - half, value + half, len(values), sides)
    row, (worst, *_), compared = min(found, key=lambda one: one[1][0])
    # The worst case is below every upper end, and may be as low as the lowest lower one.
    low, high = (min(ends[place] for _, ends, _ in found) for place in (1, 2))
    said = ", ".join(text for text in (row.points, row.layer) if text)
    return _Value(worst, low, high, len(found), compared, said)


def _having(fields: Mapping[str, Any], results: Iterable[Result], check: Check) -> Iterable[Row]:
    for result in results:
        if (
            fields.get("step", result.step) != result.step
            or fields.get("regime", result.regime) != result.regime
        ):
            continue
        tuned = {row.points for row in result.rows if row.kind == "ctl"} if check.fine_tuned else None
        for row in result.rows:
            if row.trivial or (tuned is not None and row.points not in tuned):
                continue
            if fields.get("points") != "base" and not _asked(row, check.own):
                continue
            wanted = {name: value for name, value in fields.items() if name not in ("step", "regime")}
            if all(_fits(getattr(row, name), value) for name, value in wanted.items()):
                yield row


def _asked(row: Row, own: bool | None) -> bool:
    return own is None or (row.points.removeprefix("- ") == row.data) is own


def _with_members(rows: Sequence[Row], others: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    # What is of several models, beside the mean of what is of each of them; either may be compared with the other.
    if not any(" + " in row.points for row in rows):
        made, singles = (
            _with_members(others, rows) if any(" + " in row.points for row in others) else ([], [])
        )
        return singles, made
    by_place = {_place(row): row for row in others}
    found = [
        (row, [by_place.get((name, *_place(row)[1:])) for name in row.points.split(" + ")]) for row in rows
    ]
    whole = [(row, members) for row, members in found if all(members)]

    def mean(members: Sequence[Any], field: str) -> float:
        return float(np.mean([getattr(member, field) for member in members]))

    means = [
        replace(row, mean=mean(members, "mean"), low=mean(members, "low"), high=mean(members, "high"))
        for row, members in whole
    ]
    return [row for row, _ in whole], means


def _fits(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and "*" in wanted:
        return fnmatchcase(str(found), wanted)
    if isinstance(wanted, float | int) and isinstance(found, float):
        return math.isclose(found, wanted, rel_tol=1e-9)
    return bool(found == wanted)


def _place(row: Row) -> tuple[str, str, str, str]:
    return row.points, row.data, row.layer, f"{row.parameter:g}"


def _difference(row: Row, other: Row, times: float) -> tuple[float, float, float]:
    # Intervals of different measures are put at their worst against each other.
    (low, high), (least, most) = _interval(row), _interval(other)
    return row.mean - times * other.mean, low - times * most, high - times * least


def _interval(row: Row) -> tuple[float, float]:
    # Of a measured number without an interval nothing is known; that something holds is no such number.
    if row.measure.endswith(" holds"):
        return row.mean, row.mean
    return row.low if math.isfinite(row.low) else -math.inf, row.high if math.isfinite(row.high) else math.inf


def _against(row: Row, check: Check) -> tuple[float, float, float]:
    low, high = _interval(row)
    if check.most is not None:
        return check.most - row.mean, check.most - high, check.most - low
    least = check.least or 0.0
    return row.mean - least, low - least, high - least


def _means(rows: Sequence[Row], others: Sequence[Row], times: float) -> _Value:
    pairs = _same_cases(rows, others)
    if pairs is not None:
        rows, others = [row for row, _ in pairs], [other for _, other in pairs]
    rows, others = ([row for row in side if not math.isnan(row.mean)] for side in (rows, others))
    if not rows or not others:
        return _Value(math.nan, -math.inf, math.inf, 0, (math.nan, math.nan))
    first, second = np.array([row.mean for row in rows]), times * np.array([row.mean for row in others])
    sides = float(first.mean()), float(second.mean())
    if len(rows) == len(others) == 1:
        return _Value(*_difference(rows[0], others[0], times), 1, sides)
    value = sides[0] - sides[1]
    half = _welch(first, second) if pairs is None else _students(first - second)
    return _Value(value, value - half, value + half, min(len(rows), len(others)), sides)


def _same_cases(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]] | None:
    # Both sides case by case, without the cases that one of them has no value of; None if their cases differ.
    places = [_place(row) for row in rows]
    if len(set(places)) < len(places) or places != [_place(row) for row in others]:
        return None
    return [
        (row, other)
        for row, other in zip(rows, others, strict=True)
        if not (math.isnan(row.mean) or math.isnan(other.mean))
    ]


def _students(values: np.ndarray) -> float:
    # Half the interval of a mean.
    return half_width(float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1)


def _welch(first: np.ndarray, second: np.ndarray) -> float:
    # Half the interval of a difference of means of other cases; a single case tells no spread.
    counts = len(first), len(second)
    if min(counts) < 2:
        return math.inf
    parts = [float(side.var(ddof=1)) / len(side) for side in (first, second)]
    whole = sum(parts)
    if not whole:
        return 0.0
    freedom = 1 / sum((part / whole) ** 2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return half_width(math.sqrt(whole), freedom)
