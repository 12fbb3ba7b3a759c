"""The page of ``benchmarks/theory.py``: tables, pictures, and what they say, all computed from the stored rows."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from protocols_page import _claim, _Pictures, _said

Rows = list[dict[str, Any]]

FAMILIES = {"full": "ViT, full", "attention-1": "ViT, attention-1", "linearized": "ViT, linearized"}
OTHERS = {"resnet": "ResNet, full", "minilm": "MiniLM, full"}
HEAD = """# Predictions, curvature and theorems on trained families

Made by `python benchmarks/theory.py` on the models of `python benchmarks/families.py --seeds 3` (their heads say what
to install); all numbers, and the command of each: [theory.json](theory.json). The families are described in
[regimes.md](regimes.md), the commands in [../prediction.md](../prediction.md).

Intervals in brackets are 95 %: over seeds by Student's t with three seeds (two degrees of freedom, so they are wide),
of single runs by bootstrap. A claim *holds* if the interval of the difference is above 0, *does not hold* if it is
below, and is *inconclusive* otherwise. Samples are few (`--limit` of each command): curvature is costly. Models that
were trained in the linearised network are looked at in the ordinary one here (`--no-linearized`).
"""


def page(found: dict[str, Any], runs: Path, out: Path) -> str:
    """All of it.

    Args:
        found: run to command, cost and rows.
        runs: run directories, for pictures.
        out: path of the page without suffix; pictures go to a directory of that name.

    Returns:
        Markdown.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = _Pictures(runs, out)
    parts = [
        _gaps(found, pictures), _accuracy(found, pictures), _interactions(found, pictures), _curvature(found, pictures),
        _theorems(found, pictures),
    ]  # fmt: skip
    claims = [line for part in parts for line in part.splitlines() if line.startswith("- *")]
    short = ["## In short\n", "Each claim is in its section with what belongs to it.\n", *claims]
    return "\n".join(part.rstrip() + "\n" for part in (HEAD, "\n".join(short), *parts))


def _seeds(found: dict[str, Any], kind: str, name: str) -> list[str]:
    alone = [f"{kind}-{name}"] if f"{kind}-{name}" in found else []
    return alone or sorted(run for run in found if run.rpartition("-")[0] == f"{kind}-{name}")


def _rows(found: dict[str, Any], run: str, **having: Any) -> Rows:
    return [
        row for row in found[run]["rows"] if all(row.get(name) == value for name, value in having.items())
    ]


def _mean(found: dict[str, Any], run: str, **having: Any) -> float:
    values = [row.get("mean", math.nan) for row in _rows(found, run, **having)]
    return statistics.fmean(values) if values else math.nan


def _layers(found: dict[str, Any], run: str) -> list[str]:
    return list(dict.fromkeys(row["layer"] for row in _rows(found, run, kind="prediction", measure="slope")))


def _families(found: dict[str, Any], kind: str) -> dict[str, tuple[str, list[str]]]:
    every = {**FAMILIES, **OTHERS}
    return {
        name: (title, _seeds(found, kind, name)) for name, title in every.items() if _seeds(found, kind, name)
    }


