"""Predicting all pairs of a family against measuring them, side by side in one run.

    python benchmarks/predict.py --shape small
    python benchmarks/predict.py --shape minilm

Makes a base of the shape with random weights and K fine-tunes of it (the base and a little noise). In turns, as often
as ``--repeat`` says, on the same samples and one thread:

- *measure*: ``trace`` of all fine-tunes and of the midpoints of all pairs, then ``linearity`` of each pair;
- *predict*: ``expand`` by jvp of jvp, then ``predicted_linearity`` of each pair;
- *differences*: the same, with derivatives by central differences.

Stored are times and their ratios (medians over turns; CPU time is what other programs disturb less), the forward
passes that each takes as long as, what one second derivative costs, alone and on average over all K (K + 1) / 2, the
widths of the intervals of gaps at equal samples, and the ratio of times if the samples of *predict* are chosen so that
its intervals are as wide as those of *measure*. Targets: all pairs of eight models for less than half of measuring
them, and a second derivative for at most six forward passes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS = {"predict / measure": 0.5, "forward passes a second derivative": 6.0}


@dataclass(frozen=True)
class Shape:
    """What is measured: the network, samples, and the size of a batch."""

    samples: int
    batch: int
    build: Callable[[], Any]
    data: Callable[[int], Any]


def _small() -> Any:
    import mergescope as ms

    return ms.ViT(image=28, patch=4, width=128, depth=6, heads=4, classes=10)


def _images(samples: int) -> Any:
    import torch

    return torch.randn(samples, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def _minilm() -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertModel(BertConfig(**sizes))  # 22.7 M parameters


def _texts(samples: int) -> Any:
    import torch

    ids = torch.randint(1000, 30000, (samples, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SHAPES = {"small": Shape(64, 32, _small, _images), "minilm": Shape(16, 16, _minilm, _texts)}


def batches_of(whole: Any, size: int) -> list[Any]:
    """Inputs in batches."""
    if isinstance(whole, dict):
        parts = {name: value.split(size) for name, value in whole.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    return list(whole.split(size))


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of wall and CPU time, and what came out."""
    wall, busy = time.perf_counter(), time.process_time()
    found = work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - busy}, found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one shape."""
    import torch

    import mergescope as ms
    from mergescope.models.features import Features
    from mergescope.protocols import HeldOut
    from mergescope.protocols.prediction import expand, predicted_linearity
    from mergescope.tracing.derivatives import Derivatives
    from mergescope.training.kernels import differentiable_kernels, make_differentiable
    from mergescope.weights import Point

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SHAPES[options.shape]
    net = shape.build().eval()
    base = ms.Checkpoint({key: value.clone() for key, value in net.state_dict().items()}, name="base")
    models = {
        f"tuned-{k + 1}": Point.of(ms.random_neighbour(base, base * 1.05, seed=k))
        for k in range(options.models)
    }
    batches = batches_of(shape.data(options.samples or shape.samples), shape.batch)
    twin = copy.deepcopy(net)  # kernels without derivatives are replaced in it
    held = HeldOut("data", batches, twin, logits=False)
    tests = [ms.ctl(models[a], models[b]) for a, b in itertools.combinations(models, 2)]
    features = Features.of(net)

    def measure() -> list[Any]:
        inner = ms.InnerProducts([test.points for test in tests])
        points = [point for test in tests for point in test.points]
        traced = ms.trace(points, batches, net, readings=[inner], progress=False)
        return [ms.linearity(traced, test) for test in tests]

    def predict(method: str) -> Callable[[], list[Any]]:
        def work() -> list[Any]:
            found = expand(Point.of(base), models, held, method=method, progress=False)
            return [predicted_linearity([found], test) for test in tests]

        return work

    roles = {"measure": measure, "predict": predict("jvp"), "differences": predict("differences")}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in (*roles, "forward", "alone", "all")}
    results: dict[str, Any] = {}
    layers = [name for name in ms.find_layers(net) if name != "output"]
    make_differentiable(twin)
    vectors = {name: model - base for name, model in models.items()}
    made = Derivatives(twin, {key: key for key in twin.state_dict()}, layers, features, vectors)
    one, other, *_ = (made.direction(name) for name in models)

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                features.call(net, batch)

    def alone() -> None:
        with torch.no_grad(), differentiable_kernels(type(twin).__name__):
            made.twice(batches[0], one, other)

    for turn in range(options.repeat):
        for name, work in roles.items():
            taken, results[name] = timed(work)
            times[name].append(taken)
            print(f"{turn}: {name:<12}{taken['wall_s']:8.2f} s   CPU {taken['cpu_s']:8.2f} s", flush=True)
        for name, work, share in (
            ("forward", forward, len(batches)),
            ("alone", alone, 1),
            ("all", lambda: made.of(batches[0]), options.models * (options.models + 1) // 2),
        ):
            taken, _ = timed(work)
            times[name].append({clock: value / share for clock, value in taken.items()})
    return summary(options, shape, times, results, len(tests))


def summary(
    options: argparse.Namespace, shape: Shape, times: dict[str, Any], results: dict[str, Any], pairs: int
) -> dict[str, Any]:
    """What is stored: medians, ratios within turns, widths of intervals."""

    def ratio(upper: str, lower: str, clock: str = "cpu_s") -> float:
        found = zip(times[upper], times[lower], strict=True)
        return round(statistics.median(a[clock] / b[clock] for a, b in found), 3)

    batches = (options.samples or shape.samples) / shape.batch
    widths = {}
    for name, found in results.items():
        gaps = [
            entry.measures["gap"] for each in found for entry in each.layers if entry.measures["gap"].mean > 0
        ]
        widths[name] = statistics.median((gap.high - gap.low) / gap.mean for gap in gaps)
    more = (widths["predict"] / widths["measure"]) ** 2
    agree = [
        one.measures["gap"].mean / other.measures["gap"].mean
        for a, b in zip(results["differences"], results["predict"], strict=True)
        for one, other in zip(a.layers, b.layers, strict=True)
        if other.measures["gap"].mean > 0
    ]
    return {
        "command": f"python benchmarks/predict.py --shape {options.shape} --models {options.models} "
        f"--samples {options.samples or shape.samples} --repeat {options.repeat}",
        "shape": options.shape, "models": options.models, "pairs": pairs, "batch": shape.batch,
        "samples": options.samples or shape.samples, "threads": 1, "cores": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(), "load": os.getloadavg()[0],
        "targets": TARGETS,
        "times": {
            name: {clock: round(statistics.median(one[clock] for one in every), 4) for clock in ("wall_s", "cpu_s")}
            for name, every in times.items()
        },
        "predict / measure": {"cpu": ratio("predict", "measure"), "wall": ratio("predict", "measure", "wall_s")},
        "differences / measure": {
            "cpu": ratio("differences", "measure"), "wall": ratio("differences", "measure", "wall_s"),
        },
        "forward passes that take as long": {
            name: round(ratio(name, "forward") / batches, 1) for name in ("measure", "predict", "differences")
        },
        "forward passes a second derivative": {
            "alone": ratio("alone", "forward"), "on average over all": ratio("all", "forward"),
            "by differences": round(
                ratio("differences", "forward") / batches / (options.models * (options.models + 1) / 2), 2
            ),
        },
        "width of intervals over the gap": {name: round(value, 4) for name, value in widths.items()},
        "samples of predict for intervals as wide": round(more, 3),
        "predict / measure at equal widths": round(more * ratio("predict", "measure"), 3),
        "gaps by differences over those by jvp": [round(min(agree), 4), round(max(agree), 4)],
    }  # fmt: skip


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--samples", type=int, help="by default the shape's own")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "predict.json")
    options = parser.parse_args()
    found = run(options)
    for name in list(found)[list(found).index("predict / measure") :]:
        print(f"{name}: {found[name]}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    target = options.out.with_name(f"{options.out.stem}_{options.shape}.json")
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"stored in {target}")


if __name__ == "__main__":
    main()
