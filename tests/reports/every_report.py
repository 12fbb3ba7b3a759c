"""A run directory of every kind that there is a report of, made up or of a tiny network."""

import json
from dataclasses import asdict
from functools import partial

from reports import protocol_runs, synthetic
from reports.measured_synthetic import make_measured_run
from reports.paper_runs import equations_run, study_run

from mergescope.protocols.equations import EquationSettings, check_equations
from mergescope.protocols.mergeability import Case, groups_of
from mergescope.reports.paper_figures.ran import Ran
from mergescope.studies.claims import Claim
from mergescope.studies.mergeable_results import CASES
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows
from mergescope.studies.sweeps.root_causes import KIND, SWEEPS

CLAIMS = [
    Claim("it holds", 1.0, 0.5, 1.5, 3, "CTL Fig. 7", "it does"),
    Claim("it fails", -1.0, -1.5, -0.5, 3, "CTL"),
]


def digits(path):
    rows = synthetic.make_rows(
        ("mlp", "vit"), ("moderate", "high"), ("22.5°", "45°", "90°"), ("blocks.0", "output"), trivial=("blocks.0",)
    )  # fmt: skip
    return synthetic.make_run(path, rows)


def measured(path):
    says = {"a + b": "CTL holds", "a + c": "LLFC only"}
    return make_measured_run(path, says=lambda pair: says.get(pair, "not linear"), trivial=("blocks.0",))


def equations(path):
    def run(base, models, validation, test):
        settings = EquationSettings(progress=False)
        return check_equations(base, models, test, settings), settings

    return protocol_runs.write_run("equations", run, path, 2)


def study(path):
    equations_run(path / "step")
    draws = [{"draw": "layers", "kind": "eq2"}, {"draw": "coef", "name": "lengths", "kind": "eq2"}]
    return study_run(path / "run", "ctl-fig7", [Ran(0, "full", 0, path / "step")], draws)


def root_causes(path):
    values = {"cos": 0.5, "baseline": 0.3, "coef": 0.9}
    rows = [claim.row("net", sweep) for sweep in SWEEPS for claim in CLAIMS]
    for place in ((sweep, seed, value) for sweep in SWEEPS for seed in range(2) for value in (0.0, 0.5, 1.0)):
        sweep, seed, value = place
        where = ("net", sweep, KIND, f"a + b, seed {seed}", "a ∪ b")
        for layer in ("blocks.0", "blocks.1"):
            rows += [Row(*where, name, mean + 0.1 * value, value, layer) for name, mean in values.items()]
        for name in ("accuracy of the fine-tuned models", "accuracy of the average"):
            rows.append(Row(*where, name, 0.5 + 0.1 * value, value))
    provenance = {
        "shown layers": ["blocks.0", "blocks.1"], "parts": ["0/1"], "data": {"source": "images"}, "versions": {},
    }  # fmt: skip
    return _written(path, "root-causes", rows, provenance)


def theorem(path):
    rows = [claim.row("net", place) for place in ("midpoint", "base") for claim in CLAIMS]
    for place in ("midpoint", "base"):
        for number in range(6):
            found = {
                "gap": -0.1 * number, "|gap|": 0.1 * number, "exact term": -0.09 * number, "lambda": 3.0 + number % 3,
                "|d|^2": 1.0 + number, "bound": 2.0 + number, "bound holds": 1.0,
            }  # fmt: skip
            points = f"base{number % 2}: {number}"
            rows += [
                Row("net", place, "theorem 5.1", points, "d", name, value) for name, value in found.items()
            ]
    line = {"at": "midpoint", "response": "|gap|", "regressor": "lambda", "r2": 0.5}
    provenance = {
        "conventions": {"midpoint": ["a"], "base": ["b"]}, "regressions": [line], "notes": {"midpoint": ["so"]},
        "data": {"source": "images"},
    }  # fmt: skip
    return _written(path, "theorem-5.1", rows, provenance)


def mergeability(path):
    cases = []
    for unit in range(4):
        for place, group in enumerate(groups_of("abcd", (3,), 4, 6, seed=unit)):
            known = {
                name: 0.1 + 0.07 * ((place * (unit + 2) + k) % 5)
                for k, name in enumerate(("cosine", "conflict"))
            }
            told = dict.fromkeys(("average", "task_arithmetic", "ties", "recovered"), 1 - known["conflict"])
            cases.append(Case(f"f{unit}", "full", "Net", group, False, known, told, {}))
    config = {"families": {"f": ["full"]}, "settings": {"seed": 0}}
    _written(path, "mergeability", [], {"notes": ["so"]}, config)
    (path / CASES).write_text(json.dumps([asdict(case) for case in cases]))
    return path


def _written(path, study, rows, provenance, config=None):
    run = RunDirectory(path)
    write_rows(path / RESULTS, rows)
    run.write_run(study, "quick", config or {"seed": 0}, provenance)
    return path


RUNS = {
    "digits": digits,
    "measure": measured,
    "paper study": study,
    "root causes": root_causes,
    "theorem 5.1": theorem,
    "mergeability": mergeability,
    "equations": equations,
    **{
        kind: partial(lambda kind, path: protocol_runs.make_run(kind, path, 2), kind)
        for kind in protocol_runs.KINDS
    },
}
"""What the report is of, to what writes its run directory."""
