"""The model card of a merge: front matter that the Hub reads, the recipe, and the parents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergescope._version import __version__
from mergescope.merging.plan import Plan
from mergescope.weights.references import parse_model_reference

LICENCE_KEYS = ("license", "license_name", "license_link")


def model_card(plan: Plan, digests: Mapping[str, str]) -> str:
    """Write the card.

    The licence is named if all parents name the same one; otherwise each parent's is listed.

    Args:
        plan: what was merged.
        digests: model reference to content digest.

    Returns:
        Markdown with YAML front matter.
    """
    recipe = plan.recipe
    fronts = {name: front_matter(model) for name, model in plan.models.items()}
    front: dict[str, Any] = {
        "base_model": list(
            dict.fromkeys(id for name, model in plan.models.items() for id in _ids(name, model))
        ),
        "base_model_relation": "merge",
        "library_name": "transformers" if (plan.config or {}).get("architectures") else "pytorch",
        "tags": ["merge", "mergescope"],
    }
    licences = {
        name: found["license"] for name, found in fronts.items() if isinstance(found.get("license"), str)
    }
    if licences and len(licences) == len(plan.models) and len(set(licences.values())) == 1:
        source = next(iter(fronts.values()))
        front |= {key: source[key] for key in LICENCE_KEYS if key in source}
    tags = {tag for found in fronts.values() if isinstance(tag := found.get("pipeline_tag"), str)}
    if len(tags) == 1:
        front["pipeline_tag"] = tags.pop()
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# A merge of {len(plan.models)} models",
        "",
        f"Merged with mergescope {__version__} by the method `{recipe.method.name}` ({recipe.method.source}): "
        f"{recipe.method.summary}",
        "",
        "## Parents",
        "",
        "| model | commit | digest (XXH3-128 of the tensors) | licence |",
        "|---|---|---|---|",
    ]
    for name, model in plan.models.items():
        commit = getattr(model, "commit", None) or "local files"
        role = " (base)" if name == recipe.base_model else ""
        digest = digests.get(name, "not computed")
        lines.append(f"| `{name}`{role} | {commit} | `{digest}` | {licences.get(name, 'not stated')} |")
    lines += ["", f"Seed: {plan.seed}.", *(f"Note: {note}." for note in plan.notes)]
    fence = "```"
    while fence in recipe.text:
        fence += "`"
    lines += ["", "## Recipe", "", f"{fence}yaml", recipe.text.strip(), fence, ""]
    return "\n".join(lines)


def _ids(name: str, model: Any) -> list[str]:
    # The Hub wants ids here, and refuses a card with a path.
    if getattr(model, "commit", None) is None:
        return [model.name]
    parts = parse_model_reference(name)
    return [part for part in (parts.model, parts.lora) if part]


def front_matter(model: Any) -> dict[str, Any]:
    """The YAML front matter of a model's card.

    Args:
        model: a checkpoint.

    Returns:
        Its keys; empty if there is no card or it has none.
    """
    directory = getattr(model, "directory", None)
    path = Path(directory) / "README.md" if directory else None
    if path is None or not path.is_file():
        return {}
    parts = re.match(
        r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", path.read_text("utf-8", "replace"), re.DOTALL
    )
    if parts is None:
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
