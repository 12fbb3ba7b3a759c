"""Predictions, curvature and CTL's theorems on the trained families of ``benchmarks/families.py``, and the page of it.

    python benchmarks/families.py --data DATA --work /tmp/mergescope-families --seeds 3
    python benchmarks/theory.py --work /tmp/mergescope-families --jobs 2

Every figure is of a command of ``mergescope``, whose run directory stays in ``WORK/runs``; what is there already is
not run again. Numbers go to ``docs/results/theory.json``, the page to ``docs/results/theory.md``, pictures to
``docs/results/theory/``. About 25 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from protocols import PAIRS, SEEDS, Run, make, stored
from theory_page import page

PAGE = Path(__file__).parent.parent / "docs" / "results" / "theory"
CHECKED = ("--checked", *(f"{value / 10:g}" for value in (1, 2, 3, 4, 5, 6, 8, 10)))
REGIMES: dict[str, tuple[str, ...]] = {
    "full": (), "attention-1": (), "linearized": ("--no-linearized",),
}  # fmt: skip
"""Regime to further options: models that were trained linearised are looked at in the ordinary network."""

KEPT = ("interaction", "prediction", "surface", "theorem 5.1", "eigenvalue of base", "eigenvalue of fine-tune",
        "eigenvalue of pair", "along own", "tally", "theorem 3.3")  # fmt: skip
"""Kinds of rows that are kept whole; of others, gaps of CTL and normalised accuracies."""


def runs() -> list[Run]:
    """What is run."""
    found = []
    for seed, family in SEEDS.items():
        for regime, more in REGIMES.items():
            if seed and regime == "linearized":
                continue
            usual = (family, "--regime", regime, *more)
            found.append(
                Run(f"predict-{regime}-{seed}", ("predict", *usual, "--limit", "32", "--measure", *CHECKED))
            )
    for regime, more in REGIMES.items():
        usual = ("vit", "--regime", regime, *more, "--limit", "32")
        found += [
            Run(f"theorems-{regime}-0", ("theorems", *usual)),
            Run(f"curvature-{regime}-0", ("curvature", *usual, "--pairs", *PAIRS)),
        ]
    text, pictures = ("minilm", "--regime", "full"), ("resnet", "--regime", "full")
    return [
        *found,
        Run("predict-resnet", ("predict", *pictures, "--limit", "64", "--measure", *CHECKED)),
        Run("theorems-resnet", ("theorems", *pictures, "--limit", "64")),
        Run("curvature-resnet", ("curvature", *pictures, "--limit", "32")),
        Run("predict-minilm", ("predict", *text, "--limit", "16", "--measure", *CHECKED)),
        Run("theorems-minilm", ("theorems", *text, "--limit", "16")),
        Run(
            "curvature-minilm", ("curvature", *text, "--limit", "16", "--pairs", "noun:verb", "language:spam")
        ),
    ]


def kept(run: Run, work: Path) -> dict[str, Any]:
    """What is kept of a run: of predicted tests, the gaps of CTL only."""
    found = stored(run, work)
    rows = [
        row
        for row in found["rows"]
        if (row["kind"] in KEPT and row["measure"] != "interaction size")
        or row["measure"] == "normalised accuracy"
        or (row["measure"] == "gap" and row["kind"] in ("predicted-ctl", "measured-ctl"))
    ]
    return {**found, "rows": rows}


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-families"))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    work = options.work.resolve()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: make(run, work), runs()))
    found = {run.name: kept(run, work) for run in runs()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(some)}" for name, some in found.items())
    PAGE.with_suffix(".json").write_text(f"{{\n{lines}\n}}\n")
    PAGE.with_suffix(".md").write_text(page(found, work / "runs", PAGE))


if __name__ == "__main__":
    main()
