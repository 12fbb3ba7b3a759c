"""Linearity tests: CTL and equations 1 to 3 as instances of one form (CTL 4.1 to 4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from mergescope.display import View, as_html, as_pandas, as_pretty, pivot
from mergescope.errors import PointError
from mergescope.models.layers import OUTPUT
from mergescope.protocols.which_data import alike, fingerprint_of
from mergescope.readings import MEASURES, RELATIVE, InnerProducts, Summary, bootstrap, linearity_measures
from mergescope.readings.reading import require_layer
from mergescope.tracing import Trace
from mergescope.weights import Point, exact, mean, task_vector
from mergescope.weights.point import Number, TensorSource

Model = Point | TensorSource

COS_HOLDS = 0.95
"""A test's mean cosine must reach this at every layer to say that LLFC holds."""

COEF_HOLDS = 0.1
"""CTL also asks that the mean coefficient be within this of 1 at every layer."""


@dataclass(frozen=True)
class LinearityTest:
    """``f(left) ~ sum_k a_k f(p_k)``, where ``left = sum_k a_k p_k`` and ``sum_k a_k = 1``.

    The two sides agree exactly for a network that is linear in its weights; that the left point
    really is this combination is checked, with exact coefficients.

    Args:
        name: what it tests, for example ``"CTL"``.
        left: the point whose features are predicted.
        right: points and their coefficients.
        reference: the pretrained model, for the measures relative to its features.
        parameter: alpha or lambda, for tables.

    Raises:
        PointError: the coefficients don't sum to 1, or the left point is another combination.

    Example:
        >>> import torch, mergescope as ms
        >>> a, b = (ms.Checkpoint({"w": torch.tensor([v])}, name=n) for n, v in (("a", 1.0), ("b", 2.0)))
        >>> test = ctl(a, b, alpha=0.25)
        >>> test.left
        Point(0.75*b + 0.25*a)
    """

    name: str
    left: Point
    right: tuple[tuple[Point, Fraction], ...]
    reference: Point | None = None
    parameter: float | None = None
    points: tuple[Point, ...] = field(init=False)

    def __post_init__(self) -> None:
        total = sum((value for _, value in self.right), Fraction(0))
        if total != 1:
            raise PointError(
                f"{self.name}: the coefficients of the right side sum to {float(total):g}, not 1."
            )
        combined = sum(
            (value * point for point, value in self.right[1:]), self.right[0][1] * self.right[0][0]
        )
        if combined != self.left:
            raise PointError(
                f"{self.name}: the left point is {self.left}, the right side combines to {combined}."
            )
        reference = () if self.reference is None else (self.reference,)
        object.__setattr__(self, "points", (self.left, *(point for point, _ in self.right), *reference))


def ctl(a: Model, b: Model, alpha: Number = 0.5, reference: Model | None = None) -> LinearityTest:
    """Cross-Task Linearity (CTL 4.1): ``f(alpha th_a + (1 - alpha) th_b)`` against the mix of features.

    Args:
        a: a fine-tuned model.
        b: another one.
        alpha: weight of ``a``, in [0, 1].
        reference: the pretrained model.

    Returns:
        The test.
    """
    a, b, share = Point.of(a), Point.of(b), exact(alpha)
    return _test("CTL", share * a + (1 - share) * b, [(a, share), (b, 1 - share)], reference, float(share))


def averaging(models: Iterable[Model], reference: Model | None = None) -> LinearityTest:
    """Eq. 1 (CTL 4.2): ``f(1/k sum th_i)`` against ``1/k sum f(th_i)``.

    Args:
        models: at least two fine-tuned models.
        reference: the pretrained model.

    Returns:
        The test.
    """
    points = [Point.of(model) for model in models]
    share = Fraction(1, max(len(points), 1))
    return _test("Eq. 1 averaging", mean(points), [(point, share) for point in points], reference, None)


def addition(base: Model, a: Model, b: Model, lam: Number = 0.4) -> LinearityTest:
    """Eq. 2 (CTL 4.3): ``f(th_0 + lam (tau_a + tau_b))`` against the mean of ``f(th_0 + 2 lam tau)``.

    Args:
        base: the pretrained model ``th_0``.
        a: a fine-tuned model.
        b: another one.
        lam: scaling coefficient; CTL uses 0.4.

    Returns:
        The test, with the base as reference.
    """
    base, scale, half = Point.of(base), exact(lam), Fraction(1, 2)
    tau_a, tau_b = task_vector(a, base), task_vector(b, base)
    right = [(base + 2 * scale * tau_a, half), (base + 2 * scale * tau_b, half)]
    return _test("Eq. 2 addition", base + scale * (tau_a + tau_b), right, base, float(scale))


