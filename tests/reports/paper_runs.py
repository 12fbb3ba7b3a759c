"""Run directories of the papers' studies, of steps on a tiny network."""

import json

import torch
from support import family, labelled_batches

import mergescope as ms
from mergescope.protocols.equations import EquationSettings, check_equations
from mergescope.protocols.measure import HeldOut
from mergescope.studies.claims import Claim
from mergescope.studies.papers.spec import paper_studies
from mergescope.studies.rundir import DISTRIBUTIONS, RESULTS, Row, RunDirectory, write_rows, write_table

LONG = ("one", "a task with quite a long name", "third", "_hidden $x_0$")


def equations_run(path, seed=0, count=3, kinds=("eq2", "eq3"), regime="full"):
    """What ``mergescope equations`` leaves of a tiny network."""
    torch.manual_seed(0)
    net = ms.ViT(image=8, patch=4, width=16, depth=3, heads=2, classes=3).eval()
    base, *tuned = family(net, names=("base", *LONG[:count]), scale=0.1, seed=seed)
    models = dict(zip(LONG, tuned, strict=False))
    data = {name: HeldOut(name, labelled_batches(10, 5, seed=i), net, name) for i, name in enumerate(models)}
    found = check_equations(base, models, data, EquationSettings(kinds, progress=False))
    path.mkdir(parents=True, exist_ok=True)
    write_rows(path / RESULTS, [Row(network="ViT", regime=regime, **row) for row in found.rows()])
    lines = found.distributions()
    write_table(path / DISTRIBUTIONS, {name: [line[name] for line in lines] for name in lines[0]})
    return found


def study_run(path, study, ran, draws):
    """The run directory of a study whose steps are there."""
    run = RunDirectory(path)
    write_rows(path / RESULTS, [Claim("it holds", 1.0, 0.5, 1.5, 3, "CTL Fig. 7").row("net")])
    steps = [
        {"number": r.number, "regime": r.regime, "seed": r.seed, "run": str(r.folder), "figures": [], "seconds": 1.0,
         "command": "mergescope equations"}
        for r in ran
    ]  # fmt: skip
    provenance = {
        "data": {"source": "images"},
        "steps": steps,
        "here": ["1"],
        "cost": "1 command",
        "says": "",
        "family": None,
        "root": None,
    }
    config = json.loads(next(s for s in paper_studies() if s.name == study).model_dump_json()) | {
        "figures": draws
    }
    run.write_run(study, "cpu", config, provenance)
    return path


def geometry_run(path, cosines, still=()):
    """What ``mergescope geometry`` leaves: cosines of pairs; models that are ``still`` equal the base."""
    path.mkdir(parents=True)
    lines = [
        {"scope": scope, "name": "", "measure": "cos", "model": a, "other": b, "value": value, "entries": 5}
        for (a, b), value in cosines.items()
        for scope in ("model", "layer")
    ]
    lines += [
        {
            "scope": scope,
            "name": "",
            "measure": "unchanged",
            "model": name,
            "other": "",
            "value": value,
            "entries": 5,
        }
        for name in {name for pair in cosines for name in pair}
        for scope, value in (("model", float(name in still)), ("layer", 1.0))
    ]
    write_table(path / "geometry.parquet", {name: [line[name] for line in lines] for name in lines[0]})
    return path
