"""What a model's outputs say about labels, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergescope.documents import read_settings
from mergescope.errors import DataError

CLASSES, TOKENS, NOTHING = "classes", "tokens", "none"

OWN_NETS = "mergescope-"
"""How the model types of this package's own networks begin."""

_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForImageClassificationWithTeacher")
_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Head:
    """What a model's outputs can be compared with.

    Attributes:
        target: ``"classes"`` (its outputs are logits of classes), ``"tokens"`` (of next tokens), or
            ``"none"``: it gives an embedding, or its outputs mean something else, and comparing
            them with class labels would give numbers without meaning.
        classes: how many classes, if that is its target.
        label2id: names of classes to numbers, if the configuration has them.
    """

    target: str = NOTHING
    classes: int | None = None
    label2id: Mapping[str, int] | None = None


def read_config(directory: Path) -> dict[str, Any]:
    """The ``config.json`` of a model.

    Args:
        directory: the model's.

    Returns:
        Its content; empty if there is none.

    Raises:
        DataError: it is not valid JSON.
    """  # noqa: DOC502 (raised by what this calls)
    path = directory / "config.json"
    if not path.is_file():
        return {}
    return read_settings(path, refused=DataError)


def head_of(config: Mapping[str, Any], kind: str) -> Head:
    """What the outputs of a model are, by its architecture.

    Args:
        config: its configuration.
        kind: of the model, as for [`load_processor`][mergescope.data.load_processor].

    Returns:
        The head.

    Example:
        >>> head_of({"architectures": ["GPT2LMHeadModel"]}, "decoder")
        Head(target='tokens', classes=None, label2id=None)
        >>> head_of({"architectures": ["BertForSequenceClassification"]}, "encoder").classes
        2
    """
    if str(config.get("model_type", "")).startswith(OWN_NETS):
        sizes = config.get("sizes") or [None]
        return Head(CLASSES, config.get("classes", sizes[-1]))
    architecture = str((config.get("architectures") or [""])[0])
    if kind == "decoder" and architecture.endswith(_CAUSAL):
        return Head(TOKENS)
    other = config.get("problem_type") in {"regression", "multi_label_classification"}
    if not architecture.endswith(_CLASSIFIERS) or other:
        return Head()
    # transformers writes neither where a model has its default of two classes.
    classes = len(config.get("id2label") or ()) or config.get("num_labels") or 2
    return Head(CLASSES, classes, config.get("label2id")) if classes > 1 else Head()
