"""A measurement of somebody's models as a run directory and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mergescope.protocols.linearity import Linearity
from mergescope.protocols.measure import Measurement, Pair
from mergescope.readings import Summary
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows

STUDY = "measure"
"""What ``run.yaml`` calls it."""


def rows(found: Measurement) -> list[Row]:
    """The results as a tidy table.

    Args:
        found: the measurement.

    Returns:
        The rows of the measurement.
    """
    network = next(iter(found.traces.values())).network
    return [Row(network=network, regime="given", **row) for row in found.rows()]


def write_measurement(
    run: RunDirectory, found: Measurement, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write ``results.parquet`` and ``run.yaml``.

    Args:
        run: the run directory.
        found: the measurement.
        config: what was asked for.
        provenance: models, digests, data.
    """
    write_rows(run.path / RESULTS, rows(found))
    verdicts = [
        {
            "pair": pair.name,
            "kind": pair.kind,
            "a": pair.a,
            "b": pair.b,
            "data": list(pair.data),
            "says": pair.word,
            "reason": pair.reason,
            "linearized": pair.linearized,
        }
        for pair in found.pairs
    ]
    about = {**provenance, "cost": cost(found), "verdicts": verdicts, "notes": list(found.notes)}
    run.write_run(STUDY, "", config, about)


def cost(found: Measurement) -> dict[str, Any]:
    """What the measurement cost.

    Args:
        found: the measurement.

    Returns:
        Samples, forward passes, seconds, peak memory.
    """
    traces = list(found.traces.values())
    return {
        "samples": sum(traced.samples for traced in traces),
        "points": max(len(traced.points) for traced in traces),
        "forward_passes": sum(traced.forward_passes for traced in traces),
        "local_passes": sum(traced.local_passes for traced in traces),
        "seconds": round(sum(traced.seconds for traced in traces), 2),
        "peak_bytes": max(traced.peak_bytes for traced in traces),
        "executor": traces[0].executor,
        "dtype": str(traces[0].dtype).removeprefix("torch."),
        "features": f"{traces[0].features.kind}: {traces[0].features.choice}",
    }


def to_dict(found: Measurement) -> dict[str, Any]:
    """The measurement for scripts.

    Args:
        found: the measurement.

    Returns:
        Plain values; NaN becomes None.
    """
    return {
        "base": found.base,
        "models": list(found.models),
        "notes": list(found.notes),
        "cost": cost(found),
        "pairs": [_pair(pair) for pair in found.pairs],
        "losses": [
            {"model": model, "data": data, **{name: _plain(value) for name, value in values.items()}}
            for (model, data), values in found.losses.items()
        ],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    verdict = pair.middle.verdict
    return {
        "kind": pair.kind,
        "a": pair.a,
        "b": pair.b,
        "data": list(pair.data),
        "verdict": {
            "says": pair.word, "reason": pair.reason, "ctl": verdict.ctl, "llfc": verdict.llfc,
            "beats_baseline": verdict.beats_baseline,
        },
        "barrier": None if pair.barrier is None else {
            "alphas": pair.barrier.alphas.tolist(), "loss": list(map(_finite, pair.barrier.loss.tolist())),
            "error": list(map(_finite, pair.barrier.error.tolist())),
            "loss_barrier": _finite(pair.barrier.loss_barrier), "error_barrier": _finite(pair.barrier.error_barrier),
            "loss_interval": list(map(_finite, pair.barrier.loss_interval)),
            "error_interval": list(map(_finite, pair.barrier.error_interval)),
        },
        "agreement": {ends: _plain(value) for ends, value in pair.agreement.items()},
        "propagated": _alphas(pair.propagated),
        "local": _alphas(pair.local),
    }  # fmt: skip


def _alphas(results: Mapping[float, Linearity]) -> list[dict[str, Any]]:
    return [
        {
            "alpha": alpha,
            "layers": [
                {
                    "layer": layer.layer,
                    "trivial": layer.trivial,
                    **{name: _plain(value) for name, value in layer.measures.items()},
                }
                for layer in result.layers
            ],
        }
        for alpha, result in results.items()
    ]


def _plain(summary: Summary) -> dict[str, float | int | None]:
    return {name: _finite(value) for name, value in vars(summary).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
