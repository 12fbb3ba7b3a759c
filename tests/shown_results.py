"""One small result of every kind that a Python user holds, for tests of how results show themselves."""

from functools import cache
from itertools import combinations
from pathlib import Path

import torch
from mergeable_cases import planted
from support import family, labelled_batches, make_net
from tuned_tasks import TASKS, held_out, tuned

import mergescope as ms
from mergescope.merging.check import check
from mergescope.protocols import (
    ArithmeticSettings,
    DisentanglementSettings,
    SearchSettings,
    SoupSettings,
    StitchingSettings,
    Way,
    barrier,
    compare_methods,
    disentanglement,
    evaluate,
    line,
    search_coefficients,
    soups,
    stitch_addition,
    stitch_negation,
    subsets,
    task_addition,
    task_negation,
)
from mergescope.protocols.curvature import CurvatureSettings, curvature, eigenvalues
from mergescope.protocols.equations import EquationSettings, check_equations
from mergescope.protocols.family_curvature import FamilyCurvatureSettings, family_curvature
from mergescope.protocols.family_theorems import TheoremsSettings, check_family
from mergescope.protocols.measure import Settings, measure
from mergescope.protocols.mergeability import analyse
from mergescope.protocols.prediction import PredictionSettings, predict
from mergescope.protocols.premises import many_from_pairs
from mergescope.protocols.scores import scores_of
from mergescope.protocols.theorem import TheoremSettings, check_theorem
from mergescope.studies.arithmetic import Evaluated
from mergescope.studies.families import Base, FamilyDirectory, Member, Task
from mergescope.weights.geometry import geometry

QUIET = {"progress": False}
GRID = ArithmeticSettings((0, 0.5, 1), extend=False, **QUIET)


def smooth():
    """A network without kinks, whose losses have second derivatives."""
    net = make_net("vit")
    base, *models = family(net, names=("base", "a", "b"), scale=0.05)
    models = {model.name: model for model in models}
    held = {
        name: ms.HeldOut(name, labelled_batches(8, 4, seed=i), net, name) for i, name in enumerate(models)
    }
    return base, models, held


def data(seed=20):
    """Held-out data of two of the trained tasks; other samples for another seed."""
    held = held_out(seed, 40)
    return {task: held[task] for task in TASKS[:2]}


def few():
    """Two of the trained tasks: base, models and data."""
    _, base, models = tuned()
    return base, {task: models[task] for task in TASKS[:2]}, data()


def traced(labels=True):
    net, base, models = tuned()
    one, two = models["one"], models["two"]
    test = ms.ctl(one, two, reference=base)
    points = [*test.points, *line(one, two, [0.25]).values()]
    batches = [(x, y) if labels else x for x, y in data()["one"].batches]
    return test, ms.trace(points, batches, net, **QUIET)


def made_barrier():
    test, found = traced()
    (one, _), (two, _) = test.right
    return barrier(found, one, two, [0.25])


def evaluated():
    base, models, held = few()
    found = evaluate([base, *models.values()], held, **QUIET)
    lines = [scores_of("base", found, base, models), scores_of("single-task models", found, models, models)]
    return Evaluated(tuple(lines), False, ("something to know",), "MLP", found.forward_passes, found.seconds)


def directory():
    results = {"test": {"loss": 0.5, "accuracy": 0.75}}
    members = tuple(Member("full", task, "full", "key", "digest", results, 1.5, 12, 1234) for task in TASKS)
    tasks = {task: Task(f"data/{task}") for task in TASKS}
    return FamilyDirectory(Path("families/blobs"), Base("models/base", "digest"), tasks, members)


def checked():
    base, *models = family(make_net("mlp"))
    return check(models[:2], base)


def theorem():
    base, models, held = smooth()
    pairs = {f"{a} + {b}": (base, models[a], models[b]) for a, b in combinations(models, 2)}
    return check_theorem(pairs, held["a"], TheoremSettings(max_steps=4, **QUIET))


def made_curvature(kind):
    base, models, held = smooth()
    if kind == "eigenvalues":
        return eigenvalues(base, held["a"], CurvatureSettings(count=2, max_steps=6, **QUIET))
    if kind == "directions":
        return curvature(base, held["a"], {name: model - base for name, model in models.items()})
    return family_curvature(base, models, held, FamilyCurvatureSettings(max_steps=4, **QUIET))


def made_soup(size=None):
    net, _, models = tuned()
    parts = [{"one": ms.HeldOut("one", held_out(seed, 40)["one"].batches, net)} for seed in (20, 50)]
    if size is None:
        return soups(models, *parts, settings=SoupSettings(**QUIET))
    return subsets(models, parts[1], size, settings=SoupSettings(**QUIET))


def added(test=True):
    base, models, held = few()
    return task_addition(base, models, held, data(50) if test else None, GRID)


MAKERS = {
    "point": lambda: tuned()[1] + 0.5 * (tuned()[2]["one"] - tuned()[1]),
    "direction": lambda: tuned()[2]["one"] - tuned()[1],
    "checkpoint": lambda: tuned()[1],
    "geometry": lambda: geometry(tuned()[1], list(tuned()[2].values())),
    "geometry of one": lambda: geometry(tuned()[1], [tuned()[2]["one"]]),
    "check": checked,
    "trace": lambda: traced()[1],
    "trace without labels": lambda: traced(labels=False)[1],
    "linearity": lambda: ms.linearity(traced()[1], traced()[0]),
    "barrier": made_barrier,
    "measurement": lambda: measure(few()[0], few()[1], list(few()[2].values()), Settings(**QUIET)),
    "pair": lambda: made("measurement").pairs[0],
    "evaluation": lambda: evaluate([few()[0], *few()[1].values()], few()[2], **QUIET),
    "evaluated": evaluated,
    "addition": added,
    "addition without test data": lambda: added(test=False),
    "negation": lambda: task_negation(*few(), data(50), GRID),
    "comparison": lambda: compare_methods(*few(), data(50), [Way("linear"), Way("ties")], GRID),
    "coefficients": lambda: search_coefficients(*few(), data(50), SearchSettings(grid=(0, 0.5, 1), **QUIET)),
    "soups": made_soup,
    "subsets": lambda: made_soup(2),
    "stitched addition": lambda: stitch_addition(*few(), StitchingSettings(lams=(0.4,), **QUIET)),
    "stitched negation": lambda: stitch_negation(*few(), StitchingSettings(lams=(0.4,), **QUIET)),
    "disentanglement": lambda: disentanglement(*few(), DisentanglementSettings(points=3, reach=1, **QUIET)),
    "prediction": lambda: predict(*few(), PredictionSettings(measured=True, checked=(0.5,), **QUIET)),
    "equations": lambda: check_equations(*few(), EquationSettings(**QUIET)),
    "mergeability": lambda: analyse(planted(units=3)),
    "premises": lambda: many_from_pairs(few()[1], few()[2]["one"], **QUIET),
    "theorem": theorem,
    "theorems": lambda: check_family(*smooth(), TheoremsSettings(coefficients=(0.4,), **QUIET)),
    "eigenvalues": lambda: made_curvature("eigenvalues"),
    "directions": lambda: made_curvature("directions"),
    "family curvature": lambda: made_curvature("family"),
    "family": directory,
}


@cache
def made(name):
    """A result, made once."""
    torch.manual_seed(0)
    return MAKERS[name]()
