"""What ``mergescope study show`` says a study took: seconds out of published results, written into the package.

    mergescope study run --all --preset cpu --data-root DIR
    mergescope study publish runs/studies/*-cpu
    python benchmarks/study_costs.py

Seconds are of one core each. Models that several studies share are counted in each of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

HERE = Path(__file__).parent.parent
RESULTS = HERE / "docs" / "results"
COSTS = HERE / "src" / "mergescope" / "studies" / "papers" / "measured_costs.yaml"


def main() -> None:
    """Collect and write."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        said = json.loads(path.read_text())
        if isinstance(said.get("seconds"), dict):
            found.setdefault(said["study"], {})[said["preset"]] = {
                "passes": round(said["seconds"]["passes"]), "training": round(said["seconds"]["training"]),
                "torch": said["versions"]["torch"],
            }  # fmt: skip
    head = "# Seconds on one core each. Written by benchmarks/study_costs.py, which says from what; not to be edited.\n"
    COSTS.write_text(head + yaml.safe_dump(found, sort_keys=True))
    print(f"{len(found)} studies in {COSTS.relative_to(HERE)}")


if __name__ == "__main__":
    main()
