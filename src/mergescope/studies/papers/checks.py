"""Claims from rows: what a study's checks say of the results of its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.studies.claims import Claim, over_seeds
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


def _claim(check: Check, study: PaperStudy, results: Sequence[Result]) -> Claim:
    seeds = sorted({result.seed for result in results})
    each = [_value(check, [result for result in results if result.seed == seed]) for seed in seeds]
    found = [value for value in each if value is not None]
    if not found:
        raise StudyError(
            f"The results of {study.name} have no rows for the claim {check.says!r}: {check.rows}."
        )
    if len(found) > 1:
        values = [of_seed[0] for of_seed in found]
        return over_seeds(check.says, values, source=study.source, reference=check.reference)
    return Claim(check.says, *found[0], study.source, check.reference)


def _value(check: Check, results: Sequence[Result]) -> tuple[float, float, float, int] | None:
    rows = list(_having(check.rows, results))
    if not rows:
        return None
    if check.than is None:
        pairs = [_against(row, check) for row in rows]
    else:
        fields = {**{name: value for name, value in check.rows.items()}, **check.than}
        others = list(_having(fields, results))
        if not others:
            return None
        if check.kind == "mean":
            return _means(rows, others, check.times)
        by_place = {_place(row): row for row in others}
        pairs = [
            _difference(row, by_place[_place(row)], check.times) for row in rows if _place(row) in by_place
        ]
    pairs = [pair for pair in pairs if math.isfinite(pair[0])]
    if not pairs:
        return None
    if check.kind == "mean":
        values = np.array([value for value, _, _ in pairs])
        if len(values) == 1:
            return (*pairs[0], 1)
        half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
        return float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values)
    worst = min(pairs, key=lambda pair: pair[0])
    return (*worst, len(pairs))


def _having(fields: Mapping[str, Any], results: Iterable[Result]) -> Iterable[Row]:
    for result in results:
        if (
            fields.get("step", result.step) != result.step
            or fields.get("regime", result.regime) != result.regime
        ):
            continue
        for row in result.rows:
            if row.trivial:
                continue
            wanted = {name: value for name, value in fields.items() if name not in ("step", "regime")}
            if all(_fits(getattr(row, name), value) for name, value in wanted.items()):
                yield row


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
    value, low, high = (
        row.mean - times * other.mean,
        row.low - times * other.high,
        row.high - times * other.low,
    )
    return value, low if math.isfinite(low) else value, high if math.isfinite(high) else value


def _against(row: Row, check: Check) -> tuple[float, float, float]:
    low, high = (end if math.isfinite(end) else row.mean for end in (row.low, row.high))
    if check.most is not None:
        return check.most - row.mean, check.most - high, check.most - low
    least = check.least or 0.0
    return row.mean - least, low - least, high - least


def _means(rows: Sequence[Row], others: Sequence[Row], times: float) -> tuple[float, float, float, int]:
    first, second = np.array([row.mean for row in rows]), times * np.array([row.mean for row in others])
    value = float(np.nanmean(first) - np.nanmean(second))
    if len(rows) == len(others) == 1:
        return (*_difference(rows[0], others[0], times), 1)
    spread = [side.std(ddof=1) ** 2 / len(side) if len(side) > 1 else 0.0 for side in (first, second)]
    half = 1.96 * math.sqrt(sum(spread))
    return value, value - half, value + half, min(len(rows), len(others))
