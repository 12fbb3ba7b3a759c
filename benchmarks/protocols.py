"""Both papers' protocols on the trained families of ``benchmarks/families.py``, and the page of what came out.

    python benchmarks/families.py --data DATA --work /tmp/mergescope-families --seeds 3
    python benchmarks/protocols.py --work /tmp/mergescope-families --jobs 2

Every figure is of a command of ``mergescope``, whose run directory stays in ``WORK/runs``; what is there already is
not run again. Numbers go to ``docs/results/protocols.json``, the page to ``docs/results/protocols.md``, pictures to
``docs/results/protocols/``. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols_page import page

PAGE = Path(__file__).parent.parent / "docs" / "results" / "protocols"
SEEDS = {0: "vit", 1: "vit-seed1", 2: "vit-seed2"}
SEEDED = ("full", "attention-1", "linearized", "lora")
ONCE = ("attention-2", "attention-3", "attention-4")
PAIRS = ("hebrew:digits", "georgian:fashion", "greek-upper:punctuation", "greek-lower:cyrillic-lower")
FEW, FEWER = ("--limit", "256"), ("--limit", "128")
COEFFICIENTS = ("--coefficients", "--random")


@dataclass(frozen=True)
class Run:
    """A command, and where its results go."""

    name: str
    command: tuple[str, ...]

    def arguments(self, work: Path) -> list[str]:
        """The command with its family and its run directory."""
        word, family, *rest = self.command
        return [word, "--family", str(work / family), *rest]


def vit_runs() -> list[Run]:
    """What is run on the ViT."""
    runs = []
    for seed, family in SEEDS.items():
        # Post-hoc: models of full fine-tuning in the linearised network.
        named = [(label, label, ()) for label in SEEDED] + [("post-hoc", "full", ("--linearized",))]
        for name, regime, more in named:
            usual = (family, "--regime", regime, *more)
            runs += [
                Run(f"addition-{name}-{seed}", ("search", *usual, *FEW)),
                Run(f"disentangle-{name}-{seed}", ("disentangle", *usual, *FEWER, "--preset", "attn", "--points", "9",
                                                   "--pairs", *PAIRS)),
            ]  # fmt: skip
    runs += [Run(f"addition-{label}-0", ("search", "vit", "--regime", label, *FEW)) for label in ONCE]
    for regime in ("full", "attention-1"):
        usual = ("vit", "--regime", regime)
        runs += [
            Run(f"negation-{regime}-0", ("search", *usual, *FEWER, "--negate")),
            Run(f"methods-{regime}-0", ("search", *usual, *FEWER, "--methods", "usual")),
            Run(f"stitch-addition-{regime}-0", ("stitch", *usual, *FEWER, "--pairs", *PAIRS)),
            Run(f"coefficients-{regime}-0", ("search", *usual, *FEW, *COEFFICIENTS)),
        ]
    usual = ("vit", "--regime", "full")
    lambdas = ("--lambdas", "0", "0.25", "0.5", "0.75", "1")
    runs.append(Run("stitch-negation-full-0", ("stitch", *usual, *FEWER, "--negate", *lambdas)))
    for seed in (1, 2):
        runs.append(
            Run(f"coefficients-full-{seed}", ("search", SEEDS[seed], *usual[1:], *FEW, *COEFFICIENTS))
        )
    agreement = ("--objective", "agreement", "--split", "test")
    return [
        *runs,
        Run("groups-full-0", ("search", *usual, *FEWER, *COEFFICIENTS, "--groups", "2")),
        Run("agreement-full-0", ("search", *usual, *FEWER, "--coefficients", *agreement)),
    ]


def other_runs() -> list[Run]:
    """What is run on the other families."""
    text = [
        Run(f"minilm-{regime}", ("search", "minilm", "--regime", regime, *FEWER))
        for regime in ("full", "attention-1")
    ]
    return text + [
        Run(f"resnet-{regime}", ("search", "resnet", "--regime", regime)) for regime in ("full", "linearized")
    ]


def make(run: Run, work: Path) -> None:
    """Run a command, unless that is done."""
    out = work / "runs" / run.name
    done = out / "arguments.json"
    wanted = json.dumps(run.command)
    if done.is_file() and done.read_text() == wanted:
        return
    shutil.rmtree(out, ignore_errors=True) if done.is_file() else None
    program = [sys.executable, "-c", "from mergescope.cli import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*program, *run.arguments(work), "--out", str(out)], capture_output=True, text=True, env=environment
    )
    if found.returncode:
        raise SystemExit(f"mergescope {' '.join(run.arguments(work))}\n{found.stdout}{found.stderr}")
    done.write_text(wanted)
    print(f"done: {run.name}", flush=True)


def geometry(work: Path) -> dict[str, Any]:
    """Task-vector cosines of every regime and seed."""
    found: dict[str, Any] = {}
    for seed, family in SEEDS.items():
        for regime in (*SEEDED, *(() if seed else ONCE)):
            program = [sys.executable, "-c", "from mergescope.cli import main; main()"]
            arguments = ["geometry", "--family", str(work / family), "--regime", regime, "--json"]
            out = subprocess.run([*program, *arguments], capture_output=True, text=True, check=True).stdout
            found[f"{regime}-{seed}"] = [
                row for row in json.loads(out) if row["scope"] == "model" and row["other"]
            ]
    return found


def stored(run: Run, work: Path) -> dict[str, Any]:
    """What is kept of a run: rows without losses and the samples' spread, notes, cost."""
    import yaml

    from mergescope.studies.rundir import RESULTS, read_rows

    folder = work / "runs" / run.name
    provenance = yaml.safe_load((folder / "run.yaml").read_text())["provenance"]
    keep = ("kind", "points", "parameter", "data", "layer", "measure", "mean", "low", "high", "n")
    table = [row for row in read_rows(folder / RESULTS) if row.measure != "loss"]
    rows = [{name: _rounded(getattr(row, name)) for name in keep} for row in table]
    rows = [{name: value for name, value in row.items() if value == value and value != ""} for row in rows]
    word, *rest = run.command
    return {
        "command": " ".join(["mergescope", word, "--family", *rest]), "cost": provenance["cost"],
        "notes": provenance["notes"], "rows": rows,
    }  # fmt: skip


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-families"))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    work = options.work.resolve()
    runs = [*vit_runs(), *other_runs()]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: make(run, work), runs))
    found = {run.name: stored(run, work) for run in runs}
    found["geometry"] = geometry(work)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kept)}" for name, kept in found.items())
    PAGE.with_suffix(".json").write_text(f"{{\n{lines}\n}}\n")
    PAGE.with_suffix(".md").write_text(page(found, work / "runs", PAGE))


if __name__ == "__main__":
    main()
