"""Theorem 5.1 of CTL, checked as in its C.2: is the gap bounded, and explained, by curvature times distance?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mergescope.errors import MergescopeError, PointError, did_you_mean
from mergescope.models.batchnorm import has_running_statistics
from mergescope.progress import progress_bar
from mergescope.protocols.curvature import CurvatureSettings, Eigenvalues, curvature, eigenvalues
from mergescope.protocols.curvature.lanczos import STEPS, TOLERANCE, require_search
from mergescope.protocols.evaluation import evaluate
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.theorem_result import TheoremCheck, TheoremPair, fitted
from mergescope.readings import bootstrap
from mergescope.training.hessian import require_batchnorm
from mergescope.weights import Point, exact
from mergescope.weights.point import Number, TensorSource

Model = Point | TensorSource
Triple = tuple[Point, Point, Point]

PLACES = {
    "midpoint": "each pair's merged point",
    "base": "each pair's pretrained checkpoint",
    "line": "the largest of several points between the two models",
}
"""Where the Hessian's largest eigenvalue is taken."""

TERMS = ("base", "midpoint")
"""Where the exact second-order term may be taken."""


@dataclass(frozen=True)
class TheoremSettings:
    """The conventions of a check, which the paper leaves open.

    Attributes:
        alpha: weight of the first model, strictly between 0 and 1; C.2 has 0.5.
        at: where the largest eigenvalue is taken, one of [`PLACES`][].
        line: with ``at="line"``, the weights of the first model at which it is taken.
        end: ``largest`` for the largest eigenvalue, ``magnitude`` for the operator norm, which bounds gaps above the
            chord too.
        term: where the exact term is taken: ``base`` (what is known before a merge) or ``midpoint``.
        tolerance: of eigenvalues, relative.
        max_steps: of eigenvalues.
        batchnorm: ``eval`` or ``batch``, of the Hessian.
        resamples: of the bootstrap.
        seed: of eigenvalues and the bootstrap.
        progress: show bars on a terminal.
    """

    alpha: Number = 0.5
    at: str = "midpoint"
    line: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    end: str = "largest"
    term: str = "base"
    tolerance: float = TOLERANCE
    max_steps: int = STEPS
    batchnorm: str = "eval"
    resamples: int = 1000
    seed: int = 0
    progress: bool = True

    @property
    def curvature(self) -> CurvatureSettings:
        """The part that is about curvature; without bars."""
        return CurvatureSettings(
            1, self.end, self.tolerance, self.max_steps, self.batchnorm, self.seed, False
        )

    @property
    def conventions(self) -> tuple[str, ...]:
        """What was chosen, in words."""
        ends = {"largest": "largest eigenvalue", "magnitude": "largest eigenvalue in absolute value"}
        line = f" (alpha {', '.join(f'{value:g}' for value in self.line)})" if self.at == "line" else ""
        return (
            f"f is the mean loss; gap = f(a th_i + (1 - a) th_j) - a f(th_i) - (1 - a) f(th_j) at a = "
            f"{float(self.alpha):g}",
            f"lambda is the {ends[self.end]} of the Hessian, at {PLACES[self.at]}{line}",
            "distances and Hessians are over the weights that points change: no fixed head, no running statistics",
            f"the exact term is -a (1 - a) / 2 d^T H d with d = th_i - th_j, H at {PLACES[self.term]}",
            f"BatchNorm that keeps running statistics is in mode {self.batchnorm}",
        )


