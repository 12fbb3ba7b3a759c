"""The model card of a merge: front matter that the Hub reads, the recipe, and the parents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergescope._version import __version__
from mergescope.documents import DocumentError, load_yaml
from mergescope.merging.plan import Plan
from mergescope.weights.references import parse_model_reference

LICENCE_KEYS = ("license", "license_name", "license_link")

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def model_card(plan: Plan, digests: Mapping[str, str]) -> str:
    """Write the card.

    The licence is named if all parents, adapters too, name the same one; otherwise each parent's is listed.

    Args:
        plan: what was merged.
        digests: model reference to content digest.

    Returns:
        Markdown with YAML front matter.
    """
    recipe = plan.recipe
    lines = [
        *front_lines("merge", plan.models, plan.config),
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
        stated = " + ".join(dict.fromkeys(map(_told, _licences(model))))
        lines.append(f"| `{name}`{role} | {commit} | `{digest}` | {stated} |")
    lines += ["", f"Seed: {plan.seed}.", *(f"Note: {note}." for note in plan.notes)]
    text, fence = recipe.text_with_seed(plan.seed).strip(), "```"
    while fence in text:
        fence += "`"
    lines += ["", "## Recipe", "", f"{fence}yaml", text, fence, ""]
    return "\n".join(lines)


def front_lines(
    relation: str, parents: Mapping[str, Any], config: Mapping[str, Any] | None, **more: Any
) -> list[str]:
    """The front matter of a card: what the Hub shows of a model that was made of others.

    The licence is named if all parents, adapters too, name the same one, and so is the pipeline.

    Args:
        relation: ``"merge"`` or ``"finetune"``.
        parents: reference to opened model.
        config: ``config.json``, or None.
        **more: further keys; None takes one out.

    Returns:
        Lines, with an empty one at the end.
    """
    front: dict[str, Any] = {
        "base_model": list(dict.fromkeys(id for name, model in parents.items() for id in _ids(name, model))),
        "base_model_relation": relation,
        "library_name": "transformers" if (config or {}).get("architectures") else "pytorch",
        "tags": ["merge", "mergescope"] if relation == "merge" else ["mergescope"],
    }
    first, *others = (licence for model in parents.values() for licence in _licences(model))
    same = all(it.get(key) == first.get(key) for it in others for key in ("license", "license_name"))
    if first and same:  # a link may be each parent's own
        front |= {key: value for key, value in first.items() if all(it.get(key) == value for it in others)}
    fronts = [front_matter(getattr(model, "directory", None)) for model in parents.values()]
    tags = {tag for found in fronts if isinstance(tag := found.get("pipeline_tag"), str)}
    if len(tags) == 1:
        front["pipeline_tag"] = tags.pop()
    front = {key: value for key, value in {**front, **more}.items() if value is not None}
    return ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", ""]


def _licences(model: Any) -> list[dict[str, Any]]:
    # A model's, and that of its adapter; empty where none is stated.
    parts = [model, *([adapter] if (adapter := getattr(model, "adapter", None)) is not None else [])]
    fronts = [front_matter(getattr(part, "directory", None)) for part in parts]
    return [
        {key: front[key] for key in LICENCE_KEYS if key in front}
        if isinstance(front.get("license"), str)
        else {}
        for front in fronts
    ]


def _told(licence: Mapping[str, Any]) -> str:
    stated, name = licence.get("license", "not stated"), licence.get("license_name")
    return f"{stated} ({name})" if isinstance(name, str) else str(stated)


def _ids(reference: str, model: Any) -> list[str]:
    # The Hub wants ids here, and refuses a card with a path.
    adapter = getattr(model, "adapter", None)
    if adapter is None:
        return _origin(model, model.name, model.config)
    lora = parse_model_reference(reference).lora if adapter.commit else None
    return [
        *_origin(model.base, model.base.name, model.base.config),
        *_origin(adapter, lora or adapter.tensors.name, None),
    ]


def _origin(files: Any, name: str, config: Mapping[str, Any] | None) -> list[str]:
    # Of local files, the ids that their configuration or card says they come from, else their name.
    if files.commit is not None:
        return [name]
    stated = front_matter(files.directory).get("base_model")
    for said in ([(config or {}).get("_name_or_path")], stated if isinstance(stated, list) else [stated]):
        ids = [text for text in said if isinstance(text, str) and _HUB_ID.fullmatch(text)]
        if ids and not any(Path(text).exists() for text in ids):
            return ids
    return [name]


def front_matter(directory: Path | None) -> dict[str, Any]:
    """The YAML front matter of a model's card.

    Args:
        directory: the model's.

    Returns:
        Its keys; empty if there is no card or it has none.
    """
    path = directory / "README.md" if directory else None
    if path is None or not path.is_file():
        return {}
    parts = re.match(
        r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", path.read_text("utf-8", "replace"), re.DOTALL
    )
    if parts is None:
        return {}
    try:
        found = load_yaml(parts[1])
    except DocumentError:
        return {}
    return found if isinstance(found, dict) else {}