def negation(base: Model, a: Model, lam: Number = 0.4) -> LinearityTest:
    """Eq. 3 (CTL 4.3): ``f(th_0)`` against the mean of ``f(th_0 + lam tau)`` and ``f(th_0 - lam tau)``.

    Args:
        base: the pretrained model ``th_0``.
        a: the fine-tuned model.
        lam: scaling coefficient; CTL uses 0.4.

    Returns:
        The test. It has no measures relative to the reference, which is the left point itself.
    """
    base, scale, half = Point.of(base), exact(lam), Fraction(1, 2)
    tau = task_vector(a, base)
    right = [(base + scale * tau, half), (base - scale * tau, half)]
    return _test("Eq. 3 negation", base, right, None, float(scale))


def _test(
    name: str,
    left: Point,
    right: Sequence[tuple[Point, Fraction]],
    reference: Model | None,
    parameter: float | None,
) -> LinearityTest:
    pretrained = None if reference is None else Point.of(reference)
    return LinearityTest(name, left, tuple(right), pretrained, parameter)


@dataclass(frozen=True)
class LayerLinearity:
    """One layer of a linearity test.

    Attributes:
        layer: its name.
        trivial: whether it is linear in the weights by construction (no evidence).
        measures: measure to its mean, spread and interval over samples.
        values: measure to ``(samples,)`` values, NaN for dead samples.
    """

    layer: str
    trivial: bool
    measures: dict[str, Summary]
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """What the measures say, in words.

    Attributes:
        llfc: cosines near 1 at every layer (any scale).
        ctl: LLFC, and coefficients near 1.
        beats_baseline: the cosine's interval is above the baseline's at every layer.
        reason: the layer that decided, with its figures.
    """

    llfc: bool
    ctl: bool
    beats_baseline: bool
    reason: str


@dataclass(frozen=True)
class Linearity:
    """The result of [`linearity`][]: one entry a layer, printed as a table."""

    test: LinearityTest
    layers: tuple[LayerLinearity, ...]
    samples: int

    def __getitem__(self, layer: str) -> LayerLinearity:
        found = {entry.layer: entry for entry in self.layers}
        require_layer(layer, list(found))
        return found[layer]

    @property
    def evidence(self) -> list[LayerLinearity]:
        """The layers that a verdict is judged on: not linear by construction, and with live features."""
        return [entry for entry in self.layers if not entry.trivial and entry.measures["cos"].n]

    @property
    def verdict(self) -> Verdict:
        """Whether LLFC and CTL hold, judged on [`Linearity.evidence`][]."""
        evidence = self.evidence
        if not evidence:
            return Verdict(False, False, False, "no layer with live, non-trivial features")
        worst_cos = min(evidence, key=lambda entry: entry.measures["cos"].mean)
        worst_coef = max(evidence, key=lambda entry: abs(entry.measures["coef"].mean - 1))
        low, off = worst_cos.measures["cos"].mean, worst_coef.measures["coef"].mean
        llfc = low >= COS_HOLDS
        holds = llfc and abs(off - 1) <= COEF_HOLDS
        beats = all(
            entry.measures["cos"].low > entry.measures["baseline"].high
            for entry in evidence
            if entry.measures["baseline"].n
        )
        reason = (
            f"lowest cos {low:.3f} at {worst_cos.layer} (baseline "
            f"{worst_cos.measures['baseline'].mean:.3f}), coef furthest from 1: {off:.3f} at "
            f"{worst_coef.layer}"
        )
        return Verdict(llfc, holds, beats, reason)

    @property
    def says(self) -> str:
        """The verdict in words, with the layer that decided."""
        verdict = self.verdict
        ctl_says, llfc_says = ("holds" if it else "does not hold" for it in (verdict.ctl, verdict.llfc))
        return f"CTL {ctl_says}, LLFC {llfc_says}: {verdict.reason}."

    def rows(self) -> list[dict[str, Any]]:
        """Every measure at every layer as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row]; the kind is the test's name.
        """
        test = self.test
        parameter = float("nan") if test.parameter is None else test.parameter
        common = {"kind": test.name, "points": str(test.left), "parameter": parameter}
        return [
            {**common, "layer": entry.layer, "trivial": entry.trivial, "measure": measure, **vars(summary)}
            for entry in self.layers
            for measure, summary in entry.measures.items()
        ]

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    @property
    def _title(self) -> str:
        parameter = "" if self.test.parameter is None else f" at {self.test.parameter:g}"
        return f"{self.test.name}{parameter}: {self.samples} samples"

    def _view(self) -> View:
        measures = ("cos", "coef", "gap", "baseline")
        return View(self.says, (pivot(self.rows(), self._title, "layer", "measure", only=measures),))

    def __str__(self) -> str:
        lines = [
            self._title,
            f"{'layer':<28}{'cos':>8}  {'95% interval':<18}{'coef':>8}{'gap':>8}{'baseline':>10}{'n':>8}",
        ]
        for entry in self.layers:
            cos, baseline = entry.measures["cos"], entry.measures["baseline"]
            note = "  trivial" if entry.trivial else ""
            lines.append(
                f"{entry.layer:<28}{cos.mean:>8.4f}  [{cos.low:.4f}, {cos.high:.4f}]  "
                f"{entry.measures['coef'].mean:>8.4f}{entry.measures['gap'].mean:>8.4f}"
                f"{baseline.mean:>10.4f}{cos.n:>8}{note}"
            )
        return "\n".join([*lines, self.says])


