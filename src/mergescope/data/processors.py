"""How a model wants its data: its tokenizer or image preprocessor, found in its directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergescope.data.heads import OWN_NETS, head_of, read_config
from mergescope.data.pictures import ImageProcessor, from_net_config, from_transformers
from mergescope.data.tokens import TextProcessor
from mergescope.documents import DocumentError, read_json
from mergescope.errors import DataError

VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "source.spm", "tekken.json", "tokenizer.model.v3",
)  # fmt: skip
"""Files that hold a tokenizer's vocabulary."""

_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_NO_LIMIT = 10**9
"""Tokenizers without a limit say 10^30."""


def load_processor(
    model_directory: str | os.PathLike[str],
    kind: str,
    *,
    files: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> TextProcessor | ImageProcessor:
    """The tokenizer or image preprocessor of a model, from local files.

    Args:
        model_directory: with the model's ``config.json``.
        kind: of the model: ``"image"``, ``"encoder"``, ``"decoder"``, ``"encoder-decoder"`` or
            ``"plain"`` (see [`kind_of_model`][mergescope.models.features.kind_of_model]).
        files: another directory that has the tokenizer or preprocessor.
        config: the model's configuration, where it is not the directory's (an adapter may enlarge the vocabulary).

    Returns:
        What [`encode`][mergescope.data.encode] needs.

    Raises:
        DataError: there is no tokenizer or preprocessor, or it can't be loaded.
    """
    directory = Path(model_directory).expanduser()
    config = config or read_config(directory)
    if str(config.get("model_type", "")).startswith(OWN_NETS):
        prepare, channels = from_net_config(config)
        return ImageProcessor(prepare, channels, head_of(config, kind), directory)
    source = directory if files is None else Path(files).expanduser()
    if kind == "image":
        return _image_processor(source, config)
    if kind == "plain":
        raise DataError(
            f"{directory} holds no model of transformers or mergescope, so how it wants its data is not known. Make "
            "the batches yourself: tensors, pairs (inputs, labels) or mappings of model arguments."
        )
    return _text_processor(source, kind, config)


def _image_processor(source: Path, config: Mapping[str, Any]) -> ImageProcessor:
    import transformers

    if not any((source / name).is_file() for name in _PREPROCESSORS):
        raise DataError(
            f"{source} has no {_PREPROCESSORS[0]}, so the size and normalisation of images are not known. Copy it "
            "there from the model that this one was fine-tuned from."
        )
    # Both need no torchvision; transformers 5 deprecates the first.
    old = int(transformers.__version__.split(".")[0]) < 5
    backend: dict[str, Any] = {"use_fast": False} if old else {"backend": "pil"}
    try:
        loaded: Any = transformers.AutoImageProcessor.from_pretrained(
            str(source), local_files_only=True, trust_remote_code=False, **backend
        )
    except Exception as error:  # transformers raises many kinds
        raise DataError(
            f"The image preprocessor in {source} can't be loaded: {_first_line(error)}. Copy {_PREPROCESSORS[0]} "
            "from the model that this one was fine-tuned from."
        ) from error
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    mean = getattr(loaded, "image_mean", None)
    channels = config.get("num_channels") or vision.get("num_channels") or len(mean or (0, 0, 0))
    if channels not in (1, 3):
        raise DataError(
            f"The model of {source} takes images of {channels} channels; only grey (1) and RGB (3) can be made."
        )
    return ImageProcessor(from_transformers(loaded), channels, head_of(config, "image"), source)


def _text_processor(source: Path, kind: str, config: Mapping[str, Any]) -> TextProcessor:
    tokenizer = load_tokenizer(source)
    notes: tuple[str, ...] = ()
    if tokenizer.pad_token_id is None:
        end = tokenizer.eos_token
        padding = "token 0" if end is None else f"its end token {end!r}"
        notes = (f"the tokenizer has no padding token: {padding} pads, left out by the attention mask",)
    length = tokenizer.model_max_length
    return TextProcessor(
        tokenizer,
        head_of(config, kind),
        kind,
        source,
        length=int(length) if length is not None and length < _NO_LIMIT else None,
        positions=_positions(config),
        vocabulary=_vocabulary(config),
        padding=padding_token(config),
        notes=notes,
    )


def load_tokenizer(directory: str | os.PathLike[str]) -> Any:
    """The tokenizer of a directory, from its local files.

    Args:
        directory: with the tokenizer's files.

    Returns:
        A tokenizer of transformers, which cuts texts off at their end.

    Raises:
        DataError: there is none, or it can't be loaded.
    """
    source = Path(directory).expanduser()
    # transformers 5 makes a tokenizer of five special tokens where there is no vocabulary.
    if not any((source / name).is_file() for name in VOCABULARIES) and not _needs_no_vocabulary(source):
        raise DataError(
            f"There is no tokenizer in {source} (looked for {', '.join(VOCABULARIES[:4])} and the like). Pass the "
            "directory of one with --tokenizer DIR, for example that of the base model."
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise DataError(
            f"The tokenizer in {source} can't be loaded: {_first_line(error)}. Fetch its files again, or pass the "
            "directory of another with --tokenizer DIR."
        ) from error
    tokenizer.truncation_side = "right"  # else prompts, which come first, would be cut in part
    return tokenizer


def _needs_no_vocabulary(source: Path) -> bool:
    path = source / "tokenizer_config.json"
    try:
        return path.is_file() and read_json(path).get("tokenizer_class") in _BYTES
    except (DocumentError, AttributeError):  # told by what loads the tokenizer
        return False


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _positions(config: Mapping[str, Any]) -> int | None:
    # T5 takes any length; MPNet has learned positions beside its relative ones.
    if "relative_attention_num_buckets" in config and config.get("max_position_embeddings") is None:
        return None
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name in ("max_position_embeddings", "n_positions"):
            if isinstance(part.get(name), int) and part[name] > 0:
                # RoBERTa and its kin count from 2, and say 514 where 512 tokens fit.
                return int(part[name]) - (2 if part[name] % 64 == 2 else 0)
    return None


def padding_token(config: Mapping[str, Any]) -> int | None:
    """The token that a model takes for padding, by its configuration: classifying decoders look for it.

    Args:
        config: of the model.

    Returns:
        Its number; that of the end token where none is named; None if neither is.

    Example:
        >>> padding_token({"pad_token_id": None, "eos_token_id": [2, 7]})
        2
    """
    text = config.get("text_config")
    for name in ("pad_token_id", "eos_token_id"):
        for part in (config, text if isinstance(text, dict) else {}):
            found = part.get(name)
            found = found[0] if isinstance(found, list) and found else found
            if isinstance(found, int) and found >= 0:
                return found
    return None


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    for part in (config, config.get("text_config"), config.get("encoder")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None