def check_theorem(
    pairs: Mapping[str, tuple[Model, Model, Model]],
    held: HeldOut,
    settings: TheoremSettings | None = None,
    known: Mapping[Point, Eigenvalues] | None = None,
) -> TheoremCheck:
    """Check Theorem 5.1 on pairs of models, and what explains their gaps (CTL C.2).

    ``|f(a th_i + (1-a) th_j) - a f(th_i) - (1-a) f(th_j)| <= a(1-a)/2 lambda_max |th_i - th_j|^2 + E``, where f is the
    mean loss and E of third order. The gaps are regressed on the product, on each of its factors, and on the exact
    second-order term ``-a(1-a)/2 d^T H d`` that the bound replaces by its largest value.

    Where the network has kinks (ReLU), the loss is smooth in pieces only: kinks that lie between two models add to
    their gap, also at second order, and no Hessian holds that part.

    Args:
        pairs: name to (base, th_i, th_j). Several bases make lambda vary with ``at="base"``, too.
        held: the data that the loss is the mean over, with the network.
        settings: the conventions.
        known: points to eigenvalues that were measured already, of these data and with these settings.

    Returns:
        Every pair's figures, the regressions, and the conventions.

    Raises:
        PointError: there is no pair, or one of a model with itself.
        MergescopeError: a setting makes no sense, or the network has no Hessian.
        DataError: data are not the same on every pass, or have no labels.

    Example:
        >>> import torch, mergescope as ms
        >>> _ = torch.manual_seed(0)
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> a, b, c = (ms.random_neighbour(base, base * 1.1, seed=seed) for seed in range(3))
        >>> held = HeldOut("noise", [(torch.randn(6, 4), torch.tensor([0, 1] * 3))], net)
        >>> found = check_theorem({"a, b": (base, a, b), "a, c": (base, a, c), "b, c": (base, b, c)}, held)
        >>> len(found.pairs), found["a, b"].holds, found.regressions["|gap|", "product"].n
        (3, True, 3)
    """  # noqa: DOC502 (raised by what this calls)
    s = settings or TheoremSettings()
    require_settings(s)
    require_one_function(held, s.batchnorm)
    points = {name: (Point.of(base), Point.of(a), Point.of(b)) for name, (base, a, b) in pairs.items()}
    same = [name for name, (_, a, b) in points.items() if a == b]
    if same or not points:
        what = f"{same[0]} is a model with itself" if same else "there is none"
        raise PointError(
            f"Theorem 5.1 is checked on pairs of models, and {what}. Give name: (base, th_i, th_j)."
        )
    a_share = exact(s.alpha)
    middles = {name: a_share * a + (1 - a_share) * b for name, (_, a, b) in points.items()}
    models = [point for name, (_, a, b) in points.items() for point in (a, b, middles[name])]
    said = evaluate(models, {held.name: held}, progress=s.progress)[held.name]
    share, scale = float(a_share), float(a_share * (1 - a_share)) / 2
    terms, tops = _terms(points, middles, held, s), _largest(points, held, s, known or {})
    found = []
    for name, (_, a, b) in points.items():
        each = said.losses_of(middles[name]) - share * said.losses_of(a) - (1 - share) * said.losses_of(b)
        gap = bootstrap(each[:, None], resamples=s.resamples, seed=s.seed)[0]
        top, (along, distance) = tops[name], terms[name]
        found.append(TheoremPair(
            name, gap, (said.loss(a), said.loss(b)), top.value, top.found.residuals[0], top.found.converged, distance,
            -scale * along, scale * top.value * distance,
        ))  # fmt: skip
    regressions = fitted(found, resamples=s.resamples, seed=s.seed)
    return TheoremCheck(
        tuple(found), regressions, held.name, said.samples, s.conventions, _notes(found, points, held, s)
    )


def require_settings(s: TheoremSettings) -> None:
    """Refuse conventions that make no sense.

    Args:
        s: the conventions.

    Raises:
        MergescopeError: one does not.
    """
    for name, value, known in (("at", s.at, PLACES), ("term", s.term, TERMS)):
        if value not in known:
            raise MergescopeError(
                f"{name} can't be {value!r}.{did_you_mean(value, known)} Choose one of {', '.join(known)}."
            )
    require_search(1, s.end, s.tolerance, s.max_steps)
    require_batchnorm(s.batchnorm)
    if s.end == "smallest":
        raise MergescopeError("The theorem's lambda is an upper end. Choose end 'largest' or 'magnitude'.")
    if not 0 < s.alpha < 1:
        raise MergescopeError(f"alpha = {s.alpha} is not strictly between 0 and 1, where there is a gap.")
    if s.at == "line" and not s.line:
        raise MergescopeError(
            "at='line' takes the largest eigenvalue of several points. Name their alphas: line."
        )


