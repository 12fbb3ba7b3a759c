"""The page of ``benchmarks/protocols.py``: tables, pictures, and what they say, all computed from the stored rows."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scipy.stats import t as student

Rows = list[dict[str, Any]]

REGIMES = (
    "full",
    "post-hoc",
    "linearized",
    "attention-1",
    "attention-2",
    "attention-3",
    "attention-4",
    "lora",
)
HEAD = """# The papers' protocols on trained families

Made by `python benchmarks/protocols.py` on the models of `python benchmarks/families.py --seeds 3` (their heads say
what to install); all numbers, and the command of each: [protocols.json](protocols.json). The families are described in
[regimes.md](regimes.md): a ViT of 1.2 M parameters with eight image tasks, MiniLM with four tasks on texts, a narrow
ResNet-18 on Split CIFAR-10. Accuracies are on test samples (`--limit` says how many of a task); coefficients were
chosen on validation samples.

Intervals in brackets are 95 %: of means over seeds by Student's t with three seeds (two degrees of freedom, so they
are wide), of single runs by bootstrap over samples. A claim *holds* if the interval of the difference is above 0,
*does not hold* if it is below, and is *inconclusive* otherwise.

What differs from the papers: the networks are small and pretrained on little, tasks have few samples, learning rates
were not searched for each regime, and every task's linear head is trained along with its model and kept, whereas
ATTN's heads are frozen text embeddings of CLIP. So the pretrained model has little accuracy on any task.
"""


def page(found: dict[str, Any], runs: Path, out: Path) -> str:
    """All of it.

    Args:
        found: run to command, cost and rows; ``geometry`` to rows of each regime.
        runs: run directories, for pictures.
        out: path of the page without suffix; pictures go to a directory of that name.

    Returns:
        Markdown.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = _Pictures(runs, out)
    parts: list[str] = [
        HEAD, _addition(found), _disentanglement(found, pictures), _geometry(found), _negation(found),
        _methods(found), _coefficients(found), _stitching(found, pictures), _others(found),
    ]  # fmt: skip
    claims = [line for part in parts for line in part.splitlines() if line.startswith("- *")]
    short = [
        "## In short\n",
        "All on the ViT; each claim is in its section with what belongs to it.\n",
        *claims,
    ]
    parts.insert(1, "\n".join(short))
    return "\n".join(part.rstrip() + "\n" for part in parts)


class _Pictures:
    def __init__(self, runs: Path, out: Path) -> None:
        self.runs, self.out = runs, out

    def __call__(self, run: str, figure: str, text: str) -> str:
        name = f"{run}-{figure}.svg"
        shutil.copyfile(self.runs / run / "figures" / f"{figure}.svg", self.out / name)
        return f"![{text}]({self.out.name}/{name})\n\n*{text}*\n"


def _rows(found: dict[str, Any], run: str, **having: Any) -> Rows:
    return [
        row for row in found[run]["rows"] if all(row.get(name) == value for name, value in having.items())
    ]


def _one(found: dict[str, Any], run: str, **having: Any) -> dict[str, Any]:
    (row,) = _rows(found, run, **having)
    return row


def _tuned(found: dict[str, Any], run: str) -> str:
    return next(
        row["points"] for row in _rows(found, run, kind="addition") if row["points"].endswith("(tuned)")
    )


def _interval(values: Iterable[float]) -> tuple[float, float, float]:
    listed = list(values)
    mean = statistics.fmean(listed)
    if len(listed) < 2:
        return mean, float("nan"), float("nan")
    half = student.ppf(0.975, len(listed) - 1) * statistics.stdev(listed) / len(listed) ** 0.5
    return mean, mean - half, mean + half


def _said(values: Iterable[float], digits: int = 3) -> str:
    mean, low, high = _interval(values)
    if low != low:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _seeds(found: dict[str, Any], kind: str, regime: str) -> list[str]:
    return sorted(name for name in found if name.rpartition("-")[0] == f"{kind}-{regime}")


