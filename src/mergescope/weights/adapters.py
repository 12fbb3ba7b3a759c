"""PEFT LoRA adapters on disk: their configuration, and which tensor is what."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergescope.documents import read_settings
from mergescope.errors import CheckpointError
from mergescope.weights.checkpoint import Checkpoint
from mergescope.weights.files import ADAPTER_CONFIG, find_directory

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

HARMLESS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora", "velora_config",
})  # fmt: skip
"""Options that are applied here, or that say only how or where the adapter was trained."""

REFUSED = {
    "use_dora": "DoRA rescales the columns of the merged weight",
    "use_qalora": "QA-LoRA pools the inputs of A",
    "lora_bias": "a bias on B changes the base's bias",
    "alora_invocation_tokens": "activated LoRA acts on some tokens only, so no merged weight equals it",
    "trainable_token_indices": "single embedding rows are trained beside the factors",
    "megatron_config": "tensor-parallel layers are split over devices",
    "layer_replication": "layers are repeated, so the base has other layers",
    "target_parameters": "the files don't say which parameter each pair of factors belongs to",
}
"""Options that change what the merged weight is."""

PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base's weights as they are (PiSSA, OLoRA, CorDA ... don't)."""

_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.default)?(?:\.weight)?")
_ROOT = "base_model.model."
_FORMS = (
    ("base_model_name_or_path", str, "path or id"), ("revision", str, "revision"),
    ("rank_pattern", dict, "mapping"), ("alpha_pattern", dict, "mapping"),
)  # fmt: skip
_SLOW = re.compile(r"\)[*+{]")
"""A repeated group: some take time that doubles with each letter of a name."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, its tensors unread.

    Attributes:
        directory: where it is.
        commit: the hub commit, if it came from a hub.
        tensors: what it stores.
        config: ``adapter_config.json``.
        factors: module path to the keys of ``(A, B)``.
        embeddings: modules whose factors are those of an embedding.
        whole: parameter path to the key of a tensor that replaces the base's.
    """

    directory: Path
    commit: str | None
    tensors: Checkpoint
    config: Mapping[str, Any]
    factors: dict[str, tuple[str, str]] = field(default_factory=dict)
    embeddings: frozenset[str] = frozenset()
    whole: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str | None:
        """The base that the adapter was trained on, as its configuration names it."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def base_revision(self) -> str | None:
        """That base's revision."""
        return self.config.get("revision") or None

    def rank(self, module: str) -> int:
        """The rank that the configuration gives a module.

        Args:
            module: its path in the network.

        Returns:
            ``rank_pattern``'s first match, else ``r``.
        """
        return int(self._pattern("rank_pattern", module, self.config.get("r", 8)))

    def scale(self, module: str) -> float:
        """The factor before ``B @ A``: ``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA.

        Source: LoRA, 4.1 (Hu et al. 2021); rsLoRA (Kalajdzievski 2023).

        Args:
            module: its path in the network.

        Returns:
            The scale.
        """
        alpha = float(self._pattern("alpha_pattern", module, self.config.get("lora_alpha", 8)))
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _pattern(self, name: str, module: str, default: Any) -> Any:
        # PEFT's rule: a key is a regular expression for the end of the path, after a dot or whole.
        for pattern, value in (self.config.get(name) or {}).items():
            try:
                found = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise CheckpointError(
                    f"{self.directory / ADAPTER_CONFIG}: the {name} key {pattern!r} is no regular "
                    f"expression: {error}."
                ) from error
            if found:
                return value
        return default