def linearity(
    traces: Trace | Sequence[Trace],
    test: LinearityTest,
    *,
    units: np.ndarray | None = None,
    local: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Linearity:
    """Evaluate a linearity test from traces that hold its points.

    Args:
        traces: one trace, or one a data set to be pooled (CTL 4.1 measures on ``D_i u D_j``).
        test: the test.
        units: ``(samples,)`` over all traces: what each sample is a view of, for the bootstrap.
        local: measure each layer on the reference's input to it (a trace with ``local=``), instead of
            on what the layers before it gave. A layer that is linear here but not there only passes
            on what earlier ones broke.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        cos, coef, gap and their relatives at every layer.

    Raises:
        MergescopeError: a trace has no inner products of the test's points.
    """  # noqa: DOC502 (raised by what this calls)
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    names = MEASURES + (RELATIVE if test.reference is not None else ())
    coefficients = [float(value) for _, value in test.right]
    entries = []
    samples = sum(trace.samples for trace in traces)
    for layer in traces[0].layers:
        if local and layer == OUTPUT:
            continue
        readings = [_reading(trace, test, local) for trace in traces]
        gram = np.concatenate([reading.gram(layer, test.points) for reading in readings])
        differences = np.concatenate([reading.differences(layer, test.points) for reading in readings])
        of_rows = _units(traces, layer, units, local)
        values = linearity_measures(gram, coefficients, test.reference is not None, differences)
        stacked = np.stack([values[name] for name in names], axis=1)
        summaries = bootstrap(stacked, of_rows, confidence=confidence, resamples=resamples, seed=seed)
        trivial = any(layer in trace.trivial for trace in traces)
        entries.append(LayerLinearity(layer, trivial, dict(zip(names, summaries, strict=True)), values))
    return Linearity(test, tuple(entries), samples)


def repeated_samples(data: Sequence[Any], traces: Sequence[Trace]) -> np.ndarray | None:
    """Which samples are the same where tasks share their data: two passes of them are not twice the evidence.

    Args:
        data: batches of each trace; those with equal ``fingerprint`` are the same.
        traces: of them.

    Returns:
        ``units`` for [`linearity`][]; None if no two are the same.
    """
    first = alike(map(fingerprint_of, data))
    if first == list(range(len(first))):
        return None
    starts = np.cumsum([0, *(trace.samples for trace in traces)])
    return np.concatenate([
        np.arange(trace.samples) + starts[place] for place, trace in zip(first, traces, strict=True)
    ])


def _units(traces: Sequence[Trace], layer: str, units: np.ndarray | None, local: bool) -> np.ndarray | None:
    # Rows may be tokens: those of one sample stand or fall together.
    found = [trace.reading(InnerProducts, local=local).units(layer) for trace in traces]
    if all(part is None for part in found):
        return units
    starts = np.cumsum([0, *(trace.samples for trace in traces)])
    rows = np.concatenate([part + start for part, start in zip(found, starts[:-1], strict=True)])
    return rows if units is None else np.asarray(units)[rows]


def _reading(trace: Trace, test: LinearityTest, local: bool) -> InnerProducts:
    missing = [str(point) for point in test.points if point not in trace.points]
    if missing:
        raise PointError(f"The trace lacks points of {test.name}: {'; '.join(missing)}. Trace test.points.")
    return trace.reading(InnerProducts, local=local)
