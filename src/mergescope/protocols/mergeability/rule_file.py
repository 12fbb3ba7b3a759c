"""The rules as a file.

``rule.json`` lies in this package and is made by ``mergescope mergeability``, never by hand:

    version     of the layout
    made_by     version of mergescope
    families    names of the families; units, cases, tasks and networks likewise
    rules       one a level and outcome: the rule, its scores on left-out tasks and networks, and the controls'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mergescope._version import __version__
from mergescope.errors import StudyError, did_you_mean
from mergescope.plain import plain
from mergescope.protocols.mergeability.analysis import Analysis, BaseRule, Verdict
from mergescope.protocols.mergeability.predictors import PREDICTORS
from mergescope.protocols.mergeability.rules import Rule
from mergescope.weights.files import atomic_file

FILE = Path(__file__).with_name("rule.json")
"""The rules that commands use."""

VERSION = 1
"""Of the layout."""


def content(found: Analysis) -> dict[str, Any]:
    """An analysis as what the file says.

    Args:
        found: the analysis.

    Returns:
        Plain values.
    """
    cases = found.tables["average"].cases
    return dict(plain({
        "version": VERSION, "made_by": __version__,
        "families": sorted({case.family for case in cases}), "units": len({case.unit for case in cases}),
        "cases": len(cases), "tasks": sorted({model for case in cases for model in case.models}),
        "networks": sorted({case.network for case in cases}),
        "rules": [_said(it, found.bases.get(it.outcome)) for it in found.verdicts],
    }))  # fmt: skip


def write_rules(found: Mapping[str, Any], path: Path) -> None:
    """Write a rule file, atomically.

    Args:
        found: as [`content`][] gives it.
        path: the file.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


@lru_cache(maxsize=4)
def read_rules(path: Path = FILE) -> dict[str, Any]:
    """Read a rule file.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        StudyError: it is absent, damaged, or a newer version wrote it.
    """
    again = "Make it with mergescope mergeability, or install mergescope again."
    if not path.is_file():
        raise StudyError(f"There is no rule file {path}. {again}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] > VERSION:
            raise StudyError(f"{path} was written by a newer mergescope. Update this one.")
        for rule in found["rules"]:
            for part in (rule["rule"], rule["fallback"], *([rule["base"]["rule"]] if rule["base"] else [])):
                Rule(**part)
            float(rule["mae"][0]), float(rule["controls"]["models"][0])
            name = rule["rule"]["predictor"]
            if name is not None and name not in PREDICTORS:
                raise StudyError(
                    f"{path} has a rule of a figure {name!r} that is not known.{did_you_mean(name, PREDICTORS)} {again}"
                )
        return dict(found)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StudyError(f"{path} can't be read ({type(error).__name__}: {error}). {again}") from error


def _said(it: Verdict, base: BaseRule | None) -> dict[str, Any]:
    return {
        "base": None if base is None else {
            "helps": base.helps, "rule": asdict(base.rule), "mae": _number(base.left_tasks.mae),
            "gained": _number(base.gained),
            "networks_mae": None if base.left_networks is None else base.left_networks.mae.value,
        },
        "level": it.level, "outcome": it.outcome, "helps": it.helps, "beats_all_controls": it.beats,
        "rule": asdict(it.rule), "fallback": asdict(it.fallback), "mae": _number(it.left_tasks.mae),
        "r2": _number(it.left_tasks.r2), "rank": it.left_tasks.rank,
        "controls": {name: _number(score.mae) for name, score in it.controls.items()},
        "controls_r2": {name: _number(score.r2) for name, score in it.controls.items()},
        "gained": {name: _number(number) for name, number in it.gained.items()},
        "networks_mae": None if it.left_networks is None else it.left_networks.mae.value,
        "networks_models_mae": None if it.models_on_networks is None else it.models_on_networks.mae.value,
        "cases": it.controls["models"].cases,
    }  # fmt: skip


def _number(number: Any) -> list[float]:
    return [number.value, number.low, number.high]
