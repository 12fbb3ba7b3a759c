"""What network a model is, from its configuration alone: no weights are read or needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mergescope.documents import DocumentError, read_json
from mergescope.errors import CheckpointError, near_paths
from mergescope.models.nets import NETS, net_from_config
from mergescope.models.plausible import require_plausible
from mergescope.models.quiet import quiet_transformers
from mergescope.weights import Checkpoint
from mergescope.weights.files import PICKLES


@dataclass(frozen=True)
class Architecture:
    """A network that can be built.

    Attributes:
        name: of the model, for messages.
        directory: where its files are.
        config: what ``config.json`` says; empty for a GGUF file, whose header says it.
        gguf: the GGUF file, if it is one.

    Example:
        >>> net = Architecture("net", None, {"model_type": "mergescope-mlp", "sizes": [4, 3, 2]})
        >>> net.build().head
        Linear(in_features=3, out_features=2, bias=True)
    """

    name: str
    directory: Path | None
    config: dict[str, Any]
    gguf: Path | None = None

    @classmethod
    def of(cls, source: str | os.PathLike[str] | Checkpoint) -> Architecture:
        """Find the configuration of a model.

        Args:
            source: a directory with ``config.json``, a file in one, a GGUF file, a hub id
                ``org/name[@revision]`` (of which only the configuration is fetched), or a checkpoint.

        Returns:
            The architecture.

        Raises:
            CheckpointError: there is no usable configuration.
        """  # noqa: DOC502 (raised by what this calls)
        if isinstance(source, Checkpoint):
            return cls(source.name, source.directory, _known(source.name, source.config))
        gguf = find_gguf(source)
        if gguf is not None:
            return cls(gguf.stem, gguf.parent, {}, gguf)
        path = Path(source).expanduser()
        if path.exists():
            file = (path if path.is_dir() else path.parent) / "config.json"
            name = file.parent.resolve().name
        else:
            name, _, revision = os.fspath(source).partition("@")
            file = _fetch(name, revision or None)
        return cls(name, file.parent, _known(name, _read(file)))

    def build(self, *, trust_remote_code: bool = False, **settings: Any) -> nn.Module:
        """Build the network.

        Args:
            trust_remote_code: let transformers run code that comes with the model.
            settings: changes to a transformers configuration that has them, such as
                ``_attn_implementation``.

        Returns:
            The network, with random weights.

        Raises:
            CheckpointError: transformers can't.
        """  # noqa: DOC502 (built below)
        if self.gguf is None:
            require_plausible(self.config, f"{self.name}'s config.json")
        if self.config.get("model_type") in NETS:
            return net_from_config(self.config)
        import transformers

        remote = {"trust_remote_code": trust_remote_code}  # left out, transformers would ask at the terminal
        header = {} if self.gguf is None else {"gguf_file": self.gguf.name}
        if "vocab_size" in self.config:  # an adapter may have changed it
            settings["vocab_size"] = self.config["vocab_size"]
        try:
            with quiet_transformers():
                config: Any = transformers.AutoConfig.from_pretrained(
                    str(self.directory), local_files_only=True, **header, **remote
                )
                for key, value in settings.items():
                    if hasattr(config, key):
                        setattr(config, key, value)
                named = self.named_class()
                return named(config) if named else self.auto_class(config).from_config(config, **remote)
        except Exception as error:  # foreign code over foreign files may raise anything
            raise self.failure(error) from error

    def named_class(self) -> Any:
        """The class that the configuration names.

        Returns:
            A model class of transformers, or None if it names none or an unknown one.
        """
        import transformers

        named = (self.config.get("architectures") or [None])[0]
        found = getattr(transformers, named, None) if isinstance(named, str) else None
        return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None

    def auto_class(self, config: Any) -> Any:
        """The automatic class to build from where the configuration names none.

        Args:
            config: transformers' configuration.

        Returns:
            The class with a language-modelling head for GGUF files, else the one without a head.
        """
        import transformers

        heads = (
            (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
            (transformers.AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
        )
        fitting = (auto for auto, mapping in heads if self.gguf is not None and type(config) in mapping)
        return next(fitting, transformers.AutoModel)

    def failure(self, error: Exception) -> CheckpointError:
        """The error to raise where transformers fails.

        Args:
            error: what it raised.

        Returns:
            One that names the model.
        """
        if "trust_remote_code" in str(error):
            return CheckpointError(
                f"{self.directory} names code of its own (auto_map in config.json), which was not run. Read it, and if "
                "you trust it, build the network yourself with load_model(..., trust_remote_code=True) and pass it as "
                "model=."
            )
        kind = f" (model_type {self.config['model_type']!r})" if self.config else ""
        return CheckpointError(
            f"transformers can't build {self.name}{kind} from {self.gguf or self.directory}: {error}"
        )


def ignored_keys(config: Mapping[str, Any] | None, keys: Iterable[str]) -> list[str]:
    """Tensors that the network of a configuration leaves unread: older versions of transformers saved them.

    Args:
        config: what ``config.json`` says.
        keys: of tensors in the checkpoint.

    Returns:
        Those that transformers' class passes over; none if the configuration names no such class.

    Example:
        >>> table = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        >>> ignored_keys({"architectures": ["T5ForConditionalGeneration"]}, [table, "shared.weight"]) == [table]
        True
    """
    named = Architecture("", None, dict(config or {})).named_class()
    patterns = [
        re.compile(pattern) for pattern in getattr(named, "_keys_to_ignore_on_load_unexpected", None) or ()
    ]
    return [key for key in keys if any(pattern.search(key) for pattern in patterns)]


def find_gguf(source: str | os.PathLike[str]) -> Path | None:
    """The GGUF file that a path names.

    Args:
        source: a ``.gguf`` file, a directory whose only weights are in one, or anything else.

    Returns:
        The file, or None.

    Raises:
        CheckpointError: there is no such file, or a directory holds several.

    Example:
        >>> find_gguf("org/name") is None
        True
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"There is no file {str(path)!r}.{near_paths(path)}")
        return path
    if not path.is_dir() or any(file.suffix in {".safetensors", *PICKLES} for file in path.iterdir()):
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        raise CheckpointError(
            f"{path} holds {len(files)} GGUF files ({', '.join(file.name for file in files)}). Name one of them."
        )
    return files[0] if files else None


def _known(name: str, config: Any) -> dict[str, Any]:
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{name} has no config.json with a model_type, so its architecture is unknown. "
            "Give its directory, or build the network yourself and pass it as model=."
        )
    return config


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except DocumentError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Fetch it again.") from error


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with quiet_transformers():
            return Path(hf_hub_download(repo, "config.json", revision=revision))
    except HFValidationError as error:  # not even the form of an id
        raise CheckpointError(f"There is no file or directory {repo!r}.{near_paths(repo)}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{repo!r} is neither a local path nor a model whose config.json the hub gave us{at} "
            f"({type(error).__name__}).{near_paths(repo)} Check the spelling, your network and your access; "
            "with HF_HUB_OFFLINE=1 only models already in the cache are found."
        ) from error
