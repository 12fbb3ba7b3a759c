"""Finding coefficients of task vectors by a surrogate of the validation outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mergescope.errors import MergescopeError, did_you_mean
from mergescope.protocols.coefficients.objectives import OBJECTIVES, require_objective, utility
from mergescope.protocols.coefficients.result import CoefficientSearch, Method, SurrogateFit
from mergescope.protocols.coefficients.space import CoefficientSpace
from mergescope.protocols.coefficients.surrogate import Surrogate, design
from mergescope.protocols.coefficients.values import DECIMALS, CoefficientValues
from mergescope.protocols.evaluation import Evaluation, evaluate
from mergescope.protocols.linear_model import in_linear_model, require_executor
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.scores import over_tasks
from mergescope.protocols.search import GRID, choose
from mergescope.protocols.subset import Subset
from mergescope.protocols.which_data import alike, fingerprint_of, require_unseen
from mergescope.readings import NextTokenLoss, Summary
from mergescope.readings.logits import MEMORY
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

Model = Point | TensorSource


@dataclass(frozen=True)
class SearchSettings:
    """How coefficients are searched.

    Attributes:
        objective: ``accuracy``, ``loss``, or without labels ``entropy`` or ``agreement``; ``auto`` is accuracy,
            and loss for texts. Entropy falls with large coefficients whether predictions are right or not: use
            it with an ``upper`` end that is known to be good, or use agreement.
        groups: groups of layers with coefficients of their own, from the input's side to the output's.
        grid: the single coefficients that the search must beat.
        upper: largest coefficient; the grid's largest by default. The smallest is 0.
        order: of the surrogate: 1 or 2; by default 1 in linearised networks, where it is exact, else 2.
        points: how many points the surrogate's design may have, beside the grid's.
        held_out: points that the surrogate is not fitted on, to tell its error by.
        rounds: how often the best points that the surrogate sees are evaluated and it is fitted again.
        pulls: penalties on the mean squared distance from the grid's answer; each gives one candidate a round.
        confirm: share of each task's samples that are not optimised on, and decide against the grid.
        confidence: of the interval of the gain.
        trust: least correlation of what the surrogate says of held-out points with what is true of them.
        tolerance: a surrogate whose mean error on them is below this is trusted in any case.
        random: compare with random search at equal passes, which makes as many passes again.
        samples: of each task's validation data at most, drawn by chance; None for all.
        memory: bytes that logits may take: points x samples x classes x 4, over all tasks.
        linearized: as for [`Settings`][mergescope.protocols.measure.Settings].
        executor: of the passes.
        device: of the streamed executor.
        seed: of designs, halves, draws and intervals.
        progress: show bars on a terminal.
    """

    objective: str = "auto"
    groups: int = 1
    grid: tuple[float, ...] = GRID
    upper: float | None = None
    order: int | None = None
    points: int = 96
    held_out: int = 8
    rounds: int = 2
    pulls: tuple[float, ...] = (1.0, 0.1, 0.01)
    confirm: float = 0.5
    confidence: float = 0.95
    trust: float = 0.5
    tolerance: float = 0.005
    random: bool = False
    samples: int | None = None
    memory: int = MEMORY
    linearized: bool | None = None
    executor: str = "auto"
    device: str = "cpu"
    seed: int = 0
    progress: bool = True


def search_coefficients(
    base: Model,
    models: Mapping[str, Model],
    validation: Mapping[str, HeldOut],
    test: Mapping[str, HeldOut] | None = None,
    settings: SearchSettings | None = None,
) -> CoefficientSearch:
    """Find coefficients ``c_k`` (or ``c_kg`` for groups of layers) of ``th_0 + sum_k c_k tau_k``.

    1. The grid of one coefficient for all tasks, the base, single task vectors and pairs of them are evaluated.
    2. A [`Surrogate`][mergescope.protocols.coefficients.surrogate.Surrogate] of all outputs is fitted, and its
       error measured on random points that it has not seen. If it is too large, the grid's answer is kept.
    3. Mean normalised soft accuracy (or what the objective is) is maximised over all coefficients at once, on one
       half of the samples, with penalties on the distance from the grid's answer. The best points are evaluated.
    4. The best of those is compared with the grid's answer on the other half, which nothing was optimised on. Only
       if the gain's interval is above 0 does it replace the grid's answer.

    Test data are passed after that, through what was found.

    Args:
        base: the pretrained model.
        models: task to the model fine-tuned on it.
        validation: task to held-out data; the same tasks.
        test: task to test data, for reporting alone.
        settings: how to search.

    Returns:
        Coefficients, the point, why they were kept, and what other ways found at which cost. Nothing is random but
        by the seed.

    Raises:
        MergescopeError: tasks and data don't fit, test data are to choose as well, or a setting is unusable.
        PointError: a single-task model gets nothing right.
        DataError: labels are missing, or logits take more memory than allowed.

    Example:
        >>> import mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        >>> data = {name: HeldOut(name, [(x, (x[:, 0] > 0).long())], net) for name in "ab"}
        >>> found = search_coefficients(base, models, data, settings=SearchSettings(objective="loss", progress=False))
        >>> found.kept, list(found.coefficients) == [("a", "1/1"), ("b", "1/1")]
        ('grid', True)
    """  # noqa: DOC502 (raised by what this calls)
    started = time.perf_counter()
    s = settings or SearchSettings()
    space = CoefficientSpace(
        Point.of(base), {task: Point.of(model) for task, model in models.items()}, s.groups
    )
    objective = _checked(space, validation, test, s)
    linear, notes = in_linear_model(space.base, space.models, s.linearized)
    if linear:
        require_executor(s.executor)
    held = {task: _some(validation[task], s) for task in models}
    values = CoefficientValues(
        space, held, objective, around=space.base if linear else None, executor=s.executor, device=s.device,
        memory=s.memory, progress=s.progress,
    )  # fmt: skip
    upper = s.upper if s.upper is not None else max(s.grid)
    order = s.order or (1 if linear else 2)

    # The base first: what has no value there has none anywhere.
    first = values.evaluate([
        space.uniform(0),
        *(space.single(task) for task in models),
        *(space.uniform(lam) for lam in s.grid),
    ])
    on_grid = dict(zip(s.grid, first[1 + len(models) :], strict=True))
    grid = choose({lam: values.score(number) for lam, number in on_grid.items()})
    spent = len(values)
    # Farther along the line than twice the answer, outputs are no polynomial any more.
    near = [number for lam, number in on_grid.items() if order == 2 and lam <= 2 * grid.lam]
    fitted = list(dict.fromkeys([
        *values.evaluate(design(len(space.axes), order, s.points, seed=s.seed)), *near
    ]))  # fmt: skip
    draws = _draws(len(space.axes), min(2 * grid.lam, upper) or upper, s.seed)
    unseen = values.evaluate(next(draws) for _ in range(s.held_out))
    fit = _assess(values, fitted, unseen, order, s)
    parts = _halves(values, s)
    start = on_grid[grid.lam]
    candidates: list[int] = []
    if fit.trusted:
        for _ in range(s.rounds):
            surrogate = Surrogate(values.positions[fitted], order)
            new = values.evaluate(
                _optimise(surrogate, values, fitted, parts, values.positions[start], upper, s)
            )
            candidates += new
            fitted = list(dict.fromkeys([*fitted, *new]))
    chosen, gain, reason = _decide(values, candidates, start, parts, fit, s)
    passes = len(values)
    found = {"base": (first[0], 1), f"grid ({grid.lam:g})": (start, spent)}
    if candidates:
        best = max(candidates, key=lambda number: values.score(number, parts[0]))
        found["surrogate"] = (best, passes)
    if s.random:
        found["random"] = (_random(values, draws, unseen, passes - spent, start), passes)
    tested = _tested(space, values, {name: number for name, (number, _) in found.items()}, test, linear, s)
    methods = tuple(
        Method(name, _named(space, values.positions[number]), values.score(number) * OBJECTIVES[objective][1], cost,
               tested.get(name))
        for name, (number, cost) in found.items()
    )  # fmt: skip
    return CoefficientSearch(
        "grid" if chosen == start else "surrogate", reason, _named(space, values.positions[chosen]),
        space.point(values.positions[chosen]), objective, OBJECTIVES[objective][0], grid, fit, gain, methods,
        "" if test is None else _test_measure(test), values.forward_passes, time.perf_counter() - started, tuple(notes),
        type(next(iter(validation.values())).model).__name__, linear,
    )  # fmt: skip


def planned_points(tasks: int, groups: int, settings: SearchSettings) -> int:
    """How many points a search passes each task's validation data through, at most.

    Args:
        tasks: how many tasks.
        groups: how many groups of layers.
        settings: of the search.

    Returns:
        Their number: those of the grid and the models, the surrogate's design, those that it is judged by, and the
        candidates; with random search, as many again. In a linearised network most cost no forward pass.

    Example:
        >>> planned_points(6, 1, SearchSettings())
        62
    """
    s, axes = settings, tasks * groups
    first = {(0.0,), *((round(lam, DECIMALS),) for lam in s.grid)}
    known = len(first) + tasks
    drawn = len(design(axes, s.order or 2, s.points, seed=s.seed)) - 1
    if groups == 1:
        drawn -= tasks if drawn >= 2 * axes or s.order == 1 else 0  # the models are in the design
    sought = drawn + s.held_out + s.rounds * len(s.pulls)
    return known + sought + (max(sought - s.held_out, 0) if s.random else 0)


def _checked(
    space: CoefficientSpace, validation: Mapping[str, HeldOut], test: Mapping[str, HeldOut] | None, s: SearchSettings
) -> str:  # fmt: skip
    if not space.models:
        raise MergescopeError(
            "There are no models to find coefficients of. Give at least one fine-tuned model."
        )
    for kind, data in (("validation", validation), ("test", test)):
        wrong = sorted(set(space.models) ^ set(data)) if data is not None else []
        if wrong:
            raise MergescopeError(
                f"Models and {kind} data must be of the same tasks; {', '.join(wrong)} has one of both only."
                f"{did_you_mean(wrong[0], {*space.models} - {wrong[0]})}"
            )
    require_unseen(validation, test, "each coefficient")
    if (
        not s.grid
        or min(s.grid) < 0
        or not 0 < s.confirm < 1
        or s.held_out < 3
        or not s.pulls
        or s.rounds < 1
    ):
        raise MergescopeError(
            "A search takes a grid of coefficients from 0 on, a share to confirm on between 0 and 1, at least 3 "
            "held-out points, 1 round and 1 pull."
        )
    if s.upper is not None and s.upper <= 0 or not max(s.grid):
        raise MergescopeError("The largest coefficient must be above 0.")
    objective = s.objective
    if objective == "auto":
        texts = [isinstance(held.reading(), NextTokenLoss) for held in validation.values()]
        objective = "loss" if any(texts) else "accuracy"
    require_objective(objective)
    return objective


def _some(held: HeldOut, s: SearchSettings) -> HeldOut:
    if s.samples is None:
        return held
    few = Subset(held.batches, s.samples, s.seed)
    return HeldOut(held.name, few, held.model, held.owner, held.fixed, held.logits, held.classes)


def _draws(axes: int, upper: float, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    while True:
        yield rng.uniform(0, upper, axes)


def _assess(
    values: CoefficientValues, fitted: list[int], unseen: list[int], order: int, s: SearchSettings
) -> SurrogateFit:
    surrogate = Surrogate(values.positions[fitted], order)

    def predicted(number: int) -> float:
        found = [
            values.worth(
                task, surrogate.predict(values.positions[number], values.values(task)[fitted])
            ).mean()
            for task in values.held
        ]
        return float(np.mean(found))

    said = np.array([predicted(number) for number in unseen])
    real = np.array([values.score(number) for number in unseen])
    error = float(np.abs(said - real).mean())
    varies = said.std() > 0 and real.std() > 0
    correlation = float(np.corrcoef(said, real)[0, 1]) if varies else float("nan")
    trusted = correlation >= s.trust or error <= s.tolerance
    return SurrogateFit(
        order, len(fitted), surrogate.terms, len(unseen), correlation, error, float(real.std()), trusted
    )


def _halves(
    values: CoefficientValues, s: SearchSettings
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    optimised, confirming = {}, {}
    # Tasks with the same samples are cut alike: else one's half would be seen in the other's.
    for task, first in zip(values.held, _alike(values), strict=True):
        count = values.samples(task)
        order = np.random.default_rng([s.seed, 2, first]).permutation(count)
        cut = round(count * s.confirm)
        if not 0 < cut < count:
            raise MergescopeError(
                f"{task}: {count} samples can't be split into those that are optimised on and those that confirm. Give "
                "more validation samples."
            )
        confirming[task], optimised[task] = np.sort(order[:cut]), np.sort(order[cut:])
    return optimised, confirming


def _alike(values: CoefficientValues) -> list[int]:
    return alike(fingerprint_of(held.batches) for held in values.held.values())


def _optimise(
    surrogate: Surrogate,
    values: CoefficientValues,
    fitted: list[int],
    parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
    centre: np.ndarray,
    upper: float,
    s: SearchSettings,
    steps: int = 120,
) -> list[np.ndarray]:
    data = []
    for task in values.held:
        rows = torch.from_numpy(parts[0][task])
        labels = values.labels(task)
        data.append((
            values.values(task)[fitted][:, rows], None if labels is None else labels[rows],
            values.own(task, soft=True),
        ))  # fmt: skip
    middle = torch.from_numpy(centre)
    at, out = middle.clone(), []
    for pull in sorted(s.pulls, reverse=True):  # each starts where the stronger one ended
        at = at.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([at], lr=0.02 * upper)
        best, lowest = at.detach().clone(), float("inf")
        for _ in range(steps):
            worth = torch.stack([
                utility(values.objective, surrogate.predict(at, logits), labels, soft=True).mean() / own
                for logits, labels, own in data
            ]).mean()
            cost = pull * ((at - middle) ** 2).mean() - worth
            if cost.item() < lowest:
                best, lowest = at.detach().clone(), cost.item()
            optimiser.zero_grad()
            cost.backward()
            optimiser.step()
            with torch.no_grad():
                at.clamp_(0, upper)
        at = best
        out.append(best.numpy())
    return out


def _decide(
    values: CoefficientValues,
    candidates: list[int],
    start: int,
    parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
    fit: SurrogateFit,
    s: SearchSettings,
) -> tuple[int, Summary | None, str]:
    if not fit.trusted:
        return (
            start,
            None,
            f"what the surrogate says of points that it was not fitted on is not to be trusted: {fit}",
        )
    best = max(candidates, key=lambda number: values.score(number, parts[0]))
    if best == start or values.score(best, parts[0]) <= values.score(start, parts[0]):
        return (
            start,
            None,
            "no candidate is better than the grid's answer on the samples that were optimised on",
        )
    differences = [
        (values.utilities(task, best) - values.utilities(task, start))[parts[1][task]] for task in values.held
    ]
    gain = over_tasks(differences, alike=_alike(values), confidence=s.confidence, seed=s.seed)
    told = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] on samples that were not optimised on"
    if gain.low > 0:
        return best, gain, f"it gains {told}"
    return start, gain, f"the surrogate's gain is {told}, which is no clear gain"


def _random(
    values: CoefficientValues, draws: Iterator[np.ndarray], unseen: list[int], count: int, start: int
) -> int:
    more = values.evaluate(next(draws) for _ in range(max(count - len(unseen), 0)))
    return max([start, *unseen[:count], *more], key=values.score)


def _named(space: CoefficientSpace, position: np.ndarray) -> dict[tuple[str, str], float]:
    return dict(zip(space.axes, map(float, position), strict=True))


def _test_measure(test: Mapping[str, HeldOut]) -> str:
    return (
        "loss"
        if any(isinstance(held.reading(), NextTokenLoss) for held in test.values())
        else "normalised accuracy"
    )


def _tested(
    space: CoefficientSpace,
    values: CoefficientValues,
    numbers: Mapping[str, int],
    test: Mapping[str, HeldOut] | None,
    linear: bool,
    s: SearchSettings,
) -> dict[str, Summary]:
    if test is None:
        return {}
    points = {name: space.point(values.positions[number]) for name, number in numbers.items()}
    found = evaluate(
        {task: [*points.values(), space.models[task]] for task in test}, test, around=space.base if linear else None,
        executor=s.executor, device=s.device, progress=s.progress,
    )  # fmt: skip
    return {name: _test_score(found, point, space, _test_measure(test), s) for name, point in points.items()}


def _test_score(
    found: Evaluation, point: Point, space: CoefficientSpace, measure: str, s: SearchSettings
) -> Summary:
    shared = found.alike_of(found.tasks)
    if measure == "loss":
        return over_tasks([found[task].losses_of(point) for task in found.tasks], alike=shared, seed=s.seed)
    own = [found[task].correct_of(space.models[task]) for task in found.tasks]
    return over_tasks([found[task].correct_of(point) for task in found.tasks], own, alike=shared, seed=s.seed)
