"""The model card of a fine-tune: where it comes from, how it was trained, what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergescope._version import __version__
from mergescope.merging.card import front_lines
from mergescope.weights import Checkpoint

SHOWN = ("optimizer", "lr", "batch", "schedule", "warmup", "weight_decay", "label_smoothing", "precision")
"""Settings of a recipe that a card tells; those that are 0, "no" or unset are left out."""

LINEARIZED = (
    "It was trained in the network linearised around its base, and is meant to be run there (`mergescope evaluate "
    "--linearized`). As an ordinary network it is another model."
)
"""What is said of a regime whose models others run differently."""


def fine_tune_card(record: Mapping[str, Any], base: Checkpoint, config: Mapping[str, Any] | None) -> str:
    """Write the card.

    The base's licence goes with the fine-tune, so that the card of a merge can name it.

    Args:
        record: what ``finetune.yaml`` holds.
        base: the pretrained checkpoint.
        config: ``config.json``, or None.

    Returns:
        Markdown with YAML front matter. It names no directory.
    """
    task, regime, recipe = record["task"], record["regime"], record["recipe"]
    head, steps = record["head"], record["steps"]
    told = (f"{name} {recipe[name]}" for name in SHOWN if recipe.get(name) not in (None, 0, "no"))
    commit = f"commit {base.commit}" if base.commit else "local files"
    beside = "" if head is None else f"; the task's head ({head}) is in `head.safetensors`"
    samples = ", ".join(f"{count:,} {part}" for part, count in task["samples"].items())
    lines = [
        *front_lines(
            "finetune",
            {record["base"]["reference"]: base},
            config,
            **({} if head is None else {"pipeline_tag": None}),
        ),
        f"# {base.name}, fine-tuned on {task['name']}",
        "",
        f"Fine-tuned with mergescope {__version__} in the regime `{regime['name']}`, which trained "
        f"{regime['trained_parameters']:,} parameters. `model.safetensors` has the base's keys, so it merges with "
        f"other fine-tunes of that base{beside}.",
        *(["", LINEARIZED] if regime["name"] == "linearized" else []),
        "",
        "| | |",
        "|---|---|",
        f"| base | {base.name} ({commit}, digest `{base.digest}`) |",
        f"| samples | {samples} |",
        f"| training | {steps:,} step{'s' * (steps != 1)}: {', '.join(told)} |",
        f"| seed | {record['seed']} |",
        "",
    ]
    if record["results"]:
        lines += ["| split | loss | accuracy |", "|---|---|---|"]
        lines += [
            f"| {part} | {found['loss']:.4f} | {found['accuracy']:.4f} |"
            for part, found in record["results"].items()
        ]
        lines.append("")
    lines += ["All settings are in `finetune.yaml`.", ""]
    return "\n".join(lines)
