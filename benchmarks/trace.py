"""Tracing against the published procedure and against plain forward passes, side by side in one run.

    python benchmarks/trace.py --shape vit-b32

Makes a base of the shape with random weights and fine-tunes of it (the base and a little noise),
then measures Cross-Task Linearity at alpha 0.5 between all pairs of fine-tunes, at all blocks:

- *ours*: ``trace`` with the resident executor, default settings, then ``linearity`` of each pair;
- *published*: for each pair, load both state dicts, mix them, pass all samples through all three
  networks, keep the feature maps, and compute cos and coef from them;
- *floor*: as many plain forward passes of the same batches as ours needs, (K + P) a batch, with no
  hooks, no weights to swap and no measures.

Each runs in a process of its own, one after the other, in turned order from one repeat to the next.
Timed is the work itself, without imports and without building the network. Prints and stores wall
and CPU time (which other programs disturb less), peak memory, forward passes, the ratios of times
(median over repeats), and the largest difference between our figures and the published procedure's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = ("floor", "ours", "published")


@dataclass(frozen=True)
class Shape:
    """What is measured: fine-tunes, layers, samples, and the size of a batch."""

    tuned: int
    layers: str
    samples: int
    batch: int
    build: Callable[[], Any]
    data: Callable[[int], dict[str, Any]]


def _clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(patch_size=32))  # 87.5 M parameters


def _minilm() -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertModel(BertConfig(**sizes))  # 22.7 M parameters


def _small() -> Any:
    import mergescope as ms

    return ms.ViT()


def _images(side: int, channels: int, name: str) -> Callable[[int], dict[str, Any]]:
    def make(samples: int) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(samples, channels, side, side, generator=generator)}

    return make


def _texts(samples: int) -> dict[str, Any]:
    import torch

    ids = torch.randint(1000, 30000, (samples, 128), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SHAPES = {
    "vit-b32": Shape(4, "encoder.layers.*", 128, 32, _clip, _images(224, 3, "pixel_values")),
    "minilm": Shape(4, "encoder.layer.*", 128, 32, _minilm, _texts),
    "small": Shape(8, "blocks.*", 2048, 128, _small, _images(28, 1, "x")),
}


def make_models(root: Path, shape: Shape) -> list[Path]:
    """Write the base and fine-tunes, unless they are there: the base plus noise of a tenth of each spread."""
    import torch
    from safetensors.torch import save_file

    paths = [
        root / f"{name}.safetensors" for name in ("base", *(f"tuned-{k + 1}" for k in range(shape.tuned)))
    ]
    root.mkdir(parents=True, exist_ok=True)
    if all(path.exists() for path in paths):
        return paths
    torch.manual_seed(0)
    base = {key: value.clone() for key, value in shape.build().state_dict().items()}
    for number, path in enumerate(paths):
        generator = torch.Generator().manual_seed(number)
        state = {}
        for key, value in base.items():
            spread = value.std() if value.is_floating_point() and value.numel() > 1 else None
            if number and spread is not None:
                value = value + 0.1 * spread * torch.randn(value.shape, generator=generator)
            state[key] = value.contiguous()
        save_file(state, path)
    return paths


def floor(net: Any, batches: list[dict[str, Any]], paths: list[Path], shape: Shape) -> dict[str, Any]:
    """Plain forward passes."""
    import torch

    tuned = len(paths) - 1
    passes = tuned + tuned * (tuned - 1) // 2
    with torch.no_grad():
        for _ in range(passes):
            for batch in batches:
                net(**batch)
    return {"forward_passes": passes * len(batches)}


def ours(net: Any, batches: list[dict[str, Any]], paths: list[Path], shape: Shape) -> dict[str, Any]:
    """One trace of all end points and midpoints."""
    import mergescope as ms

    tuned = [ms.Checkpoint(path) for path in paths[1:]]
    tests = [ms.ctl(a, b) for a, b in itertools.combinations(tuned, 2)]
    points = [point for test in tests for point in test.points]
    inner = ms.InnerProducts(groups=[test.points for test in tests])
    traced = ms.trace(points, batches, net, layers=shape.layers, readings=[inner], executor="resident")
    results = [ms.linearity(traced, test) for test in tests]
    return {
        "forward_passes": traced.forward_passes,
        "cos": [[entry.measures["cos"].mean for entry in result.layers] for result in results],
        "coef": [[entry.measures["coef"].mean for entry in result.layers] for result in results],
    }


def published(net: Any, batches: list[dict[str, Any]], paths: list[Path], shape: Shape) -> dict[str, Any]:
    """Pair by pair, three networks a pair, all feature maps kept."""
    import torch
    from safetensors.torch import load_file

    import mergescope as ms

    layers = ms.find_layers(net, shape.layers)
    kept: dict[str, list[Any]] = {}

    def keep(layer: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            kept[layer].append((output if isinstance(output, torch.Tensor) else output[0]).detach().cpu())

        return hook

    for layer in layers:
        net.get_submodule(layer).register_forward_hook(keep(layer))

    def features(state: dict[str, Any]) -> dict[str, Any]:
        net.load_state_dict(state)
        kept.update({layer: [] for layer in layers})
        with torch.no_grad():
            for batch in batches:
                net(**batch)
        return {layer: torch.cat(parts).flatten(1) for layer, parts in kept.items()}

    out: dict[str, Any] = {"forward_passes": 0, "cos": [], "coef": []}
    for one, two in itertools.combinations(paths[1:], 2):
        a, b = load_file(one), load_file(two)
        mixed = {key: 0.5 * a[key] + 0.5 * b[key] if a[key].is_floating_point() else a[key] for key in a}
        of_a, of_b, of_mixed = (features(state) for state in (a, b, mixed))
        out["forward_passes"] += 3 * len(batches)
        cosines, coefs = [], []
        for layer in layers:
            mix, mean = of_mixed[layer], 0.5 * of_a[layer] + 0.5 * of_b[layer]
            cosines.append(torch.nn.functional.cosine_similarity(mix, mean).mean().item())
            coefs.append(((mix * mean).sum(1) / (mean * mean).sum(1)).mean().item())
        out["cos"].append(cosines)
        out["coef"].append(coefs)
    return out


def work(role: str, options: argparse.Namespace) -> None:
    """What a process of its own does: build, run, print one line."""
    import torch

    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    paths = make_models(options.work / options.shape, shape)
    whole = shape.data(options.samples)
    parts = {name: value.split(options.batch) for name, value in whole.items()}
    batches = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    import mergescope as ms

    net = shape.build().eval()
    base = ms.Checkpoint(paths[0])
    warm = [{name: value[:2] for name, value in batches[0].items()}]  # imports, caches and thread pools
    ms.linearity(ms.trace([base], warm, net, layers=shape.layers, check=False), ms.ctl(base, base))
    ms.load_weights(net, base)
    print("ready", flush=True)
    started, busy = time.perf_counter(), time.process_time()
    found = {"floor": floor, "ours": ours, "published": published}[role](net, batches, paths, shape)
    found["wall_s"], found["cpu_s"] = time.perf_counter() - started, time.process_time() - busy
    found["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


def run(role: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a role in a process, watching its anonymous memory."""
    given = ("shape", "samples", "batch", "threads", "work")
    command = [sys.executable, __file__, "--role", role]
    command += [part for name in given for part in (f"--{name}", str(getattr(options, name)))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    peak, before = 0, 0
    done, ready = threading.Event(), threading.Event()

    def watch() -> None:
        nonlocal peak, before
        while not done.wait(0.02):
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            found = [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")]
            if ready.is_set():
                peak = max([peak, *found])
            else:
                before = max([before, *found])

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        ready.set()
        lines.append(line)
    process.wait()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed.")
    found = json.loads(lines[-1])
    return {**found, "peak_anonymous_bytes": peak, "anonymous_bytes_before": before}


def difference(one: dict[str, Any], other: dict[str, Any], measure: str) -> float:
    """The largest difference of a measure over pairs and layers."""
    values = zip(itertools.chain(*one[measure]), itertools.chain(*other[measure]), strict=True)
    return max(abs(x - y) for x, y in values)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--samples", type=int, help="by default the shape's own")
    parser.add_argument("--batch", type=int, help="by default the shape's own")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(ROLES), choices=ROLES)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-bench/trace"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trace.json")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    options.samples, options.batch = options.samples or shape.samples, options.batch or shape.batch
    if options.role:
        work(options.role, options)
        return
    make_models(options.work / options.shape, shape)
    load = os.getloadavg()[0]
    runs: dict[str, list[dict[str, Any]]] = {role: [] for role in options.only}
    for repeat in range(options.repeat):
        for role in options.only[:: -1 if repeat % 2 else 1]:
            found = run(role, options)
            runs[role].append(found)
            memory = [found[name] / 1e6 for name in ("peak_anonymous_bytes", "anonymous_bytes_before")]
            print(
                f"{role:<10} {found['wall_s']:8.2f} s   CPU {found['cpu_s']:8.2f} s   {found['forward_passes']:5d} "
                f"passes   anonymous {memory[0]:6.0f} MB ({memory[1]:.0f} before)",
                flush=True,
            )
    result: dict[str, Any] = {
        "command": f"python benchmarks/trace.py --shape {options.shape} --samples {options.samples} "
        f"--batch {options.batch} --threads {options.threads} --repeat {options.repeat}",
        "shape": options.shape, "tuned": shape.tuned, "pairs": shape.tuned * (shape.tuned - 1) // 2,
        "samples": options.samples, "batch": options.batch, "threads": options.threads, "cores": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(), "load_before": load,
    }  # fmt: skip
    for role, found in runs.items():
        middle = sorted(found, key=lambda one: one["wall_s"])[len(found) // 2]
        result[role] = {name: value for name, value in middle.items() if name not in ("cos", "coef")}
        result[role]["all_wall_s"] = [round(one["wall_s"], 3) for one in found]
    for name, upper, lower in (
        ("times_the_floor", "ours", "floor"), ("times_faster_than_published", "published", "ours"),
    ):  # fmt: skip
        if upper in runs and lower in runs:
            for clock in ("wall", "cpu"):
                pairs = zip(runs[upper], runs[lower], strict=True)
                ratios = [one[f"{clock}_s"] / other[f"{clock}_s"] for one, other in pairs]
                result[f"{name}_{clock}"] = round(statistics.median(ratios), 3)
                every = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"{name.replace('_', ' ')}, {clock} time: {statistics.median(ratios):.2f} ({every})")
    if "ours" in runs and "published" in runs:
        pair = runs["ours"][0], runs["published"][0]
        result["largest_difference"] = {measure: difference(*pair, measure) for measure in ("cos", "coef")}
        print(f"largest difference to the published procedure: {result['largest_difference']}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    target = options.out.with_name(f"{options.out.stem}_{options.shape}.json")
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"stored in {target}")


if __name__ == "__main__":
    main()
