"""A LoRA adapter applied to a base, tensor by tensor and rows by rows, as they are asked for.

Nothing is merged beforehand and no merged copy is cached: the checkpoint that results can be
combined, traced and saved like any other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mergescope.errors import CheckpointError
from mergescope.weights.adapters import Adapter, read_adapter
from mergescope.weights.checkpoint import Checkpoint
from mergescope.weights.files import ADAPTER_CONFIG
from mergescope.weights.kinds import kind_of
from mergescope.weights.point import TensorSpec

VOCABULARY_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "spm.model",
    "sentencepiece.bpe.model", "bpe.codes", "tekken.json",
)  # fmt: skip
"""Files that hold a tokenizer's vocabulary, any of which shows that a directory has one of its own."""

_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")
_VOCABULARY = (
    "embed_tokens",
    "wte",
    "shared",
    "word_embeddings",
    "tok_embeddings",
    "lm_head",
    "embed_in",
    "embed_out",
)


class LoraCheckpoint(Checkpoint):
    """A base with a PEFT LoRA adapter applied, read lazily.

    For each adapted weight ``W' = W + s B A`` with ``s = alpha / r``, or ``alpha / sqrt(r)`` for
    rsLoRA; ``B: (out, r)``, ``A: (r, in)``. Embeddings ``(vocabulary, dim)`` and GPT-2's ``Conv1D``
    take the transpose; convolutions ``(out, in, ...)`` have ``A: (r, in, ...)`` and
    ``B: (out, r, 1, ...)``. Sums are formed in float32 (float64 for such a base) for the rows asked
    for, and rounded once to the base's dtype. Biases, ``modules_to_save`` and resized embeddings
    replace the base's tensors.

    Source: LoRA, equation 3 (Hu et al. 2021); rsLoRA (Kalajdzievski 2023); file format: PEFT.

    Args:
        base: the model that the adapter was trained on.
        adapter: a directory that PEFT's ``save_pretrained`` wrote, or a hub id.
        name: what to call it in results; by default ``base+adapter``.
        revision: branch, tag or commit of the adapter's hub id.

    Raises:
        CheckpointError: the adapter is absent, damaged, of a kind that is not supported, or does
            not fit the base; every tensor concerned is named.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapter: str | os.PathLike[str],
        name: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.base = base
        self.adapter: Adapter = read_adapter(adapter, revision)
        short = os.fspath(adapter) if self.adapter.commit else self.adapter.tensors.name
        self._lora = _LoraStore(base, self.adapter, name or f"{base.name}+{short}")
        self._use(self._lora, None)

    @property
    def tokenizer_directory(self) -> Path | None:
        """Where the tokenizer is: with the adapter if it brings one, else with the base."""
        own = self.adapter.directory
        return own if any((own / name).is_file() for name in VOCABULARY_FILES) else self.directory

    @property
    def config(self) -> dict[str, Any] | None:
        """The base's ``config.json``, with the vocabulary size that the adapter changed."""
        config = self.base.config
        size = self._lora.vocabulary
        return config | {"vocab_size": size} if config is not None and size is not None else config

    def reopened(self, source: Path | None = None) -> LoraCheckpoint:
        """Base and adapter opened anew.

        Args:
            source: file or directory of the base; by default where it was.

        Returns:
            A checkpoint of the same name and weights.

        Raises:
            CheckpointError: nothing is there, or no checkpoint.
        """  # noqa: DOC502 (raised by what this calls)
        return LoraCheckpoint(self.base.reopened(source), self.adapter.directory, name=self.name)