def read_adapter(source: str | os.PathLike[str], revision: str | None = None) -> Adapter:
    """Read an adapter's configuration and sort its tensors by what they are.

    Args:
        source: a PEFT directory or a hub id.
        revision: branch, tag or commit of a hub id.

    Returns:
        The adapter.

    Raises:
        CheckpointError: it is not there, no LoRA, or of a kind that is not supported; all reasons
            are named.
    """
    directory, commit = find_directory(source, revision)
    config = _read_config(directory)
    path = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{directory} has {ADAPTER_CONFIG}, but no {' or '.join(WEIGHTS)}. The download or save is "
            "incomplete: make it again."
        )
    tensors = Checkpoint(path, name=directory.resolve().name)
    return _sorted_by_role(Adapter(directory, commit, tensors, config), path)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{directory} is no PEFT adapter: it has no {ADAPTER_CONFIG}. Expected a directory that "
            "PEFT's save_pretrained wrote."
        )
    config = read_settings(path)
    problems = [
        f"{name}: {config[name]!r:.60} is no {what}"
        for name, kinds, what in _FORMS
        if config.get(name) is not None and not isinstance(config[name], kinds)
    ]
    kind = config.get("peft_type")
    if kind != "LORA":
        problems.append(f"peft_type {kind!r}: only 'LORA' adds a product of two matrices to a weight")
    problems += [f"{name}: {why}" for name, why in REFUSED.items() if config.get(name)]
    if kind == "LORA":
        problems += [
            f"{name}: not known here, and it may change what the adapter means"
            for name, value in config.items()
            if value and name not in HARMLESS and name not in REFUSED
        ]
    init = config.get("init_lora_weights")
    if init not in PLAIN_INITS:
        problems.append(
            f"init_lora_weights {init!r}: the base's weights were changed too. Convert the adapter with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    patterns = {name: _mapping(config.get(name)) for name in ("rank_pattern", "alpha_pattern")}
    problems += [
        f"{name}: the key {key!r:.100} repeats too much to be tried on names; write it without repeated groups"
        for name, given in patterns.items()
        for key in given
        if _SLOW.search(key) or len(re.findall(r"[*+{]", key)) > 3
    ]
    ranks = {"r": config.get("r", 8), **patterns["rank_pattern"]}
    problems += [
        f"{name}: rank {r!r} is no positive integer" for name, r in ranks.items() if not _positive(r)
    ]
    alphas = {"lora_alpha": config.get("lora_alpha", 8), **patterns["alpha_pattern"]}
    problems += [
        f"{name}: alpha {a!r} is no finite number" for name, a in alphas.items()
        if isinstance(a, bool) or not isinstance(a, (int, float)) or not abs(a) < 1e30
    ]  # fmt: skip
    if problems:
        raise CheckpointError(
            f"{path} describes an adapter that can't be applied here:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + "\nMerge it where it was made (PEFT's merge_and_unload) and use the full model."
        )
    return config


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _sorted_by_role(adapter: Adapter, path: Path) -> Adapter:
    parts: dict[str, dict[str, str]] = {}
    embeddings, unknown = set(), []
    for key in adapter.tensors.keys():  # noqa: SIM118 (a checkpoint is no mapping)
        name = key.removeprefix(_ROOT)
        found = _FACTOR.fullmatch(name)
        if found:
            module = _unwrapped(found[1])
            role = found[2].replace("embedding_", "")
            if role in parts.setdefault(module, {}):
                unknown.append(f"{key}: a second {role} for {module}")
            parts[module][role] = key
            if "embedding" in found[2]:
                embeddings.add(module)
        elif "lora_" in name or "trainable_tokens" in name:
            unknown.append(f"{key}: a part of an adapter variant that is not supported")
        elif ".original_module." not in name:  # bias="all" also saves that of the replaced module
            adapter.whole[_unwrapped(name)] = key
    unknown += [
        f"{next(iter(held.values()))}: {'lora_B' if 'lora_A' in held else 'lora_A'} is missing beside it"
        for held in parts.values()
        if len(held) < 2
    ]
    if unknown:
        raise CheckpointError(
            f"{path} has tensors that can't be applied:\n" + "\n".join(f"  - {line}" for line in unknown)
            + "\nMerge it where it was made (PEFT's merge_and_unload) and use the full model."
        )  # fmt: skip
    adapter.factors.update({module: (held["lora_A"], held["lora_B"]) for module, held in parts.items()})
    return Adapter(
        adapter.directory, adapter.commit, adapter.tensors, adapter.config, adapter.factors,
        frozenset(embeddings), adapter.whole,
    )  # fmt: skip


def _unwrapped(name: str) -> str:
    # PEFT's wrappers put these between a module and what it holds.
    return re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.|$)", "", name)
