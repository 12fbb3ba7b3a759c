"""The families of ``mergeability.py`` that vary what those of ``families.py`` hold fixed.

- **lr**: the ViT's fine-tuning at a third and at three times the learning rate;
- **pretrained 0, 1, 3 epochs**: the same ViT fine-tuned from bases that saw less of the mixture, or nothing;
- **minilm-lr**: MiniLM at a fifth of the learning rate.

Four tasks each, by ``mergescope finetune`` as in ``families.py``, which has to have made its own before. About half an
hour on one core; what is there already is not made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from families import finetune

TASKS = ("greek-upper", "hebrew", "fashion", "digits")
"""Tasks of the ViT's further families."""

EPOCHS = {"vit-pre0": 0, "vit-pre1": 1, "vit-pre3": 3}
"""Families and the epochs that their base was pretrained; those of ``families.py`` were pretrained for 12."""

LR = 3e-4
"""Learning rate of full fine-tuning in ``families.py``."""

EXTRA = ("vit-lr", *EPOCHS, "minilm-lr")
"""The families that this makes."""


def train(work: Path) -> None:
    """Make the families.

    Args:
        work: where ``families.py`` made its own, with the YAML files beside them.
    """
    usual = _few(_read(work / "vit.yaml"))
    rates = {
        "full-low": {"regime": "full", "recipe": {"lr": LR / 3}},
        "full-high": {"regime": "full", "recipe": {"lr": LR * 3}},
        "attention-high": {"regime": "attention-1", "recipe": {"lr": LR * 9}},
    }
    finetune({**usual, "regimes": rates}, work / "vit-lr")
    kept = {label: usual["regimes"][label] for label in ("full", "attention-1")}
    for name, epochs in EPOCHS.items():
        base = _base(work, epochs)
        finetune({**usual, "base": str(base), "regimes": kept}, work / name)
    text = _read(work / "minilm.yaml")
    low = {"full-low": {"regime": "full", "recipe": {"lr": 1e-5}}}
    finetune({**text, "regimes": low}, work / "minilm-lr")


def _base(work: Path, epochs: int) -> Path:
    if not epochs:
        return work / "vit-start"
    pretraining = _read(work / "vit-base.yaml")
    recipe = {**pretraining["recipe"], "epochs": epochs}
    out = work / f"vit-base{epochs}"
    finetune({**pretraining, "recipe": recipe}, out)
    return out / "full" / "mixture"


def _few(family: dict[str, Any]) -> dict[str, Any]:
    return {**family, "tasks": {name: family["tasks"][name] for name in TASKS}}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SystemExit(f"{file} is missing: run benchmarks/families.py with the same --work first.")
    return dict(yaml.safe_load(file.read_text()))
