"""Predicted outputs for every vector of coefficients, and so accuracy and loss of any merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from mergescope.errors import MergescopeError
from mergescope.protocols.prediction.expansion import Expansion
from mergescope.protocols.scores import over_tasks
from mergescope.protocols.which_data import alike
from mergescope.readings import Summary, bootstrap
from mergescope.tracing.second_order import taylor_weights
from mergescope.weights import Point


def predicted_logits(data: Expansion, coefficients: Mapping[str, float]) -> torch.Tensor:
    """``f_0 + sum c_k J tau_k + 1/2 sum c_k c_l f''[tau_k, tau_l]`` of the output.

    Where [`Surrogate`][mergescope.protocols.coefficients.surrogate.Surrogate] fits such a polynomial to points that
    were evaluated, this one is the exact expansion at th_0: better near it, worse far from it.

    Args:
        data: the expansion.
        coefficients: name to ``c_k``; absent ones are 0.

    Returns:
        ``(samples, classes)``.

    Raises:
        MergescopeError: the network predicts no classes.

    Example:
        >>> import torch, mergescope as ms
        >>> from mergescope.protocols.prediction.expansion import expand
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> tuned = {"a": Point.of(ms.random_neighbour(base, base * 1.1, seed=0))}
        >>> x = torch.randn(6, 4)
        >>> found = expand(Point.of(base), tuned, ms.protocols.HeldOut("noise", [x], net))
        >>> torch.allclose(predicted_logits(found, {}), net(x), atol=1e-6)
        True
    """  # noqa: DOC502 (raised by what this calls)
    weights = torch.from_numpy(taylor_weights(data.terms, coefficients))
    return _combined(data, torch.cat([weights, torch.zeros(len(data.points), dtype=weights.dtype)]))


def measured_logits(data: Expansion, point: Point) -> torch.Tensor:
    """The outputs of a point that was run.

    Args:
        data: the expansion.
        point: one of its points.

    Returns:
        ``(samples, classes)``.

    Raises:
        MergescopeError: the network predicts no classes.
        PointError: the point was not run.
    """  # noqa: DOC502 (raised by what this calls)
    return _combined(data, torch.eye(data.size)[data.place(point)])


def _combined(data: Expansion, weights: torch.Tensor) -> torch.Tensor:
    if data.logits is None:
        raise MergescopeError(
            f"{data.name}: {data.network} predicts no classes, so there are no outputs to predict accuracy of. Give "
            "models with a head, or look at gaps and interactions."
        )
    return torch.tensordot(weights.to(data.logits.dtype), data.logits, dims=1)


def scored(data: Expansion, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What is correct of some outputs, and their losses.

    Args:
        data: whose labels.
        logits: ``(samples, classes)``.

    Returns:
        ``(samples,)`` of 0.0 and 1.0, and ``(samples,)`` of cross-entropy.

    Raises:
        MergescopeError: the data have no labels.
    """
    if data.labels is None:
        raise MergescopeError(
            f"{data.name}: the data have no labels, so there is no accuracy. Yield (inputs, labels)."
        )
    labels = torch.from_numpy(data.labels)
    hits = (logits.argmax(1) == labels).double().numpy()
    return hits, F.cross_entropy(logits.double(), labels, reduction="none").numpy()


@dataclass(frozen=True)
class Outcome:
    """One point of the predicted accuracy surface.

    Attributes:
        lam: the coefficient of every task vector.
        accuracy: task to predicted accuracy.
        loss: task to predicted cross-entropy.
        normalised: predicted ``mean_t acc_t / acc_t(theta_t)`` (ATTN Eq. 5), by the fine-tunes' true accuracies.
        measured: task to true accuracy, empty if the point was not run.
        measured_normalised: the true one, or None.
    """

    lam: float
    accuracy: Mapping[str, Summary]
    loss: Mapping[str, Summary]
    normalised: Summary
    measured: Mapping[str, Summary]
    measured_normalised: Summary | None


def outcomes(
    expansions: Mapping[str, Expansion],
    lams: Sequence[float],
    line: Mapping[float, Point],
    *,
    seed: int = 0,
) -> tuple[Outcome, ...]:
    """Accuracy of ``th_0 + lam sum_k tau_k`` over a grid of coefficients, without running any of these.

    Args:
        expansions: task to the expansion on its data, in which its own fine-tune was run.
        lams: the grid.
        line: coefficients to points that were run as well.
        seed: of the intervals.

    Returns:
        One entry a coefficient.

    Raises:
        MergescopeError: a network predicts nothing, data have no labels, or a fine-tune is never right.
    """  # noqa: DOC502 (raised by what this calls)
    own = [scored(data, measured_logits(data, data.models[task]))[0] for task, data in expansions.items()]
    shared = alike(data.fingerprint for data in expansions.values())
    found = []
    for lam in lams:
        said = {
            task: scored(data, predicted_logits(data, dict.fromkeys(data.models, lam)))
            for task, data in expansions.items()
        }
        hits = {task: values for task, (values, _) in said.items()}
        true = {}
        if lam in line:
            true = {
                task: scored(data, measured_logits(data, line[lam]))[0] for task, data in expansions.items()
            }
        found.append(
            Outcome(
                lam, _means(hits, seed), _means({task: losses for task, (_, losses) in said.items()}, seed),
                over_tasks(list(hits.values()), own, alike=shared, seed=seed), _means(true, seed),
                over_tasks(list(true.values()), own, alike=shared, seed=seed) if true else None,
            )
        )  # fmt: skip
    return tuple(found)


def predicted_normalised(
    expansions: Mapping[str, Expansion], coefficients: Mapping[str, float], *, seed: int = 0
) -> Summary:
    """Predicted normalised accuracy of ``th_0 + sum_k c_k tau_k``, for any coefficients.

    Args:
        expansions: as for [`outcomes`][].
        coefficients: name to ``c_k``.
        seed: of the interval.

    Returns:
        ``mean_t acc_t / acc_t(theta_t)`` (ATTN Eq. 5).

    Raises:
        MergescopeError: as for [`outcomes`][].
    """  # noqa: DOC502 (raised by what this calls)
    own = [scored(data, measured_logits(data, data.models[task]))[0] for task, data in expansions.items()]
    hits = [scored(data, predicted_logits(data, coefficients))[0] for data in expansions.values()]
    shared = alike(data.fingerprint for data in expansions.values())
    return over_tasks(hits, own, alike=shared, seed=seed)


def _means(values: Mapping[str, np.ndarray], seed: int) -> dict[str, Summary]:
    return {task: bootstrap(value[:, None], seed=seed)[0] for task, value in values.items()}
