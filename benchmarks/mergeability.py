"""Does anything known before a merge tell how good it will be? On all trained families, and the rule that commands use.

    python benchmarks/families.py --data DATA --work /tmp/mergescope-families --seeds 3
    python benchmarks/mergeability.py --work /tmp/mergescope-families

First makes the families that vary what those of ``families.py`` hold fixed (``mergeability_families.py``: learning
rates, lengths of pretraining), then runs ``mergescope mergeability`` on all of them, whose run directory stays in
``WORK/runs/mergeability``; what is there already is not made again. The page goes to
``docs/results/mergeability.md``, numbers to ``.json``, pictures to a directory of that name, and the rules to
``src/mergescope/protocols/mergeability/rule.json``. About half an hour of training and an hour of merging on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mergeability_families import EXTRA, train

from mergescope.reports.mergeability_page import DRAWINGS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "mergeability"
RULES = ROOT / "src" / "mergescope" / "protocols" / "mergeability" / "rule.json"
FAMILIES = ("vit", "vit-seed1", "vit-seed2", "minilm", "resnet")
REGIMES = (
    "full", "lora", "full-low", "full-high", "attention-high", "vit/attention-1", "vit-seed1/attention-1",
    "vit-pre0/attention-1", "vit-pre1/attention-1", "vit-pre3/attention-1",
)  # fmt: skip
"""Without linearised ones, where gaps are zero by construction, and further attention paradigms, which take long."""
OPTIONS = (
    "--limit", "96", "--pairs", "16", "--groups", "2", "--scales", "0.5,1,1.5,2.5", "--batch-size", "64",
)  # fmt: skip
HEAD = """# Does anything known before a merge tell how good it will be?

Made by `python benchmarks/mergeability.py` (its head says what to run first); all numbers:
[mergeability.json](mergeability.json); how to read them and how rules are judged: [mergeability](../mergeability.md).
The command was `mergescope mergeability --family {families} --regime {regimes} {options}`.

The families: the ViT, MiniLM and ResNet of [regimes.md](regimes.md) (`vit` and two further seeds, `minilm`, `resnet`);
the ViT at a third and at three times the learning rate (`vit-lr`), from a base that was pretrained for 3 epochs, 1
epoch or not at all in place of 12 (`vit-pre3`, `vit-pre1`, `vit-pre0`), and MiniLM at a fifth of the learning rate
(`minilm-lr`). Linearised regimes are left out, since their gaps are zero by construction, and to save time most
attention-only ones. Figures before a merge are of validation data (48 samples of a task; derivatives 16), outcomes of
96 test samples of a task, so outcomes of pairs have a standard error of their own of about 0.04.
"""


def collect(work: Path) -> dict[str, Any]:
    """Run the command; what it says as JSON."""
    families = [work / name for name in (*FAMILIES, *EXTRA)]
    out = work / "runs" / "mergeability"
    program = [sys.executable, "-c", "from mergescope.cli import main; main()"]
    arguments = ["mergeability", "--family", *map(str, families), "--regime", *REGIMES, *OPTIONS]
    found = subprocess.run(
        [*program, *arguments, "--out", str(out), "--rules", str(RULES), "--json"], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(found.returncode)
    return dict(json.loads(found.stdout))


def page(found: dict[str, Any], run: Path) -> str:
    """The results in words, tables and pictures."""
    PAGE.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, text in DRAWINGS.items():
        drawn = run / "figures" / f"{name}.svg"
        if not drawn.is_file():
            continue  # there was nothing to draw in it
        shutil.copyfile(drawn, PAGE / drawn.name)
        pictures.append(f"![{text}](mergeability/{name}.svg)\n\n*{text}.*\n")
    families = " ".join((*FAMILIES, *EXTRA))
    head = HEAD.format(families=families, regimes=" ".join(REGIMES), options=" ".join(OPTIONS))
    told = [
        head, "## What was found\n", f"**{found['headline']}**\n",
        *[f"- {sentence}" for sentence in found["findings"]],
        f"\n{found['cases']} cases of {found['units']} families and regimes; networks {', '.join(found['networks'])}; "
        f"{len(found['tasks'])} tasks.\n",
        *[f"- {note[0].upper()}{note[1:]}." for note in found["notes"]],
        "\n## The best rule at each level\n", *_rules(found), *pictures, "## Every figure\n",
        "Of the average's normalised accuracy; the smallest error on left-out tasks first. *Within* is the mean of "
        "Spearman's correlations over pairs of the same family and regime.\n", *_predictors(found),
    ]  # fmt: skip
    return "\n".join(told).rstrip() + "\n"


def stored(found: dict[str, Any], run: Path) -> str:
    """What is kept: everything that was said, and every case on a line."""
    cases = json.loads((run / "cases.json").read_text())
    lines = ",\n".join(json.dumps(_rounded(case)) for case in cases)
    said = ",\n".join(f"{json.dumps(name)}: {json.dumps(_rounded(value))}" for name, value in found.items())
    return f'{{\n{said},\n"collected": [\n{lines}\n]\n}}\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(it) for name, it in value.items()}
    if isinstance(value, list):
        return [_rounded(it) for it in value]
    return round(value, 5) if isinstance(value, float) else value


def _rules(found: dict[str, Any]) -> list[str]:
    lines = [
        "Mean absolute errors on left-out tasks; the controls know nothing, the number of models, or that and the "
        "base's own normalised accuracy. 95 % intervals by bootstrap over families and regimes.\n",
        "| outcome | known | figure | error | R² | rank | constant | models | base | left-out networks | better than "
        "all |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    titles = {it["predictor"]: it["title"] for it in found["predictors"]}
    for it in found["rules"]:
        name, controls = it["rule"]["predictor"], it["controls"]
        networks = "–" if it["networks_mae"] is None else f"{it['networks_mae']:.2f}"
        cells = [
            it["outcome"].replace("_", " "), it["level"], titles.get(name, "number of models alone"),
            _with_interval(it["mae"]), f"{it['r2'][0]:.2f}", f"{it['rank']:.2f}",
            *(f"{controls[control][0]:.2f}" for control in ("constant", "models", "base")), networks,
            "yes" if it["beats_all_controls"] else "no",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _predictors(found: dict[str, Any]) -> list[str]:
    lines = [
        "| figure | Spearman | Pearson | pairs only | within | error | R² | left-out networks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [it for it in found["predictors"] if it["outcome"] == "average"]
    for it in sorted(rows, key=lambda it: it["error"]["value"]):
        said = [
            _with_interval(list(it[name].values()))
            for name in ("spearman", "pearson", "pairs", "within", "error")
        ]
        networks = it["networks_error"]
        beyond = "–" if networks is None else f"{networks['value']:.2f}"
        lines.append(f"| {it['title']} | {' | '.join(said)} | {it['r2']['value']:.2f} | {beyond} |")
    return lines


def _with_interval(values: list[float | None]) -> str:
    if values[0] is None:
        return "–"
    value, low, high = (float("nan") if it is None else it for it in values)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-families"))
    options = parser.parse_args()
    work = options.work.resolve()
    train(work)
    found = collect(work)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.with_suffix(".json").write_text(stored(found, work / "runs" / "mergeability"))
    PAGE.with_suffix(".md").write_text(page(found, work / "runs" / "mergeability"))
    print(f"stored in {PAGE.with_suffix('.md')}, {PAGE.with_suffix('.json')} and {RULES}")


if __name__ == "__main__":
    main()
