"""Merging against mergekit 0.1.5 and against a plain copy, side by side in one run.

    python benchmarks/merge_vs_mergekit.py --shape 1.1B --work /tmp/bench

Makes a base and four fine-tunes of a Llama shape in bfloat16, then for each method runs
``mergescope merge``, ``mergekit-yaml`` and the floor: a program that reads all inputs' bytes and
writes as many as the output has. Prints and stores wall time, CPU time, peak anonymous memory,
bytes and ratios. Every command runs as a process of its own, start-up included. Needs mergekit in
an environment of its own (``--mergekit``, made with pip if not given), since its pins differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

from make_models import make_models

METHODS: dict[str, tuple[str, dict[str, object], dict[str, object], int]] = {
    # name: method, parameters of each model, of the merge, number of models
    "linear": ("linear", {"weight": 1.0}, {}, 4),
    "task_arithmetic": ("task_arithmetic", {"weight": 0.3}, {}, 4),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}, {}, 4),
    "dare_ties": ("dare_ties", {"weight": 0.5, "density": 0.5}, {}, 4),
    "slerp": ("slerp", {}, {"t": 0.4}, 1),
}

FLOOR = """
import os, sys, threading
out, size, *inputs = sys.argv[1:]
def read(path):
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
threads = [threading.Thread(target=read, args=(path,)) for path in inputs]
[t.start() for t in threads]; [t.join() for t in threads]
block, left = os.urandom(1 << 20), int(size)
with open(out, "wb", buffering=0) as stream:
    while left > 0:
        left -= stream.write(block[:left] if left < len(block) else block)
    os.fsync(stream.fileno())
"""


def recipe(name: str, paths: list[Path]) -> dict[str, object]:
    """The recipe of a method, the same for both programs."""
    method, per_model, common, count = METHODS[name]
    models: list[dict[str, object]] = [
        {"model": str(p), "parameters": per_model} for p in paths[1 : 1 + count]
    ]
    if method == "slerp":
        models.insert(0, {"model": str(paths[0])})
    out: dict[str, object] = {
        "merge_method": method,
        "models": models,
        "parameters": common,
        "dtype": "bfloat16",
    }
    if method != "linear":
        out["base_model"] = str(paths[0])
    return out


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float | int]:
    """Run a command; wall and CPU seconds, peak anonymous memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            found = [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")]
            peak = max([peak, *found])

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    wall = time.perf_counter() - started
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    usage = os.times()
    cpu = usage.children_user + usage.children_system
    return {"wall_s": round(wall, 2), "peak_anonymous_bytes": peak, "cpu_total_s": cpu}


def mergekit_command(given: str | None, work: Path) -> str:
    """The mergekit-yaml program, installed into an environment of its own if need be."""
    if given:
        return given
    place = work / "mergekit-venv"
    if not (place / "bin" / "mergekit-yaml").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        pip = str(place / "bin" / "pip")
        subprocess.run([pip, "install", "--quiet", "torch==2.13.0"], check=True)
        subprocess.run([pip, "install", "--quiet", "mergekit==0.1.5", "torch==2.13.0"], check=True)
    return str(place / "bin" / "mergekit-yaml")


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="small", choices=("small", "1.1B"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-bench"))
    parser.add_argument("--mergekit", help="path of mergekit-yaml")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeat", type=int, default=3, help="runs of ours and the floor; the median counts")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "merge_vs_mergekit.json"
    )
    options = parser.parse_args()
    paths = make_models(options.work / options.shape, options.shape)
    theirs = mergekit_command(options.mergekit, options.work)
    ours = str(Path(sysconfig.get_path("scripts")) / "mergescope")
    out = options.work / "out"
    rows = []
    for name in options.methods:
        file = options.work / f"{name}.yml"
        file.write_text(json.dumps(recipe(name, paths), indent=1))
        inputs = [str(p / "model.safetensors") for p in paths[(name == "linear") : 1 + METHODS[name][3]]]
        size = Path(inputs[0]).stat().st_size
        floor = [sys.executable, "-c", FLOOR, str(out), str(size), *inputs]
        row: dict[str, object] = {"method": name, "read_bytes": size * len(inputs), "written_bytes": size}
        for who, command, times in (
            ("floor", floor, options.repeat),
            ("mergescope", [ours, "merge", str(file), str(out), "--no-digests"], options.repeat),
            ("mergescope_digests", [ours, "merge", str(file), str(out)], 1),
            ("mergekit", [theirs, str(file), str(out)], 1),
        ):
            runs = []
            for _ in range(times):
                shutil.rmtree(out, ignore_errors=True)
                out.unlink(missing_ok=True)
                os.sync()
                before = os.times()
                run = measure(command, {"HF_HUB_OFFLINE": "1"})
                run["cpu_s"] = round(
                    run.pop("cpu_total_s") - before.children_user - before.children_system, 2
                )
                runs.append(run)
            row[who] = sorted(runs, key=lambda run: run["wall_s"])[len(runs) // 2]
        walls = {who: row[who]["wall_s"] for who in ("floor", "mergescope", "mergekit")}  # type: ignore[index]
        row["times_faster_than_mergekit"] = round(walls["mergekit"] / walls["mergescope"], 1)
        row["times_the_floor"] = round(walls["mergescope"] / walls["floor"], 2)
        rows.append(row)
        memory = {who: row[who]["peak_anonymous_bytes"] / 1e6 for who in ("mergescope", "mergekit")}  # type: ignore[index]
        print(
            f"{name:<16} floor {walls['floor']:6.1f} s   mergescope {walls['mergescope']:6.1f} s "
            f"{memory['mergescope']:6.0f} MB   mergekit {walls['mergekit']:6.1f} s {memory['mergekit']:6.0f} MB   "
            f"{row['times_faster_than_mergekit']:5.1f} x faster, {row['times_the_floor']:.2f} x floor",
            flush=True,
        )
    shutil.rmtree(out, ignore_errors=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/merge_vs_mergekit.py " + " ".join(
        f"--{key} {getattr(options, key)}" for key in ("shape", "repeat")
    )
    result = {
        "command": command, "shape": options.shape, "cores": os.cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(), "load_before": os.getloadavg()[0], "rows": rows,
    }  # fmt: skip
    target = options.out.with_name(f"{options.out.stem}_{options.shape}.json")
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"stored in {target}")


if __name__ == "__main__":
    main()
