"""What headers and configurations tell: keys, shapes, dtypes, tied heads, architectures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergescope.errors import CheckpointError
from mergescope.merging.findings import ConfigRow, Finding
from mergescope.merging.vocabulary import HEADS, INPUTS
from mergescope.models.architecture import ignored_keys
from mergescope.weights.kinds import copy_of, is_derived, kind_of
from mergescope.weights.point import TensorSpec

MATTERS = re.compile(
    r"(^|\.)(model_type|hidden_size|intermediate_size|num_\w*(layers|heads|experts\w*)|n_(layer|head|embd|inner)s?"
    r"|d_(model|ff|kv)|head_dim|ffn_dim|\w*vocab_size|hidden_(act|activation)\w*|activation\w*|\w*(norm|rms)\w*eps\w*"
    r"|rope\w*(\.\w+)*|rotary\w*|partial_rotary_factor|max_position_embeddings|n_positions|position_embedding_type"
    r"|relative_attention\w*|layer_types|sliding_window\w*|use_sliding_window|\w*softcap\w*|tie_word_embeddings"
    r"|attention_bias|attention_multiplier|\w*(scale|multiplier|scaling)|patch_size|image_size|num_channels"
    r"|projection_dim|type_vocab_size|is_decoder|quantization_config(\.\w+)*|feed_forward_proj|qkv_bias"
    r"|is_gated_act|dense_act_fn|pooling\w*|num_labels)$"
)
"""Keys on which the function of the same weights depends, so that merging over them is doubtful."""

HARMLESS = re.compile(
    r"(^|\.)(_name_or_path|transformers_version|torch_dtype|dtype|use_cache|\w*dropout\w*|\w*drop(_prob)?|_commit_hash"
    r"|gradient_checkpointing|\w*initializer\w*|initializer_range|architectures|id2label(\.\w+)*|label2id(\.\w+)*"
    r"|problem_type|finetuning_task|task_specific_params(\.\w+)*|pretraining_tp|\w*token_id|_attn_implementation\w*"
    r"|output_(attentions|hidden_states)|return_dict|torchscript|auto_map(\.\w+)*|unsloth_\w+|layerdrop)$"
)
"""Keys that say how a model was trained, stored or is labelled."""


def shape_findings(models: Sequence[Any]) -> list[Finding]:
    """Compare keys, shapes and dtypes with the first model's.

    Args:
        models: checkpoints, the base first.

    Returns:
        The differences, tensors of one pattern together.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> a = Checkpoint({f"h.{i}.w": torch.ones(2) for i in range(9)}, name="a")
        >>> b = Checkpoint({"h.0.w": torch.ones(3)}, name="b")
        >>> for finding in shape_findings([a, b]):
        ...     print(finding.topic, finding.message, len(finding.items))
        keys b lacks 8 tensors that a has: h.*.w (8). 8
        shapes The shape of 1 tensor differs between a and b: h.0.w is [2] in a and [3] in b. 1
    """
    first, out = models[0], []
    for model in models[1:]:
        for owner, lacking in ((first, model), (model, first)):
            lost = [key for key in owner.spec if key not in lacking.spec]
            tied = [key for key in lost if _tied(lacking, key)]
            derived = [key for key in lost if is_derived(key, owner.spec[key].shape)]
            copies = [key for key in lost if copy_of(key, owner.spec)]
            missing = [key for key in lost if key not in {*tied, *derived, *copies}]
            unread = ignored_keys(config_of(owner), missing) if missing else []
            missing = [key for key in missing if key not in unread]
            if derived:
                out.append(Finding(
                    "note", "keys", f"{lacking.name} lacks {_count(derived)} of {owner.name}: {grouped(derived)} "
                    "(follows from the configuration, no weight).", tuple(derived),
                ))  # fmt: skip
            if copies:
                out.append(Finding(
                    "note", "keys", f"{owner.name} stores its shared embedding more than once: {', '.join(copies)}.",
                    tuple(copies),
                ))  # fmt: skip
            if unread:
                out.append(Finding(
                    "note", "keys", f"{lacking.name} lacks {_count(unread)} of {owner.name}: {grouped(unread)} (its "
                    "network does not read that).", tuple(unread),
                ))  # fmt: skip
            if tied:
                out.append(Finding(
                    "note", "tied", f"{lacking.name} does not store {', '.join(tied)}, which {owner.name} has: its "
                    "head is tied to the embedding, which stands for it.", tuple(tied),
                ))  # fmt: skip
            if missing:
                out.append(Finding(
                    "error", "keys", f"{lacking.name} lacks {_count(missing)} that {owner.name} has: "
                    f"{grouped(missing)}.", tuple(missing),
                ))  # fmt: skip
        shared = [key for key in first.spec if key in model.spec]
        out += _differing(
            first, model, [key for key in shared if first.spec[key].shape != model.spec[key].shape]
        )
        out += _dtypes(first, model, shared)
    return out


def _differing(first: Any, model: Any, keys: list[str]) -> list[Finding]:
    if not keys:
        return []
    items = tuple(
        f"{key} is {list(first.spec[key].shape)} in {first.name} and {list(model.spec[key].shape)} in {model.name}"
        for key in keys
    )
    told = items[0] if len(keys) == 1 else f"{grouped(keys)}; {items[0]}"
    rows = all(key.endswith((*HEADS, *INPUTS)) for key in keys)
    advice = " Set tokenizer: {source: union} (or base) in a recipe to match rows by token." if rows else ""
    verb = "The shape of 1 tensor differs" if len(keys) == 1 else f"The shapes of {len(keys)} tensors differ"
    return [
        Finding("error", "shapes", f"{verb} between {first.name} and {model.name}: {told}.{advice}", items)
    ]


def _dtypes(first: Any, model: Any, keys: Iterable[str]) -> list[Finding]:
    pairs: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        ours, theirs = (_dtype(source.spec[key]) for source in (first, model))
        if ours != theirs:
            pairs.setdefault((ours, theirs), []).append(key)
    out = []
    for (ours, theirs), found in pairs.items():
        floats = "float" in ours and "float" in theirs
        narrow = "float8" in ours or "float8" in theirs
        out.append(Finding(
            "note" if floats and not narrow else "warning" if floats else "error", "dtypes",
            f"{_count(found).capitalize()} {'is' if len(found) == 1 else 'are'} {ours} in {first.name} and {theirs} in "
            f"{model.name}: {grouped(found)}."
            + ("" if floats else " Weights and integers can't be combined: dequantise the model first."),
            tuple(found),
        ))  # fmt: skip
    return out


def _dtype(spec: TensorSpec) -> str:
    return str(spec.dtype).removeprefix("torch.")


def grouped(keys: Sequence[str], limit: int = 4) -> str:
    """Tensor names with their numbers replaced by ``*``, and how many have each pattern.

    Args:
        keys: the names.
        limit: how many patterns at most; the rest is counted.

    Returns:
        The patterns.

    Example:
        >>> grouped(["h.0.w", "h.1.w", "lm_head.weight"])
        'h.*.w (2), lm_head.weight'
    """
    patterns: dict[str, list[str]] = {}
    for key in keys:
        patterns.setdefault(re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", key), []).append(key)
    told = [
        found[0] if len(found) == 1 else f"{pattern} ({len(found)})" for pattern, found in patterns.items()
    ]
    rest = sum(len(found) for found in list(patterns.values())[limit:])
    return ", ".join(told[:limit]) + (f" and {rest} more" if rest else "")


def _count(keys: Sequence[str]) -> str:
    return "1 tensor" if len(keys) == 1 else f"{len(keys)} tensors"


def _tied(model: Any, key: str) -> bool:
    tied = (config_of(model) or {}).get("tie_word_embeddings", True)
    return bool(tied) and key.endswith(HEADS) and any(name.endswith(INPUTS) for name in model.spec)


def config_of(model: Any) -> dict[str, Any] | None:
    """A model's configuration, or None if it has none that can be read.

    Args:
        model: a checkpoint.

    Returns:
        ``config.json``.
    """
    try:
        found = model.config
    except (CheckpointError, OSError):
        return None
    return found if isinstance(found, dict) else None


def config_table(models: Sequence[Any]) -> list[ConfigRow]:
    """Keys in which the configurations differ; values that only one states count as well.

    Args:
        models: checkpoints.

    Returns:
        Rows, those that matter first.
    """
    tables = [_flat(config_of(model) or {}) for model in models]
    rows = []
    for key in dict.fromkeys(key for table in tables for key in table):
        values = tuple(_shown(table[key]) if key in table else "-" for table in tables)
        if len(set(values)) > 1:
            matters = "yes" if MATTERS.search(key) else "no" if HARMLESS.search(key) else "unknown"
            rows.append(ConfigRow(key, values, matters))
    return sorted(rows, key=lambda row: ("yes", "unknown", "no").index(row.matters))


def config_findings(models: Sequence[Any], rows: Sequence[ConfigRow]) -> list[Finding]:
    """What the configurations' differences mean.

    Args:
        models: checkpoints.
        rows: from [`config_table`][mergescope.merging.differences.config_table].

    Returns:
        The findings.
    """
    out = []
    for model in models:
        try:
            config = model.config
        except (CheckpointError, OSError) as error:
            out.append(Finding("error", "config", f"{model.name}: {error}"))
            continue
        if config is None:
            out.append(
                Finding(
                    "note", "config", f"{model.name} has no config.json, so only its tensors are compared."
                )
            )
        elif not isinstance(config, dict):
            out.append(Finding("error", "config", f"{model.name}: config.json holds no mapping."))
        elif config.get("quantization_config"):
            out.append(Finding(
                "error", "config", f"{model.name} is quantised (its config.json has a quantization_config): merge "
                "models in their original precision.",
            ))  # fmt: skip
    for severity, key, says in (
        ("error", "model_type", "The models have different architectures"),
        ("warning", None, "The configurations differ in what the weights mean"),
    ):
        stated = [row for row in rows if row.matters == "yes" and len(set(row.values) - {"-"}) > 1]
        chosen = [row for row in stated if (row.key == "model_type") == (key is not None)]
        items = tuple(
            f"{row.key}: " + ", ".join(f"{v} in {m.name}" for v, m in zip(row.values, models, strict=True))
            for row in chosen
        )
        if items:
            told = items[0] if len(items) == 1 else f"{', '.join(row.key for row in chosen)}; {items[0]}"
            out.append(Finding(severity, "config", f"{says}: {told}.", items))  # type: ignore[arg-type]
    unsure = [row.key for row in rows if row.matters == "unknown" and len(set(row.values) - {"-"}) > 1]
    if unsure:
        out.append(Finding(
            "warning", "config", f"The configurations differ in keys that are not known here: {', '.join(unsure)}.",
            tuple(unsure),
        ))  # fmt: skip
    return out


def label_findings(models: Sequence[Any]) -> list[Finding]:
    """Compare the classes of the heads' rows, where the configurations name them.

    Args:
        models: checkpoints.

    Returns:
        At most one finding a model, of a head that it shares with one before it: an error if the same classes
        have other numbers there, a warning if they are other classes.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> models = [Checkpoint({"classifier.weight": torch.ones(2, 3)}, name=name) for name in "ab"]
        >>> label_findings(models)  # without a configuration
        []
    """
    out: list[Finding] = []
    before: list[tuple[Any, dict[str, str]]] = []
    for model in models:
        labels = _labels(model)
        found = (_other_classes(model, labels, other, theirs) for other, theirs in before)
        out += [finding for finding in found if finding is not None][:1]
        before.append((model, labels))
    return out


def _labels(model: Any) -> dict[str, str]:
    # Number to class; transformers' own names of classes say nothing.
    found = (config_of(model) or {}).get("id2label")
    labels = {str(number): str(name) for number, name in found.items()} if isinstance(found, dict) else {}
    return labels if any(name != f"LABEL_{number}" for number, name in labels.items()) else {}


def _other_classes(
    model: Any, labels: Mapping[str, str], other: Any, theirs: Mapping[str, str]
) -> Finding | None:
    first, second = ({number: it[number].casefold() for number in it} for it in (theirs, labels))
    wrong = [number for number in first if second.get(number) != first[number]]
    heads = [
        key
        for key, spec in model.spec.items()
        if spec.shape[:1] == (len(labels),)
        and key in other.spec
        and other.spec[key].shape == spec.shape
        and (kind_of(key) == "head" or "classifier" in key)
    ]
    if len(first) != len(second) or not wrong or not heads:
        return None
    told = f"{wrong[0]} is {labels.get(wrong[0])!r} in {model.name} and {theirs[wrong[0]]!r} in {other.name}"
    if sorted(first.values()) == sorted(second.values()):
        return Finding(
            "error", "config", f"{model.name} and {other.name} give the same classes other numbers: {told}. Rows of "
            f"different classes would be averaged in {grouped(heads)}. Bring one model's rows and id2label into the "
            "other's order.", tuple(heads),
        )  # fmt: skip
    return Finding(
        "warning", "config", f"{model.name} and {other.name} have heads of one size for other classes: {told}. A mean "
        f"of their rows stands for neither: {grouped(heads)}.", tuple(heads),
    )  # fmt: skip


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        # transformers 5 writes two things under other names than 4 does.
        name = prefix + {"torch_dtype": "dtype"}.get(key, key).removeprefix("rope_parameters.")
        if isinstance(value, Mapping) and value:
            out |= _flat(value, prefix if key == "rope_parameters" else f"{name}.")
        else:
            out[name] = value
    return out


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    # Digits of a digest tell long values apart that begin alike.
    return text if len(text) <= 60 else f"{text[:40]}… ({hashlib.sha256(text.encode()).hexdigest()[:6]})"
