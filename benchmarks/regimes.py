"""What a training step costs in each fine-tuning regime, against full fine-tuning in the same run.

    python benchmarks/regimes.py --shape vit-b-32

Builds a network of random weights (``vit-b-32``: CLIP's vision tower; ``minilm``: a BERT of 22.7 M
parameters on 128 tokens) in one process a regime, all on one thread. The processes take their steps
in turns, so that whatever else the machine does hits all of them alike. A step is forward pass, loss
of a frozen head, backward pass and AdamW. Then each takes three more steps alone, in a process whose
allocator gives back what is freed, for the peak of anonymous memory: in all, and above what a process
holds after the imports (weights, gradients, optimizer states, activations). Stored are medians of the
times, trained parameters, and ratios to full fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SHAPES = ("vit-b-32", "minilm")
REGIMES = ("full", "attention-1", "linearized", "lora")
TARGETS = {
    "attention-1": {"time": 0.75, "memory": 1.0},
    "linearized": {"time": 1.7, "memory": 1.6},
}
"""Ratios that should not be exceeded."""

CLASSES = 10


def network_and_inputs(shape: str, batch: int):
    """A network of random weights, and one batch."""
    import torch
    import transformers

    torch.manual_seed(0)
    if shape == "vit-b-32":
        config = transformers.CLIPVisionConfig(patch_size=32)
        return transformers.CLIPVisionModel(config), {"pixel_values": torch.randn(batch, 3, 224, 224)}
    config = transformers.BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    ids = torch.randint(config.vocab_size, (batch, 128))
    return transformers.BertModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def step_on_request(shape: str, regime: str, batch: int, threads: int) -> None:
    """Be one regime's process: take a step for each line of input, and say how long it took."""
    import torch
    import transformers  # noqa: F401 (before the memory at the start is taken)
    from torch.nn import functional as F

    import mergescope.training as training

    torch.set_num_threads(threads)
    network, inputs = network_and_inputs(shape, batch)
    model = training.regime(regime).prepare(network)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=1e-5, weight_decay=0.1)
    labels = torch.arange(batch) % CLASSES
    head = torch.randn(
        CLASSES, model(**inputs).pooler_output.shape[-1], generator=torch.Generator().manual_seed(1)
    )
    model.train()
    counts = [sum(parameter.numel() for parameter in part) for part in (chosen, network.parameters())]
    print(json.dumps({"trained": counts[0], "parameters": counts[1]}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(**inputs).pooler_output @ head.T, labels)
        loss.backward()
        optimizer.step()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


class Worker:
    """A regime's process, and a watch on its memory."""

    def __init__(self, regime: str, options: argparse.Namespace, returning: bool = False) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--one", regime, "--shape", options.shape,
                   "--batch", str(options.batch), "--threads", str(options.threads)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        if returning:
            environment["MALLOC_MMAP_THRESHOLD_"] = str(
                1 << 17
            )  # else glibc raises it, and keeps what is freed
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.peak = 0
        self.walls: list[float] = []
        self.cpus: list[float] = []
        threading.Thread(target=self._watch, daemon=True).start()
        self.sizes = self._line()

    def _line(self):
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise SystemExit(f"{' '.join(self.process.args)} failed")  # type: ignore[arg-type]
        return json.loads(text)

    def _watch(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            try:
                text = status.read_text()
            except OSError:
                return
            found = [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")]
            self.peak = max([self.peak, *found])
            time.sleep(0.005)

    def step(self, kept: bool) -> None:
        """Have one step taken."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        wall, cpu = self._line()
        if kept:
            self.walls.append(wall)
            self.cpus.append(cpu)

    def end(self) -> None:
        """Close the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def peak_alone(regime: str, options: argparse.Namespace) -> int:
    """Peak anonymous memory of three steps in a process that gives back what is freed."""
    worker = Worker(regime, options, returning=True)
    for _ in range(3):
        worker.step(kept=False)
    worker.end()
    return worker.peak


def imports_alone(threads: int) -> int:
    """Anonymous memory of a process that has imported what the regimes import."""
    code = (
        "import torch, transformers, peft, mergescope.training; from transformers import BertModel, CLIPVisionModel; "
        f"torch.set_num_threads({threads}); print([l for l in open('/proc/self/status') if 'RssAnon' in l][0])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1]) * 1024


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="vit-b-32", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7, help="steps that count, of each regime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=REGIMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        step_on_request(options.shape, options.one, options.batch, options.threads)
        return
    load, start = os.getloadavg()[0], imports_alone(options.threads)
    workers = {regime: Worker(regime, options) for regime in REGIMES}
    for turn in range(-2, options.steps):
        for worker in workers.values():
            worker.step(kept=turn >= 0)
    for worker in workers.values():
        worker.end()
    peaks = {regime: peak_alone(regime, options) for regime in REGIMES}
    rows = []
    whole = workers["full"]
    for regime, worker in workers.items():
        above = peaks[regime] - start
        row = {
            "regime": regime, **worker.sizes,
            "step_s": round(statistics.median(worker.walls), 3),
            "step_cpu_s": round(statistics.median(worker.cpus), 3),
            "peak_anonymous_bytes": peaks[regime], "peak_above_imports_bytes": above,
            # Of steps next to each other in time, then the median.
            "time": round(statistics.median(a / b for a, b in zip(worker.walls, whole.walls, strict=True)), 3),
            "cpu_time": round(statistics.median(a / b for a, b in zip(worker.cpus, whole.cpus, strict=True)), 3),
            "memory": round(above / (peaks["full"] - start), 3),
            "memory_of_process": round(peaks[regime] / peaks["full"], 3),
            "memory_of_process_default_allocator": round(worker.peak / whole.peak, 3),
            "target": TARGETS.get(regime),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{regime:<12} {row['trained'] / 1e6:7.2f} M trained  {row['step_s']:6.2f} s  "
            f"{row['time']:5.2f} x time ({row['cpu_time']:.2f} x CPU)  {above / 1e6:6.0f} MB  "
            f"{row['memory']:5.2f} x memory ({row['memory_of_process']:.2f} x the process)"
        )
    result = {
        "command": "python benchmarks/regimes.py " + " ".join(
            f"--{key} {getattr(options, key)}" for key in ("shape", "batch", "steps", "threads")
        ),
        "shape": options.shape, "cores": os.cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(), "load_before": load, "imports_bytes": start, "rows": rows,
    }  # fmt: skip
    target = options.out or Path(__file__).parent / "results" / f"regimes_{options.shape}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"stored in {target}")


if __name__ == "__main__":
    main()
