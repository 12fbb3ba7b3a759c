"""Task heads: what turns a backbone's embedding into classes, and where it came from.

A head is kept apart from the backbone: task vectors and points are about the backbone, and models of
different tasks have different heads (see [`WithHead`][mergescope.models.with_head.WithHead] for both
together). Its *policy* says where its numbers came from:

| policy | weights | changes in training |
|---|---|---|
| ``zero-shot`` | text embeddings of the class names | no |
| ``frozen-random`` | random, from a seed | no |
| ``trained`` | random at first | yes |
| ``given`` | from somebody's checkpoint | no |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mergescope.errors import CheckpointError, MergescopeError, MismatchError, did_you_mean
from mergescope.weights.chunks import all_finite
from mergescope.weights.files import atomic_file
from mergescope.weights.stores import bytes_digest

POLICIES = ("zero-shot", "frozen-random", "trained", "given")

FILE = "head.safetensors"
"""The head's file in a checkpoint directory, beside ``model.safetensors``."""

HEADER = "mergescope.head"
"""The entry of that file's header which says policy, classes, normalisation and digest, as JSON."""


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier on a backbone's embedding ``e``: ``W e + b``, or ``W e / |e|``.

    Attributes:
        policy: one of [`POLICIES`][].
        weight: ``(classes, dim)``.
        classes: their names, in the order of the rows.
        bias: ``(classes,)`` or None.
        normalise: divide the embedding by its length first, as CLIP does.
        digest: SHA-256 (hex) of what the head was made of, for zero-shot heads; else of its content.

    Raises:
        MergescopeError: there is no such policy.
        MismatchError: names and rows differ in number, a name is empty or occurs twice, or weights
            are not finite.

    Example:
        >>> Head("given", torch.zeros(2, 3), ("cat", "dog")).dim
        3
    """

    policy: str
    weight: torch.Tensor
    classes: tuple[str, ...]
    bias: torch.Tensor | None = None
    normalise: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise MergescopeError(
                f"There is no head policy {self.policy!r}.{did_you_mean(self.policy, POLICIES)} Choose one of "
                f"{', '.join(POLICIES)}."
            )
        problems = list(_problems(self))
        if problems:
            raise MismatchError(
                f"This is no head for {len(self.classes)} classes:",
                problems,
                "Make it of the task's own classes.",
            )
        if not self.digest:
            object.__setattr__(self, "digest", _content(self))

    @property
    def dim(self) -> int:
        """The length of the embeddings that it takes."""
        return self.weight.shape[1]

    @property
    def trains(self) -> bool:
        """Whether fine-tuning changes it."""
        return self.policy == "trained"

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name: ``weight``, and ``bias`` if it has one."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})


def _problems(head: Head) -> Iterator[str]:
    if head.weight.ndim != 2 or len(head.weight) != len(head.classes):
        yield f"weight: {list(head.weight.shape)}, expected [{len(head.classes)}, dim]"
    if head.bias is not None and tuple(head.bias.shape) != (len(head.classes),):
        yield f"bias: {list(head.bias.shape)}, expected [{len(head.classes)}]"
    for place, name in enumerate(head.classes):
        if not name.strip():
            yield f"class {place} has an empty name"
        if name in head.classes[:place]:
            yield f"class {place} is called {name!r}, as class {head.classes.index(name)} is"
    for key, value in head.tensors.items():
        if not all_finite(value):
            yield f"{key}: NaN or infinite"


def _content(head: Head) -> str:
    tensors = {key: [list(t.shape), str(t.dtype), bytes_digest(t)] for key, t in head.tensors.items()}
    return content_key(tensors=tensors, classes=head.classes, normalise=head.normalise)


def content_key(**content: Any) -> str:
    """SHA-256 over anything that JSON can say.

    Args:
        content: what counts.

    Returns:
        The key (hex).

    Example:
        >>> content_key(a=1, b="x") == content_key(b="x", a=1) != content_key(a=1, b="y")
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def linear_head(dim: int, classes: Sequence[str], seed: int, policy: str = "trained") -> Head:
    """A random linear head.

    Args:
        dim: length of the embeddings.
        classes: names.
        seed: of the weights: normal with variance 1 / dim; the bias is 0.
        policy: ``"trained"`` or ``"frozen-random"``.

    Returns:
        The head; the same for the same arguments.

    Raises:
        MergescopeError: the policy is another one.

    Example:
        >>> head = linear_head(4, ["cat", "dog"], seed=0)
        >>> head.weight.shape, head.policy
        (torch.Size([2, 4]), 'trained')
    """
    if policy not in ("trained", "frozen-random"):
        raise MergescopeError(
            f"A random head can't be {policy!r}: it is 'trained' or 'frozen-random'. Zero-shot heads are made by "
            "zero_shot_head()."
        )
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(classes), dim, generator=generator) / dim**0.5
    return Head(policy, weight, tuple(classes), torch.zeros(len(classes)))


def require_classes(head: Head, classes: Sequence[str], data: str) -> None:
    """Refuse a head whose classes are not those of the data.

    Args:
        head: the head.
        classes: of the data, in the order of the labels.
        data: what to call the data.

    Raises:
        MismatchError: number or names differ; the first that do are listed.
    """
    wanted = tuple(classes)
    if head.classes == wanted:
        return
    pairs = list(enumerate(zip(head.classes, wanted, strict=False)))
    problems = [
        f"label {n}: {own!r} in the head, {name!r} in {data}" for n, (own, name) in pairs if own != name
    ]
    if len(head.classes) != len(wanted):
        problems.insert(0, f"{len(head.classes)} classes in the head, {len(wanted)} in {data}")
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    raise MismatchError(
        f"The head is not for the classes of {data}:",
        problems[:5] + more,
        "Take the head of this task, or make one.",
    )


def save_head(folder: Path, head: Head) -> Path:
    """Write a head beside a checkpoint.

    Args:
        folder: the checkpoint's directory; made if it is not there.
        head: the head.

    Returns:
        The file.
    """
    said = {
        "policy": head.policy,
        "classes": head.classes,
        "normalise": head.normalise,
        "digest": head.digest,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in head.tensors.items()}
    with atomic_file(folder / FILE) as temporary:
        save_file(tensors, temporary, {HEADER: json.dumps(said)})  # one entry: their order is random
    return folder / FILE


def load_head(folder: Path) -> Head:
    """Read a head.

    Args:
        folder: a directory that [`save_head`][] wrote to.

    Returns:
        The head.

    Raises:
        CheckpointError: there is none, or the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no head: there is no {FILE}. Name a directory that fine-tuning with a head wrote, or make "
            "a head."
        )
    try:
        with safe_open(path, framework="pt") as stream:
            said = json.loads((stream.metadata() or {})[HEADER])
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (no mapping)
        return Head(
            said["policy"], tensors["weight"], tuple(said["classes"]), tensors.get("bias"),
            said["normalise"], said["digest"],
        )  # fmt: skip
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, MergescopeError) as error:
        raise CheckpointError(
            f"{path} can't be read as a head: {type(error).__name__}: {error}. Delete it and make the head again."
        ) from error
