"""Rows, verdicts and run directories of measurements made up for the tests of reports."""

from dataclasses import replace
from itertools import combinations
from math import nan

from mergescope.reports.measured import Measured
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows

RELATIVE = ("cos_rel", "coef_rel", "gap_rel")
COST = {"samples": 20, "points": 5, "forward_passes": 12, "local_passes": 8, "seconds": 1.5, "peak_bytes": 2 * 10**9,
        "executor": "resident", "dtype": "float32", "features": "plain: all"}  # fmt: skip


def make_measured(
    models=("a", "b", "c"),
    base="base",
    layers=("blocks.0", "blocks.1", "output"),
    alphas=(0.5,),
    data=("one",),
    trivial=(),
    labels=True,
    predicts=True,
    change=lambda row: row,
    says=lambda pair: "CTL holds",
    linearized=False,
):
    """Rows and verdicts of a complete measurement; ``change`` may replace each row, or drop it by returning None."""
    pairs = [("FT–FT", a, b) for a, b in combinations(models, 2)]
    pairs += [("PT–FT", base, a) for a in models] if base else []
    rows, verdicts = [], []
    for place, (kind, a, b) in enumerate(pairs):
        name = f"{a} + {b}"
        rows += _pair(place, kind, name, layers, alphas, data, trivial, bool(base), labels, predicts)
        told = {
            "kind": kind,
            "a": a,
            "b": b,
            "data": list(data),
            "says": says(name),
            "reason": f"Reason of {name}.",
            "linearized": linearized,
        }
        verdicts.append({"pair": name, **told})
    ends = [*([base] if base else []), *models]
    merged = [f"{a} + {b}, merged" for a, b in combinations(models, 2)]
    for place, model in enumerate([*ends, *merged] if labels else []):
        for name in data:
            rows += [
                Row(
                    "Net",
                    "given",
                    "accuracy",
                    model,
                    name,
                    measure,
                    value + 0.01 * place,
                    low=0.1,
                    high=0.9,
                    n=20,
                )
                for measure, value in (("loss", 1.0), ("accuracy", 0.5))
            ]
    return [row for row in map(change, rows) if row is not None], verdicts


def _pair(place, kind, name, layers, alphas, data, trivial, base, labels, predicts):
    short = "ctl" if kind == "FT–FT" else "pt-ft"
    common = {"network": "Net", "regime": "given", "points": name, "data": " ∪ ".join(data), "n": 20}
    values = {"cos": 0.99, "coef": 1.02, "gap": 0.1, "gap_between": 0.3, "baseline": 0.7}
    values |= dict.fromkeys(RELATIVE, 0.4) if base else {}
    for suffix in ("", "-local") if base else ("",):
        for alpha in alphas:
            for depth, layer in enumerate(layers):
                if suffix and layer == "output":
                    continue
                for measure, value in values.items():
                    mean = value - (0.002 * depth + 0.0005 * (place % 7) + 0.001 * abs(alpha - 0.4)) * (
                        1 - 0.8 * bool(suffix)
                    )
                    yield Row(**common, kind=short + suffix, measure=measure, mean=mean, parameter=alpha, layer=layer,
                              trivial=layer in trivial, std=0.1, low=mean - 0.004, high=mean + 0.004)  # fmt: skip
            for measure in ("CTL holds", "LLFC holds", "beats baseline"):
                yield Row(
                    **{**common, "n": 1}, kind=short + suffix, measure=measure, mean=1.0, parameter=alpha
                )
    if predicts:
        for ends, share in (("a, b", 0.8), ("a, middle", 0.9), ("b, middle", 0.85)):
            yield Row(**common, kind="agreement", measure=ends, mean=share, parameter=0.5, low=0.7, high=0.95)
    if labels:
        for alpha in sorted({0.0, *alphas, 1.0}):
            for measure in ("loss", "error"):
                value = 0.5 + alpha * (1 - alpha) * (1 + 0.1 * place)
                yield Row(**{**common, "n": 1}, kind="line", measure=measure, mean=value, parameter=alpha)
        for measure in ("loss", "error"):
            yield Row(**{**common, "n": 1}, kind="barrier", measure=measure, mean=0.25 + 0.01 * place)


def view(**shape):
    """The view of a made-up measurement."""
    rows, verdicts = make_measured(**shape)
    return Measured(rows, verdicts)


def make_measured_run(path, provenance=None, **shape):
    """A run directory with everything that the report of a measurement needs."""
    rows, verdicts = make_measured(**shape)
    run = RunDirectory(path)
    write_rows(run.path / RESULTS, rows)
    base = shape.get("base", "base")
    names = [*([base] if base else []), *shape.get("models", ("a", "b", "c"))]
    facts = {
        "samples": 20,
        "fingerprint": "fedcba9876543210" * 4,
        "labels": True,
        "notes": ["2 rows are empty"],
    }
    digest = "0123456789abcdef" * 2
    about = {
        "models": {name: {"from": f"/models/{name}", "commit": None, "digest": digest} for name in names},
        "data": {"one": facts},
        "cost": COST,
        "verdicts": verdicts,
        "notes": ["one: 2 rows are empty"],
    }
    run.write_run("measure", "", {"base": names[0], "alphas": [0.5]}, {**about, **(provenance or {})})
    return run.path


def without(measure):
    """A change of rows that turns a measure into NaN everywhere."""
    return lambda row: replace(row, mean=nan, low=nan, high=nan, n=0) if row.measure == measure else row
