"""The model card of a merge: front matter that the Hub reads, the recipe, and the parents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergescope._version import __version__
from mergescope.merging.plan import Plan

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
        "base_model": list(plan.models),
        "base_model_relation": "merge",
        "library_name": "transformers" if plan.config is not None else "pytorch",
        "tags": ["merge", "mergescope"],
    }
    licences = {name: str(found["license"]) for name, found in fronts.items() if found.get("license")}
    if licences and len(licences) == len(plan.models) and len(set(licences.values())) == 1:
        source = next(iter(fronts.values()))
        front |= {key: source[key] for key in LICENCE_KEYS if key in source}
    tags = {found.get("pipeline_tag") for found in fronts.values()} - {None}
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
        "| model | commit | content digest | licence |",
        "|---|---|---|---|",
    ]
    for name, model in plan.models.items():
        commit = getattr(model, "commit", None) or "local files"
        role = " (base)" if name == recipe.base_model else ""
        digest = digests.get(name, "not computed")
        lines.append(f"| `{name}`{role} | {commit} | `{digest}` | {licences.get(name, 'not stated')} |")
    lines += ["", f"Seed: {plan.seed}.", *(f"Note: {note}." for note in plan.notes)]
    lines += ["", "## Recipe", "", "```yaml", recipe.text.strip(), "```", ""]
    return "\n".join(lines)


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
    parts = path.read_text(errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