def _claim(text: str, differences: list[float], digits: int = 3) -> str:
    _, low, high = _interval(differences)
    verdict = "holds" if low > 0 else "does not hold" if high < 0 else "inconclusive"
    return (
        f"- *{text}*: difference {_said(differences, digits)} over {len(differences)} seeds; **{verdict}**."
    )


def _paired(
    found: dict[str, Any], kind: str, one: str, other: str, value: Callable[[str], float]
) -> list[float]:
    pairs = zip(_seeds(found, kind, one), _seeds(found, kind, other), strict=False)
    return [value(a) - value(b) for a, b in pairs]


def _addition(found: dict[str, Any]) -> str:
    def score(run: str, points: str, measure: str = "normalised accuracy") -> float:
        return _one(found, run, kind="addition", points=points, measure=measure)["mean"]

    def tuned(run: str) -> float:
        return score(run, _tuned(found, run))

    lines = [
        "## Addition (ATTN Table 1, CTL 5)\n",
        "All eight task vectors of the ViT are added with one coefficient. *Normalised* accuracy is relative to the",
        "same regime's single-task models (ATTN Eq. 5). *Post-hoc*: the models of full fine-tuning in the linearised",
        "network.\n",
        "| regime | seeds | lambda | normalised accuracy | accuracy | lambda = 1, normalised | average, normalised | "
        "base, normalised | single-task accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for regime in REGIMES:
        runs = _seeds(found, "addition", regime)
        lams = ", ".join(_tuned(found, run).split()[2] for run in runs)
        cells = [
            _said([tuned(run) for run in runs]),
            _said([score(run, _tuned(found, run), "mean accuracy") for run in runs]),
            *(_said([score(run, points) for run in runs]) for points in ("lambda = 1", "average", "base")),
            _said([score(run, "single-task models", "mean accuracy") for run in runs]),
        ]
        lines.append(f"| {regime} | {len(runs)} | {lams} | {' | '.join(cells)} |")
    lines += [
        "",
        "Mind the column *base*: heads are trained along, at the learning rate of the regime (three times full",
        "fine-tuning's for attention-1, attention-2 and linearized, ten times for lora). Where a head has learnt much",
        "by itself, the base with that head is right more often, and so is everything near it.\n",
    ]
    for better, worse in (
        ("attention-1", "full"), ("attention-1", "linearized"), ("linearized", "full"), ("lora", "attention-1"),
    ):  # fmt: skip
        lines.append(
            _claim(f"{better} adds up better than {worse}", _paired(found, "addition", better, worse, tuned))
        )
    return "\n".join(lines)


def _disentanglement(found: dict[str, Any], pictures: _Pictures) -> str:
    def mean(run: str, measure: str) -> float:
        rows = _rows(found, run, kind="disentanglement", measure=f"{measure} (predictions)")
        return statistics.fmean(row["mean"] for row in rows)

    pairs = len({row["points"] for row in _rows(found, "disentangle-full-0", kind="disentanglement")})
    regimes = [regime for regime in REGIMES if _seeds(found, "disentangle", regime)]
    lines = [
        "## Weight disentanglement (TANGENT; ATTN Fig. 3)\n",
        f"Mean over {pairs} pairs of tasks, 9 x 9 coefficients on [-2, 2] squared (preset `attn` with fewer points);",
        "the search box is [0, 1] squared. 0: the other task's vector never changes a prediction; 2: always, on both",
        "tasks.\n",
        "| regime | seeds | mean error, box | share of the box below 0.1 | mean error, square | share below 0.1 |",
        "|---|---|---|---|---|---|",
    ]
    for regime in regimes:
        runs = _seeds(found, "disentangle", regime)
        cells = [
            _said([mean(run, f"{what} of the {where}") for run in runs])
            for where in ("box", "square")
            for what in ("mean error", "share below")
        ]
        lines.append(f"| {regime} | {len(runs)} | {' | '.join(cells)} |")
    lines.append("")
    for better, worse in (("attention-1", "full"), ("attention-1", "linearized"), ("linearized", "full")):
        differences = _paired(
            found, "disentangle", worse, better, lambda run: mean(run, "mean error of the box")
        )
        lines.append(
            _claim(f"the error of {better} is below that of {worse}, in the search box", differences)
        )
    lines.append("")
    lines += [
        pictures(f"disentangle-{regime}-0", "disentanglement", f"Disentanglement error, {regime}")
        for regime in ("full", "attention-1")
    ]
    return "\n".join(lines)


def _geometry(found: dict[str, Any]) -> str:
    def values(name: str, measure: str) -> list[float]:
        rows = found["geometry"][name]
        return [row["value"] for row in rows if row["measure"] == measure]

    lines = [
        "## Geometry of task vectors (ATTN Fig. 5)\n",
        "`mergescope geometry --family vit --by-regime`: cosines between the task vectors of different tasks.\n",
        "| regime | seeds | mean cosine | smallest | largest | opposite signs |",
        "|---|---|---|---|---|---|",
    ]
    for regime in REGIMES:
        names = sorted(name for name in found["geometry"] if name.rpartition("-")[0] == regime)
        if names:
            every = [values(name, "cos") for name in names]
            cells = [
                _said([statistics.fmean(one) for one in every]),
                f"{min(map(min, every)):.3f} | {max(map(max, every)):.3f}",
                _said([statistics.fmean(values(name, "sign_conflict")) for name in names]),
            ]
            lines.append(f"| {regime} | {len(names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _negation(found: dict[str, Any]) -> str:
    lines = [
        "## Negation\n",
        "Each task is subtracted; the coefficient is the one with the lowest accuracy on the task whose mean accuracy",
        "on the other tasks is at least 95 % of the pretrained model's. The pretrained model has little accuracy",
        "on any task here (the heads are the fine-tuned ones), so this says little about forgetting.\n",
        "| regime | target: base | target: negated | control: base | control: negated |",
        "|---|---|---|---|---|",
    ]
    for regime in ("full", "attention-1"):
        run = f"negation-{regime}-0"
        cells = []
        for which in ("target", "control"):
            for points in ("base", "tuned"):
                row = _one(found, run, kind="negation", points=points, measure=f"mean {which} accuracy")
                cells.append(f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
        lines.append(f"| {regime} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _methods(found: dict[str, Any]) -> str:
    lines = ["## Merge methods compared\n"]
    for regime in ("full", "attention-1"):
        run = f"methods-{regime}-0"
        rows = _rows(found, run, kind="merging", measure="normalised accuracy")
        lines += [f"`{found[run]['command']}`\n", "| method | normalised accuracy |", "|---|---|"]
        for row in sorted(rows, key=lambda row: -row["mean"]):
            lines.append(f"| {row['points']} | {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |")
        lines.append("")
    return "\n".join(lines)


def _coefficients(found: dict[str, Any]) -> str:
    lines = [
        "## Coefficient search: surrogate, grid, random\n",
        "`mergescope search --coefficients --random`: one coefficient for all tasks from the grid; one of each task's",
        "own by the surrogate; the best of random coefficient vectors, with as many forward passes as the surrogate.",
        "*Kept* is what the search answers: the grid's coefficient, unless the surrogate gains on samples that nothing",
        "was fitted to, with an interval above 0.\n",
        "| run | found by | points | validation | test | surrogate's correlation, mean error | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    wins = []
    for run in sorted(name for name in found if name.startswith(("coefficients-", "groups-", "agreement-"))):
        rows = _rows(found, run, kind="coefficient-search")
        said = {
            (row["points"], row["measure"].split(" ")[0]): row
            for row in rows
            if row["measure"] != "coefficient"
        }
        quality = f"{said['surrogate', 'correlation']['mean']:.3f}, {said['surrogate', 'mean']['mean']:.4f}"
        for way in ("grid", "surrogate", "random"):
            if (way, "validation") not in said:
                continue
            first, test = said[way, "validation"], said[way, "test"]
            kept = "yes" if first.get("parameter") else ""
            lines.append(
                f"| {run} | {way} | {said[way, 'evaluated']['mean']:.0f} | {first['mean']:.4f} | "
                f"{test['mean']:.4f} [{test['low']:.4f}, {test['high']:.4f}] | "
                f"{quality if way == 'surrogate' else ''} | {kept} |"
            )
        if run.startswith("coefficients-full") and ("surrogate", "test") in said:
            wins.append([
                said["surrogate", "test"]["mean"] - said[way, "test"]["mean"] for way in ("grid", "random")
            ])
    lines.append("")
    if len(wins) > 1:
        for place, other in enumerate(("the grid", "random search")):
            text = f"on test data, the surrogate's coefficients are better than those of {other} (full fine-tuning)"
            lines.append(_claim(text, [pair[place] for pair in wins], 4))
    return "\n".join(lines)


def _stitching(found: dict[str, Any], pictures: _Pictures) -> str:
    lines = [
        "## Stitching (CTL Figs 9 and 10)\n",
        "The pretrained network's rest runs on mixed features after every block. In CTL, mixed features of two models",
        "keep much of the accuracy of the stitched single models, on both tasks. Means over the pairs, at lambda = 0.4",
        "(the single models are at 0.8):\n",
        "| regime | after block | mixed | single, own task | not stitched, own task |",
        "|---|---|---|---|---|",
    ]
    shown = []
    for regime in ("full", "attention-1"):
        run = f"stitch-addition-{regime}-0"
        rows = _rows(found, run, measure="accuracy", parameter=0.4)
        layers = list(dict.fromkeys(row["layer"] for row in rows if row.get("layer")))

        def mean(kind: str, layer: str | None, own: bool, rows: Rows = rows) -> float:
            return statistics.fmean(
                row["mean"]
                for row in rows
                if row["kind"] == kind
                and row.get("layer") == layer
                and (not own or row["points"] == row["data"])
            )

        for layer in layers:
            cells = [
                mean("stitch-addition", layer, False),
                mean("stitch-addition-single", layer, True),
                mean("stitch-addition-whole", None, True),
            ]
            number = layer.rpartition(".")[2]
            lines.append(f"| {regime} | {number} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
            if layer == layers[-1]:
                shown.append((regime, cells))
    lines.append("")
    for regime, (mixed, single, whole) in shown:
        lines.append(
            f"- {regime}: after the last block, mixed features have {mixed / single:.0%} of the accuracy of the single "
            f"models stitched alike, and these {single / whole:.0%} of theirs without stitching."
        )
    lines += [
        "",
        pictures(
            "stitch-addition-full-0",
            "stitching-mean",
            "Stitched addition after every block, full fine-tuning",
        ),
        pictures(
            "stitch-negation-full-0",
            "stitching-mean",
            "Stitched negation after every block, full fine-tuning",
        ),
    ]
    return "\n".join(lines)


def _others(found: dict[str, Any]) -> str:
    lines = [
        "## Other families\n",
        "Addition of all tasks of MiniLM (four) and of the ResNet (four pairs of classes):\n",
        "| family and regime | lambda | normalised accuracy | lambda = 1 | average |",
        "|---|---|---|---|---|",
    ]
    for run in found:
        if not run.startswith(("minilm-", "resnet-")):
            continue
        tuned = _tuned(found, run)
        cells = []
        for points in (tuned, "lambda = 1", "average"):
            row = _one(found, run, kind="addition", points=points, measure="normalised accuracy")
            cells.append(f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
        lines.append(f"| {run} | {tuned.split()[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)
