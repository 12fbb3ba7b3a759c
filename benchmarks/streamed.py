"""Measuring a model larger than the memory it may take: the streamed executor, block by block.

    python benchmarks/streamed.py --shape 3.4B --work /tmp/mergescope-bench

Makes a base and two fine-tunes of a Llama shape in bfloat16 (random weights), measures Cross-Task
Linearity between the fine-tunes on random tokens in a process of its own, and stores wall time,
peak anonymous memory, and results. With ``--against`` (shapes that fit in memory) the resident
executor measures the same, and the largest difference of cos, coef and gap is stored too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

from make_models import SHAPES, make_models

SAMPLES, TOKENS, BATCH = 16, 64, 4


def measure(paths: list[Path], executor: str, dtype: str) -> dict[str, object]:
    """Trace the midpoint of two fine-tunes; what cos, coef and gap are, and the cost."""
    import torch

    import mergescope as ms

    base, *tuned = (ms.Checkpoint(path, name=path.name) for path in paths)
    kind = getattr(torch, dtype)
    model = (ms.empty_model(base) if executor == "streamed" else ms.load_model(base)).to(kind)
    vocab = SHAPES[paths[0].parent.name]["vocab"]
    ids = torch.randint(vocab, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(BATCH)]
    test = ms.ctl(*tuned, reference=base)
    readings = [ms.InnerProducts(), ms.NextTokenLoss()]
    traced = ms.trace(
        test.points, data, model, readings=readings, executor=executor, check=False, progress=False
    )
    found = ms.linearity(traced, test)
    loss = {str(point): float(readings[1].losses(point).mean()) for point in traced.points}
    layers = {
        entry.layer: {name: entry.measures[name].mean for name in ("cos", "coef", "gap")}
        for entry in found.layers
    }
    return {
        "seconds": traced.seconds,
        "forward_passes": traced.forward_passes,
        "layers": layers,
        "loss": loss,
    }


def watched(command: list[str]) -> tuple[dict[str, object], dict[str, float | int]]:
    """Run a command; its last line as JSON, wall seconds and peak anonymous memory."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak = max([
                peak,
                *(int(line.split()[1]) * 1024 for line in text.splitlines() if "RssAnon" in line),
            ])

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    cost = {"wall_s": round(time.perf_counter() - started, 1), "peak_anonymous_bytes": peak}
    return json.loads(output.splitlines()[-1]), cost


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-bench"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--against", action="store_true", help="also measure with the resident executor")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=("streamed", "resident"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    paths = make_models(options.work / options.shape, options.shape, tuned=2)[:3]
    if options.one:
        print(json.dumps(measure(paths, options.one, options.dtype)))
        return
    entries = sum((path / "model.safetensors").stat().st_size for path in paths) // 2
    rows: dict[str, object] = {}
    for who in ("streamed", *(["resident"] if options.against else [])):
        command = [sys.executable, __file__, "--shape", options.shape, "--work", str(options.work),
                   "--dtype", options.dtype, "--one", who]  # fmt: skip
        found, cost = watched(command)
        rows[who] = {**cost, **found}
        print(
            f"{who:9} {cost['wall_s']:7.1f} s  peak anonymous memory {cost['peak_anonymous_bytes'] / 1e9:.2f} GB"
        )
    result = {
        "command": f"python benchmarks/streamed.py --shape {options.shape} --dtype {options.dtype}"
        + " --against" * options.against,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "shape": options.shape, "parameters_of_a_model": entries // 3, "models": 3,
        "samples": SAMPLES, "tokens": TOKENS,
        "dtype": options.dtype, **rows,
    }  # fmt: skip
    if options.against:
        one, other = (rows[who]["layers"] for who in ("streamed", "resident"))  # type: ignore[index]
        difference = max(abs(one[layer][name] - other[layer][name]) for layer in one for name in one[layer])
        result["largest_difference"] = difference
        print(f"largest difference of cos, coef and gap: {difference:g}")
    out = options.out or Path(__file__).parent / "results" / f"streamed_{options.shape}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"stored in {out}")


if __name__ == "__main__":
    main()
