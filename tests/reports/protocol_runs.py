"""Run directories of every protocol on a tiny network, and what their pages show of them."""

from dataclasses import asdict

import torch
from reports.looking import NASTY
from support import family, labelled_batches

import mergescope as ms
from mergescope.plain import plain
from mergescope.protocols.arithmetic import task_addition
from mergescope.protocols.coefficients import SearchSettings, search_coefficients
from mergescope.protocols.compare import Way, compare_methods
from mergescope.protocols.disentanglement import DisentanglementSettings, disentanglement
from mergescope.protocols.family_curvature import FamilyCurvatureSettings, family_curvature
from mergescope.protocols.family_theorems import TheoremsSettings, check_family
from mergescope.protocols.forgetting import task_negation
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.prediction import PredictionSettings, predict
from mergescope.protocols.scores import scores_of
from mergescope.protocols.soups import SoupSettings, soups, subsets
from mergescope.protocols.stitching import StitchingSettings, stitch_addition, stitch_negation
from mergescope.protocols.tuning import ArithmeticSettings
from mergescope.reports.html import read_about
from mergescope.reports.protocol_page import PAGES
from mergescope.reports.protocol_view import Stored, load_stored
from mergescope.studies.arithmetic import Evaluated
from mergescope.studies.disentangled import GRIDS
from mergescope.studies.predicted import SURFACES
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows, write_table

NAMES = ("one", "a task with quite a long name", NASTY, "_hidden $x_0$", "five", "six", "seven", "eight")
LINE = ArithmeticSettings((0, 0.25, 0.5, 1), limit=1.5, progress=False)


def given(count, samples=24):
    torch.manual_seed(0)
    net = ms.ViT(image=8, patch=4, width=16, depth=3, heads=2, classes=3).eval()
    base, *models = family(net, names=("base", *NAMES[:count]), scale=0.2)
    models = dict(zip(NAMES, models, strict=False))
    held = [
        {
            name: HeldOut(name, labelled_batches(samples, 12, seed=10 * part + i), net, name)
            for i, name in enumerate(models)
        }
        for part in range(2)
    ]
    return base, models, *held


def _evaluated(base, models, validation, test):
    points = {"base": base, **models, "average": sum(models.values(), 0 * base) / len(models)}
    found = LINE.run(dict.fromkeys(test, list(points.values())), test, None)
    lines = [scores_of(name, found, point, models) for name, point in points.items()]
    return Evaluated(tuple(lines), False, ("of a test",), "ViT", found.forward_passes, 0.5), LINE


def _coefficients(groups):
    def found(base, models, validation, test):
        settings = SearchSettings(
            "loss", groups, (0, 0.25, 0.5), points=20, held_out=4, rounds=1, random=True, tolerance=9.0, progress=False,
        )  # fmt: skip
        return search_coefficients(base, models, validation, test, settings), settings

    return found


def _disentangled(base, models, validation, test):
    settings = DisentanglementSettings(points=4, reach=2.0, progress=False)
    return disentanglement(base, models, test, settings), settings


def _soups(base, models, validation, test):
    settings = SoupSettings(progress=False)
    return soups(models, validation, test, base=base, settings=settings), settings


def _subsets(base, models, validation, test):
    settings = SoupSettings(progress=False)
    return subsets(models, test, 2, base=base, settings=settings), settings


def _stitched(protocol, lams):
    def found(base, models, validation, test):
        settings = StitchingSettings(lams=lams, progress=False)
        run = stitch_addition if protocol == "addition" else stitch_negation
        return run(base, models, test, settings), settings

    return found


def _predicted(measured):
    def found(base, models, validation, test):
        settings = PredictionSettings(measured=measured, square=(0.0, 0.5, 1.0), progress=False)
        return predict(base, models, test, settings), settings

    return found


def _curved(base, models, validation, test):
    names = list(models)
    pairs = tuple(zip(names, names[1:] + names[:1], strict=True))
    settings = FamilyCurvatureSettings(pairs=pairs, tolerance=0.3, max_steps=9, progress=False)
    return family_curvature(base, models, test, settings), settings


def _checked(base, models, validation, test):
    settings = TheoremsSettings(progress=False)
    return check_family(base, models, test, settings), settings


def _methods(*given):
    ways = [Way("linear"), Way("ties"), Way("task_arithmetic")]
    return compare_methods(*given, ways, LINE), LINE


KINDS = {
    "evaluation": ("evaluate", _evaluated),
    "addition": ("search", lambda *given: (task_addition(*given, LINE), LINE)),
    "negation": ("search", lambda *given: (task_negation(*given, LINE), LINE)),
    "methods": ("search", _methods),
    "coefficients": ("search", _coefficients(1)),
    "groups": ("search", _coefficients(2)),
    "soups": ("soup", _soups),
    "subsets": ("soup", _subsets),
    "disentanglement": ("disentangle", _disentangled),
    "stitched addition": ("stitch", _stitched("addition", (0.2, 0.4))),
    "stitched negation": ("stitch", _stitched("negation", (0.0, 0.5))),
    "prediction": ("predict", _predicted(False)),
    "measured prediction": ("predict", _predicted(True)),
    "curvature": ("curvature", _curved),
    "theorems": ("theorems", _checked),
}
"""What is run, to what ``run.yaml`` calls it and the run."""


def make_run(kind, path, count=3):
    """Run a protocol and write its directory as its command does."""
    return write_run(*KINDS[kind], path, count)


def write_run(study, run, path, count):
    """The directory of a run: what ``run.yaml`` calls it, and what runs."""
    base, models, validation, test = given(count)
    result, settings = run(base, models, validation, test)
    out = RunDirectory(path)
    rows = [Row(**{"network": "ViT", "regime": "given", **row}) for row in result.rows()]
    write_rows(path / RESULTS, rows)
    if study == "disentangle":
        cells = [cell for grid in result.grids for cell in grid.cells()]
        write_table(path / GRIDS, {name: [cell[name] for cell in cells] for name in cells[0]})
    if study == "predict":
        cells = [cell for square in result.surfaces for cell in square.cells()]
        write_table(path / SURFACES, {name: [cell[name] for cell in cells] for name in cells[0]})
    part = {
        "models": {name: {"from": f"somewhere/{name}"} for name in ("base", *models)},
        "data": {name: {"samples": 24, "fingerprint": "0" * 40} for name in models},
    }
    said = {name: value for name, value in asdict(settings).items() if name != "progress"}
    about = {"test": part, "cost": {"forward_passes": 7, "seconds": 1.5}, "notes": list(result.notes)}
    about |= {"says": str(result), "linearized": False}
    if study == "stitch":
        about["protocol"] = result.protocol
    out.write_run(study, "", plain({"settings": said, "test": {"base": "base"}}), plain(about))
    return path


def read(path, change=lambda rows: rows):
    """A run directory as a page reads it, with other rows."""
    stored = load_stored(path, read_about(path))
    return Stored(path, change(list(stored.rows)), stored.settings, stored.provenance)


def shown(path, change=lambda rows: rows):
    """What the page of a run directory shows."""
    stored = read(path, change)
    kinds = {row.kind for row in stored.rows}
    pages = PAGES[read_about(path)["study"]]
    return next(maker for kind, maker in pages.items() if kind in kinds)(stored)