def require_one_function(held: HeldOut, batchnorm: str) -> None:
    """Refuse to bound losses of one function by the curvature of another.

    Args:
        held: with the network.
        batchnorm: mode of the Hessian's BatchNorm.

    Raises:
        MergescopeError: BatchNorm would use its running statistics for the losses, and each batch's for the Hessian.
    """
    if batchnorm == "batch" and has_running_statistics(held.model):
        raise MergescopeError(
            f"{held.name}: losses are those of BatchNorm's running statistics, and batchnorm='batch' gives the "
            "curvature of another function, so Theorem 5.1 says nothing. Choose eval (--batchnorm eval), or train "
            "networks whose BatchNorm keeps no statistics."
        )


def places_of(triple: Triple, s: TheoremSettings) -> list[Point]:
    """Where the largest eigenvalue of a pair is taken.

    Args:
        triple: base, th_i and th_j.
        s: the conventions.

    Returns:
        The points.
    """
    base, a, b = triple
    if s.at == "base":
        return [base]
    return [exact(share) * a + (1 - exact(share)) * b for share in (s.line if s.at == "line" else (s.alpha,))]


def _largest(
    points: Mapping[str, Triple], held: HeldOut, s: TheoremSettings, known: Mapping[Point, Eigenvalues]
) -> dict[str, Eigenvalues]:
    places = {name: places_of(triple, s) for name, triple in points.items()}
    distinct = dict.fromkeys(point for where in places.values() for point in where)
    found = dict(known)
    wanted = [point for point in distinct if point not in found]
    with progress_bar("eigenvalues", len(wanted), s.progress and bool(wanted)) as advance:
        for point in wanted:
            found[point] = eigenvalues(point, held, s.curvature)
            advance(1)

    def size(top: Eigenvalues) -> float:
        return abs(top.value) if s.end == "magnitude" else top.value

    tops = {name: max((found[point] for point in where), key=size) for name, where in places.items()}
    if s.end == "largest":
        return tops
    return {name: replace(top, found=replace(top.found, values=(size(top),))) for name, top in tops.items()}


def _terms(
    points: Mapping[str, Triple], middles: Mapping[str, Point], held: HeldOut, s: TheoremSettings
) -> dict[str, tuple[float, float]]:
    """``d^T H d`` and ``|d|^2`` of every pair: at a base, all of its pairs in one pass.

    Returns:
        Pair to both.
    """
    groups: dict[Point, list[str]] = {}
    for name, (base, _, _) in points.items():
        groups.setdefault(base if s.term == "base" else middles[name], []).append(name)
    found: dict[str, tuple[float, float]] = {}
    with progress_bar("second-order terms", len(groups), s.progress) as advance:
        for centre, names in groups.items():
            ends = {name: points[name][1:] for name in names}
            models = dict.fromkeys(model for pair in ends.values() for model in pair)
            if len(models) < len(names):  # task vectors are fewer, and their differences follow
                labels = {model: str(number) for number, model in enumerate(models)}
                directions = {label: model - centre for model, label in labels.items()}
                sums = {name: {labels[a]: 1.0, labels[b]: -1.0} for name, (a, b) in ends.items()}
            else:
                directions = {name: a - b for name, (a, b) in ends.items()}
                sums = {name: {name: 1.0} for name in names}
            along = curvature(centre, held, directions, s.curvature)
            found |= {name: along.along(sums[name]) for name in names}
            advance(1)
    return found


def _notes(
    found: list[TheoremPair],
    points: Mapping[str, tuple[Point, Point, Point]],
    held: HeldOut,
    s: TheoremSettings,
) -> tuple[str, ...]:
    notes = []
    if s.at == "base" and len({base for base, _, _ in points.values()}) == 1:
        notes.append(
            "all pairs share one base, where lambda is one number: it explains nothing, and the product is the "
            "distance in other units. Take lambda at each pair's midpoint, or give pairs of several bases"
        )
    wrong = [pair.name for pair in found if not pair.converged]
    if wrong:
        notes.append(f"lambda has not converged for {', '.join(wrong)}: raise max_steps")
    models = [model for _, a, b in points.values() for model in (a, b)]
    if len(set(models)) < len(models):
        notes.append("pairs share models, so they are not independent, and intervals are too narrow")
    if has_running_statistics(held.model):
        notes.append(
            "running statistics of BatchNorm move with the models: gaps contain what that does, and second-order "
            "terms don't"
        )
    return tuple(notes)
