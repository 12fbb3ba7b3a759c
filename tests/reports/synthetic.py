"""Rows, samples and run directories made up for the tests of reports."""

from itertools import combinations
from math import nan
from pathlib import Path

from mergescope.studies.rundir import RESULTS, SAMPLES, Row, RunDirectory, write_rows, write_table

MEASURES = ("cos", "coef", "gap", "gap_between", "baseline", "cos_rel", "coef_rel", "gap_rel")


def make_rows(
    networks=("net",),
    regimes=("mild",),
    tasks=("a", "b"),
    layers=("one", "two"),
    alphas=(0.25, 0.5, 0.75),
    trivial=(),
    change=lambda row: row,
    n=10,
):
    """A complete set of rows; ``change`` may replace each, or drop it by returning None."""
    rows = []
    for network in networks:
        for regime in regimes:
            rows += _family(network, regime, tasks, layers, alphas, trivial, n)
    return [row for row in map(change, rows) if row is not None]


def _family(network, regime, tasks, layers, alphas, trivial, n):
    family = (network, regime)
    value = {"cos": 0.98, "coef": 1.02, "gap": 0.2, "gap_between": 0.3, "baseline": 0.5, "cos_rel": 0.9}
    tests = [
        ("ctl", f"{a} + {b}", f"{a} ∪ {b}", alpha) for a, b in combinations(tasks, 2) for alpha in alphas
    ]
    tests += [("eq2", f"{a} + {b}", f"{a} ∪ {b}", 0.4) for a, b in combinations(tasks, 2)]
    tests += [("eq1", "average of all", " ∪ ".join(tasks), nan)]
    tests += [("eq3", f"− {a}", a, 0.4) for a in tasks]
    a, b = tasks[:2]
    tests += [(kind, f"{a} + {b}", f"{a} ∪ {b}", 0.5) for kind in ("null-init", "null-random")]
    for i, (kind, points, data, parameter) in enumerate(tests):
        for j, layer in enumerate(layers):
            for measure in MEASURES:
                mean = value.get(measure, 0.1) + 0.001 * (i % 5) - 0.002 * j
                if kind == "null-init" and measure == "cos":
                    mean = 0.4
                if kind == "null-init" and measure == "gap_between":
                    mean = 1.2
                if kind == "null-random":
                    mean = {"baseline": 0.99, "gap_between": 0.05}.get(measure, mean)
                if kind == "eq3" and measure.endswith("_rel"):
                    mean = nan
                yield Row(*family, kind, points, data, measure, mean, parameter, layer, layer in trivial,
                          0.1, mean - 0.01, mean + 0.01, n)  # fmt: skip
        for measure in ("CTL holds", "LLFC holds", "beats baseline"):
            yield Row(*family, kind, points, data, measure, float(kind != "null-init"), parameter)
    for a, b in combinations(tasks, 2):
        place = (f"{a} + {b}", f"{a} ∪ {b}")
        for alpha in (0.0, 0.5, 1.0):
            yield Row(*family, "line", *place, "loss", 1 + alpha * (1 - alpha), alpha)
            yield Row(*family, "line", *place, "error", 0.1 + 0.1 * alpha, alpha)
        yield Row(*family, "barrier", *place, "loss", 0.25)
        yield Row(*family, "barrier", *place, "error", -0.02)
    for k, lam in enumerate((0.0, 0.5, 1.0)):
        yield Row(*family, "lambda-search", "task arithmetic", "validation of all", "normalised accuracy",
                  (0.4, 0.9, 0.7)[k], lam, seconds=1.5, forward_passes=30)  # fmt: skip
    models = [
        "pretrained",
        *(f"fine-tuned on {task}" for task in tasks),
        "average",
        "task arithmetic (λ = 0.5)",
    ]
    for k, label in enumerate([*models, "ensemble of logits"]):
        for task in tasks:
            yield Row(*family, "accuracy", label, task, "accuracy", 0.3 + 0.05 * k, low=0.2, high=0.9, n=n,
                      seconds=2.0, forward_passes=8, peak_bytes=10**9)  # fmt: skip
        yield Row(*family, "accuracy", label, "all tasks", "accuracy", 0.3 + 0.05 * k)
        yield Row(*family, "accuracy", label, "all tasks", "normalised accuracy", 0.4 + 0.05 * k)


def make_samples(rows):
    """Coefficients for every network, regime, pair and layer of the rows."""
    table = {name: [] for name in ("network", "regime", "points", "layer", "measure", "value")}
    places = dict.fromkeys(
        (r.network, r.regime, r.points, r.layer) for r in rows if r.kind == "ctl" and r.layer
    )
    for k, place in enumerate(places):
        for i in range(40):
            line = (*place, "coef", 1 + 0.01 * ((7 * i + k) % 20 - 10))
            for name, entry in zip(table, line, strict=True):
                table[name].append(entry)
    return table


def make_run(path: Path, rows, config=None):
    """A run directory with everything that a report needs."""
    run = RunDirectory(path)
    write_rows(run.path / RESULTS, rows)
    write_table(run.path / SAMPLES, make_samples(rows))
    networks = list(dict.fromkeys(row.network for row in rows))
    regimes = list(dict.fromkeys(row.regime for row in rows))
    recipes = {
        regime: {network: {"optimizer": "sgd", "lr": 10.0**-i, "epochs": 2} for network in networks}
        for i, regime in enumerate(regimes)
    }
    known = {
        "tasks": "made-up",
        "networks": networks,
        "regimes": recipes,
        "settings": {"batch": 5, "lam": 0.4},
        "seed": 3,
    }
    provenance = {
        "data": {"source": "made-up", "fingerprints": {"a": "0123456789abcdef"}},
        "checkpoints": {"base": "fedcba9876543210"},
    }
    run.write_run("digits", "quick", config or known, provenance)
    return run.path