class _LoraStore:
    def __init__(self, base: Checkpoint, adapter: Adapter, name: str) -> None:
        self.name = name
        self.directory = base.directory
        self.commit = base.commit
        self.files = (*base.files, *adapter.tensors.files)
        self.metadata = dict(base.metadata)
        settings = hashlib.sha256(json.dumps(dict(adapter.config), sort_keys=True).encode()).hexdigest()
        self.identity = f"lora:{base.identity}+{adapter.tensors.identity}:{settings}"
        self.spec = dict(base.spec)
        self.vocabulary: int | None = None
        self._base, self._adapter = base, adapter
        self._factors: dict[str, _Factors] = {}
        self._whole: dict[str, str] = {}
        self._problems: list[str] = []
        self._match()
        if self._problems:
            raise CheckpointError(
                f"The adapter {adapter.directory} does not fit the base {base.name}"
                + (f" ({base.directory})" if base.directory else "") + ":\n"
                + "\n".join(f"  - {problem}" for problem in self._problems)
                + f"\nUse the base it was trained on ({ADAPTER_CONFIG} names {adapter.base or 'none'})."
            )  # fmt: skip

    def _match(self) -> None:
        if (self._base.config or {}).get("quantization_config"):
            self._problems.append("the base is quantised: use it in its original precision")
            return
        for path, stored in self._adapter.whole.items():
            key = self._find([path])
            if key is None:
                if kind_of(path) == "head" and not path.endswith("lm_head.weight"):
                    self._problems.append(
                        f"{stored}: the head that was trained with the adapter, and the base has none. Save the base "
                        "with such a head (AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=N)"
                        ".save_pretrained(DIR) or the like) and give DIR as the base"
                    )
                elif not self._is_tied_copy(path, stored):
                    self._problems.append(f"{stored}: matches no tensor of the base")
                continue
            have, want = self._adapter.tensors.spec[stored], self._base.spec[key]
            resized = (
                have.shape[1:] == want.shape[1:]
                and path.split(".")[-2:-1]
                and path.split(".")[-2] in _VOCABULARY
            )
            if have.shape != want.shape and not resized:
                self._problems.append(
                    f"{stored}: {list(have.shape)}, but the base's {key} is {list(want.shape)}"
                )
                continue
            if have.shape != want.shape:
                self.vocabulary = have.shape[0]
            self.spec[key] = TensorSpec(have.shape, want.dtype)
            self._whole[key] = stored
        for module, (a, b) in self._adapter.factors.items():
            packed = self._find([f"{module}.in_proj_weight"])
            key = self._find([f"{module}.weight", module])
            if packed is not None:
                # PEFT trains and merges out_proj there with the product added twice (its PR 3774), so
                # what the factors mean depends on the version that trained them.
                self._problems.append(f"{a}, {b}: adapters on torch's MultiheadAttention are not supported")
                continue
            if key is None:
                hint = (
                    " (the base ties it to its embedding and has no such tensor)"
                    if "lm_head" in module
                    else ""
                )
                self._problems.append(f"{a}, {b}: {module} matches no weight of the base{hint}")
            elif key in self._factors:
                self._problems.append(f"{a}, {b}: {key} is adapted twice")
            else:
                self._fit(module, key, a, b)

    def _find(self, names: Iterable[str]) -> str | None:
        # As transformers does with its base_model_prefix, which the files don't tell.
        for name in names:
            if name in self._base.spec:
                return name
        for name in names:
            shorter = name.partition(".")[2]
            if shorter in self._base.spec:
                return shorter
            longer = [
                key
                for key in self._base.spec
                if key.endswith("." + name) and key.count(".") == name.count(".") + 1
            ]
            if len(longer) == 1:
                return longer[0]
        return None

    def _is_tied_copy(self, path: str, stored: str) -> bool:
        # A tied head is saved beside the embedding; it changes nothing if it holds the same numbers.
        tensors = self._adapter.tensors
        return path.endswith("lm_head.weight") and any(
            other != stored and tensors.spec[other].shape == tensors.spec[stored].shape
            and torch.equal(tensors.tensor(other), tensors.tensor(stored))
            for other in self._adapter.whole.values()
        )  # fmt: skip

    def _fit(self, module: str, key: str, a: str, b: str) -> None:
        spec = self.spec[key]
        first, second = self._adapter.tensors.spec[a].shape, self._adapter.tensors.spec[b].shape
        rank = self._adapter.rank(module)
        told = f"A {list(first)} and B {list(second)}"
        if not spec.dtype.is_floating_point:
            self._problems.append(
                f"{a}, {b}: the base's {key} is {spec}, quantised; use its original precision"
            )
            return
        if len(spec.shape) > 2 and len(first) > 2 and first[1] != spec.shape[1]:
            self._problems.append(f"{a}, {b}: grouped convolutions are not supported ({told}, {key} {spec})")
            return
        if len(first) < 2 or len(second) < 2 or first[0] != rank or second[1] != rank:
            self._problems.append(f"{a}, {b}: {told} disagree with the rank {rank} in {ADAPTER_CONFIG}")
            return
        straight = (second[0], *first[1:]) == spec.shape and all(size == 1 for size in second[2:])
        turned = len(first) == len(second) == 2 and (first[1], second[0]) == spec.shape
        if module in self._adapter.embeddings:
            transposed = straight = turned
        else:
            transposed = turned and (not straight or self._is_conv1d(module))
        if not straight and not turned:
            self._problems.append(f"{a}, {b}: {told} don't make the base's {key} {list(spec.shape)}")
            return
        self._factors[key] = _Factors(a, b, self._adapter.scale(module), transposed)

    def _is_conv1d(self, module: str) -> bool:
        # Of a square weight the shape does not tell; PEFT's option follows the last layer it saw.
        kind = (self._base.config or {}).get("model_type")
        if kind in _CONV1D_TYPES:
            return module.rpartition(".")[2] in _CONV1D_NAMES
        return bool(self._adapter.config.get("fan_in_fan_out"))

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor with the adapter applied.

        Args:
            key: its name.

        Returns:
            The tensor, in the base's dtype.
        """
        shape = self.spec[key].shape
        return self.rows(key, 0, shape[0]) if shape else self._plain(key)

    def _plain(self, key: str) -> torch.Tensor:
        stored = self._whole.get(key)
        whole = self._base.tensor(key) if stored is None else self._adapter.tensors.tensor(stored)
        return whole.to(self.spec[key].dtype)

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of one tensor with the adapter applied.

        Args:
            key: its name.
            start: first row.
            stop: one past the last.

        Returns:
            The rows, in the base's dtype.
        """
        stored, dtype = self._whole.get(key), self.spec[key].dtype
        adapted = self._adapter.tensors
        rows = self._base.rows(key, start, stop) if stored is None else adapted.rows(stored, start, stop)
        factors = self._factors.get(key)
        if factors is None:
            return rows.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if factors.transposed:
            left = adapted.tensor(factors.a)[:, start:stop].T.to(wide)
            right = adapted.tensor(factors.b).T.to(wide)
        else:
            left = adapted.rows(factors.b, start, stop).flatten(1).to(wide)
            right = adapted.tensor(factors.a).flatten(1).to(wide)
        total = torch.addmm(rows.to(wide).flatten(1), left, right, alpha=factors.scale)
        return total.view(rows.shape).to(dtype)


class _Factors:
    """Which two tensors make an addition to a weight, and how."""

    def __init__(self, a: str, b: str, scale: float, transposed: bool) -> None:
        self.a, self.b, self.scale, self.transposed = a, b, scale, transposed