def _gaps(found: dict[str, Any], pictures: _Pictures) -> str:
    lines = [
        "## Predicted against measured gaps\n",
        "*Slope* and *R^2* are of the line of measured on predicted relative gaps over all samples, pairs and tests",
        "(CTL, Eq. 1 to 3); *error* is that of the gap's vector, relative to the measured one; *third order* is the",
        "multiple of a task vector at which all that follows the second order is as large as it (0: at any length).",
        "Means over seeds.\n",
        "| family | layer | CTL gap, predicted | measured | slope | R^2 | error | third order from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    claims = []
    for title, runs in _families(found, "predict").values():
        reach: list[tuple[str, list[float]]] = []
        for layer in _layers(found, runs[0]):
            cells = [
                _said((_mean(found, run, kind=kind, layer=layer, measure="gap") for run in runs), 3)
                for kind in ("predicted-ctl", "measured-ctl")
            ]
            for measure in ("slope", "r2", "error", "takes over"):
                values = [_mean(found, run, kind="prediction", layer=layer, measure=measure) for run in runs]
                cells.append(_said(values, 2) if all(map(math.isfinite, values)) else "-")
                if measure == "takes over" and all(map(math.isfinite, values)):
                    reach.append((layer, values))
            lines.append(f"| {title} | {layer} | {' | '.join(cells)} |")
        first = min(reach, key=lambda entry: statistics.fmean(entry[1]))
        within = [layer for layer, values in reach if statistics.fmean(values) >= 1]
        seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
        rest = (
            "elsewhere, kinks (ReLU) outweigh the second order, however short task vectors are"
            if statistics.fmean(first[1]) == 0
            else f"the third order takes over first at {first[0]}, at {_said(first[1], 2)} times a task vector"
        )
        claims.append(
            f"- *{title}: the second order is the larger part of what is not linear up to whole task vectors*: at "
            f"{len(within)} of {len(reach)} layers; {rest} ({seeds})."
        )
    text = "Measured against predicted gap of every test, full fine-tuning of the ViT"
    return "\n".join([*lines, "", *claims, "", pictures("predict-full-0", "agreement", text)])


def _accuracy(found: dict[str, Any], pictures: _Pictures) -> str:
    lines = [
        "## Predicted accuracy of task addition\n",
        "The best of the coefficients that were run as well, by the prediction and as measured; the best of the",
        "grid; and the mean difference of predicted and measured normalised accuracy.\n",
        "| family | seed | best predicted, of those run | best measured | what is lost by the prediction's choice | "
        "best predicted, of the grid | mean error |",
        "|---|---|---|---|---|---|---|",
    ]
    same, lost, total = 0, [], 0
    for title, runs in _families(found, "predict").values():
        for seed, run in enumerate(runs):
            said, true = (
                {row["parameter"]: row for row in _rows(found, run, kind=kind, measure="normalised accuracy")}
                for kind in ("predicted", "measured")
            )
            ours = max(true, key=lambda lam: (said[lam]["mean"], -lam))
            theirs = max(true, key=lambda lam: (true[lam]["mean"], -lam))
            grid = max(said, key=lambda lam: (said[lam]["mean"], -lam))
            loss = true[theirs]["mean"] - true[ours]["mean"]
            off = statistics.fmean(abs(said[lam]["mean"] - row["mean"]) for lam, row in true.items())
            same, total, lost = same + (ours == theirs), total + 1, [*lost, loss]
            worth = f"{true[theirs]['mean']:.3f} [{true[theirs]['low']:.3f}, {true[theirs]['high']:.3f}]"
            lines.append(
                f"| {title} | {seed} | {ours:g} | {theirs:g}: {worth} | {loss:.3f} | {grid:g} | {off:.3f} |"
            )
    lines += [
        "",
        f"- *the coefficient with the best predicted accuracy is the best measured one*: in {same} of {total} runs, of "
        f"{len(true)} coefficients; its choice loses {statistics.fmean(lost):.3f} normalised accuracy on average, "
        f"{max(lost):.3f} at most.",
        "",
        pictures("predict-full-0", "accuracy", "Predicted and measured accuracy of task addition, ViT, full"),
        pictures("predict-full-0", "surfaces", "Predicted accuracy of pairs, ViT, full"),
    ]
    return "\n".join(lines)


def _pairs(found: dict[str, Any], run: str, layer: str, own: bool = False) -> float:
    rows = _rows(found, run, kind="interaction", measure="interaction", layer=layer)
    halves = [
        row for row in rows if (row["points"] == " + ".join([row["points"].split(" + ")[0]] * 2)) == own
    ]
    return statistics.fmean(row["mean"] for row in halves)


def _interactions(found: dict[str, Any], pictures: _Pictures) -> str:
    lines = [
        "## Interaction of task vectors\n",
        "`|f''[tau_i, tau_j]|` relative to what each task vector changes alone, mean over pairs of different tasks",
        "(and, as *own curvature*, of each with itself). Weight disentanglement asks it to vanish.\n",
        "| family | seeds | middle block | last block | output | own curvature, output |",
        "|---|---|---|---|---|---|",
    ]
    for title, runs in _families(found, "predict").values():
        layers = _layers(found, runs[0])[:-1]
        cells = [
            _said([_pairs(found, run, layer) for run in runs], 3)
            for layer in (layers[(len(layers) - 1) // 2], layers[-1], "output")
        ]
        cells.append(_said([_pairs(found, run, "output", own=True) for run in runs], 3))
        lines.append(f"| {title} | {len(runs)} | {' | '.join(cells)} |")
    full, attention = (_seeds(found, "predict", name) for name in ("full", "attention-1"))
    last = _layers(found, full[0])[-2]
    lines.append("")
    for where, layer in (("the last block", last), ("the output", "output")):
        differences = [
            _pairs(found, a, layer) - _pairs(found, b, layer) for a, b in zip(full, attention, strict=True)
        ]
        lines.append(
            _claim(f"at {where}, task vectors of attention-1 interact less than those of full", differences)
        )
    text = "Interaction of every two task vectors, ViT, full"
    return "\n".join([*lines, "", pictures("predict-full-0", "interactions", text)])


def _curvature(found: dict[str, Any], pictures: _Pictures) -> str:
    lines = [
        "## Curvature and Theorem 5.1\n",
        "Pairs on each of both tasks' data, lambda at the merged point. *Loose*: the bound over the absolute gap,",
        "median. *Along task vectors*: curvature at the base as a share of the largest eigenvalue there (1 would",
        "make the bound tight). *Sign*: cases in which the exact second-order term at the base has the gap's sign.\n",
        "| family | cases | bound holds | loose | along task vectors | sign | gaps below 0 | lambda, base | lambda, "
        "fine-tune |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    claims = []
    for title, (run, *_) in _families(found, "curvature").values():
        sides: dict[tuple[str, str], dict[str, float]] = {}
        for row in _rows(found, run, kind="theorem 5.1"):
            sides.setdefault((row["points"], row["data"]), {})[row["measure"]] = row["mean"]
        cases = [side for side in sides.values() if "gap" in side]
        along: dict[tuple[str, str], dict[str, float]] = {}
        for row in _rows(found, run, kind="along own"):
            along.setdefault((row["points"], row["data"]), {})[row["measure"]] = row["mean"]
        shares = [entry["d^T H d"] / entry["bound"] for entry in along.values() if entry["bound"]]
        held = sum(side["bound holds"] == 1 for side in cases)
        ratios = [side["bound"] / abs(side["gap"]) for side in cases]
        signs = sum(side["gap"] * side["exact term"] > 0 for side in cases)
        below = sum(side["gap"] < 0 for side in cases)
        tops = [
            statistics.median(
                row["mean"] for row in _rows(found, run, kind=f"eigenvalue of {kind}", measure="eigenvalue")
            )
            for kind in ("base", "fine-tune")
        ]
        lines.append(
            f"| {title} | {len(cases)} | {held} | {statistics.median(ratios):.0f} | {min(shares):.4f} to "
            f"{max(shares):.4f} | {signs} | {below} | {tops[0]:.3g} | {tops[1]:.3g} |"
        )
        claims.append(
            f"- *{title}: the gap is within the bound of Theorem 5.1*: in {held} of {len(cases)} cases; the bound is "
            f"{statistics.median(ratios):.0f} times the gap (median)."
        )
        r2 = {
            name: row
            for name in ("product", "distance", "exact term")
            for row in _rows(found, run, points="all pairs", measure=f"R^2 of |gap| on {name}")
        }
        said = "; ".join(
            f"{name} {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for name, row in r2.items()
        )
        claims.append(f"- {title}: of the variance of |gap|, R^2 by {said}.")
    text = "Gap of the loss against bound and exact term, ResNet, full"
    return "\n".join([*lines, "", *claims, "", pictures("curvature-resnet", "bound", text)])


def _theorems(found: dict[str, Any], pictures: _Pictures) -> str:
    lines = [
        "## Theorems and their premises\n",
        "For how many cases (models, data, layer) the premises of a theorem hold, and its conclusion, by the",
        "thresholds that `mergescope theorems` tells: a gap up to 0.329 counts as none, losses that differ by 0.1",
        "nats as equal.\n",
        "| family | theorem | cases | premises hold | and the conclusion | conclusion without premises |",
        "|---|---|---|---|---|---|",
    ]
    totals: dict[str, list[float]] = {}
    for title, (run, *_) in _families(found, "theorems").values():
        for name in dict.fromkeys(row["points"] for row in _rows(found, run, kind="tally")):
            rows = {row["measure"]: row for row in _rows(found, run, kind="tally", points=name)}
            cases = rows["premise holds"]["n"]
            premise, conclusion, both = (
                rows[measure].get("mean", 0) for measure in ("premise holds", "conclusion holds", "both hold")
            )
            lines.append(
                f"| {title} | {name} | {cases} | {premise:.0f} | {both:.0f} | {conclusion - both:.0f} of "
                f"{cases - premise:.0f} |"
            )
            short = name.partition(" at ")[0]
            for place, value in enumerate((cases, premise, conclusion, both)):
                totals.setdefault(short, [0, 0, 0, 0])[place] += value
    lines.append("")
    for name, (cases, premise, conclusion, both) in totals.items():
        with_them = f"{both:.0f} of {premise:.0f}" if premise else "never, as they never hold"
        rest = f"{conclusion - both:.0f} of {cases - premise:.0f}"
        lines.append(
            f"- *{name}: where the premises hold, so does the conclusion*: {with_them}; without the premises, the "
            f"conclusion holds in {rest} cases."
        )
    text = "Conclusions against premises, ViT, full"
    return "\n".join([*lines, "", pictures("theorems-full-0", "gaps", text)])
