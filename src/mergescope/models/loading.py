"""Loading networks, and putting a point's weights into one.

A missing or unexpected key is an error, always: a network with some weights left at random
looks like a network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from mergescope.errors import CheckpointError, MismatchError
from mergescope.models.nets import NETS, net_from_config
from mergescope.weights import Checkpoint, Point
from mergescope.weights.lora import LoraCheckpoint
from mergescope.weights.point import TensorSource


def load_model(source: str | os.PathLike[str] | Checkpoint, *, trust_remote_code: bool = False) -> nn.Module:
    """Build the network of a checkpoint directory or hub id, with its weights, in eval mode.

    Args:
        source: a directory with ``config.json``, a hub id ``org/name[@revision]``, or a
            checkpoint read from one.
        trust_remote_code: let transformers run code that comes with the model.

    Returns:
        The network, in float32, on the CPU.

    Raises:
        CheckpointError: there is no usable ``config.json``.
        MismatchError: keys or shapes don't fit the architecture; all are named.
    """  # noqa: DOC502 (raised by what this calls)
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    config = _config_of(checkpoint)
    if config["model_type"] in NETS:
        net = net_from_config(config)
        load_weights(net, checkpoint)
        return net.eval()
    if not isinstance(checkpoint, LoraCheckpoint):
        return _from_transformers(checkpoint, config, trust_remote_code)
    # transformers builds the base from its directory; the adapted weights then replace the base's.
    model: Any = _from_transformers(checkpoint.base, config, trust_remote_code)
    size = config.get("vocab_size")
    if size is not None and size != (checkpoint.base.config or {}).get("vocab_size"):
        model.resize_token_embeddings(size, mean_resizing=False)
    load_weights(model, checkpoint)
    return model.eval()


def empty_model(source: str | os.PathLike[str] | Checkpoint, *, trust_remote_code: bool = False) -> nn.Module:
    """The network of a checkpoint without memory for its parameters, for the streamed executor.

    Args:
        source: as for [`load_model`][].
        trust_remote_code: let transformers run code that comes with the model.

    Returns:
        The network in eval mode: parameters on the meta device, other tensors (position tables
        that follow from the configuration) as they should be.

    Raises:
        CheckpointError: there is no usable ``config.json``.
    """  # noqa: DOC502 (raised by what this calls)
    from accelerate import init_empty_weights

    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    config = _config_of(checkpoint)
    with init_empty_weights(include_buffers=False):
        if config["model_type"] in NETS:
            return net_from_config(config).eval()
        import transformers

        settings: Any = transformers.AutoConfig.from_pretrained(
            str(checkpoint.directory), local_files_only=True, trust_remote_code=trust_remote_code
        )
        named = getattr(transformers, (config.get("architectures") or [""])[0], None)
        model: Any = named(settings) if named else transformers.AutoModel.from_config(settings)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.eval()


def _config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    if config is None or "model_type" not in config:
        raise CheckpointError(
            f"{checkpoint.name} has no config.json with a model_type, so its architecture is unknown. "
            "Give its directory, or build the network yourself and pass it as model=."
        )
    return config


def _from_transformers(checkpoint: Checkpoint, config: dict[str, Any], trust_remote_code: bool) -> nn.Module:
    import transformers

    named = (config.get("architectures") or [None])[0]
    loader: Any = getattr(transformers, named, None) if named else None
    if loader is None:
        loader = transformers.AutoModel
    try:
        model, info = loader.from_pretrained(
            checkpoint.directory,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            local_files_only=True,
            **({"trust_remote_code": True} if trust_remote_code else {}),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers can't build {checkpoint.name} (model_type {config['model_type']!r}) from "
            f"{checkpoint.directory}: {error}"
        ) from error
    problems = [f"{key}: missing in the checkpoint" for key in sorted(info["missing_keys"])]
    problems += [f"{key}: not known to {type(model).__name__}" for key in sorted(info["unexpected_keys"])]
    problems += [
        f"{key}: {list(have)} in the checkpoint, {list(want)} in the network"
        for key, have, want in sorted(info.get("mismatched_keys") or [])
    ]
    if problems:
        raise MismatchError(
            f"The checkpoint {checkpoint.name} ({checkpoint.directory}) does not fill "
            f"{type(model).__name__}:",
            problems,
            "It was saved by another class or another major version of transformers "
            f"(here {transformers.__version__}). Load it where it was made and save it again.",
        )
    return model.eval()


def matching_keys(model: nn.Module, source: TensorSource | Point) -> dict[str, str]:
    """The entries of a network's state dict that a checkpoint has, whatever their shapes.

    Args:
        model: the network.
        source: a checkpoint or point.

    Returns:
        State-dict name to checkpoint key: the same name, or what transformers saves it as, with or
        without its ``base_model_prefix``.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '') or ''}."
    saved = _saved_names(model)
    mapping = {}
    for name in model.state_dict():
        own = saved.get(name, name)
        candidates = (
            name,
            own,
            prefix + name,
            prefix + own,
            name.removeprefix(prefix),
            own.removeprefix(prefix),
        )
        key = next((candidate for candidate in candidates if candidate in source.spec), None)
        if key is not None:
            mapping[name] = key
    return mapping


def key_map(model: nn.Module, source: TensorSource | Point, fixed: Collection[str] = ()) -> dict[str, str]:
    """Which checkpoint key fills which entry of the network's state dict.

    Names match directly, as transformers saves them, or after adding or removing its
    ``base_model_prefix``.
    Tied entries (one storage under two names) need one of the names only.

    Args:
        model: the network.
        source: a checkpoint or point.
        fixed: entries that are not filled: they stay what they are.

    Returns:
        State-dict name to checkpoint key.

    Raises:
        MismatchError: an entry is missing, unexpected or of another shape; all are named.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> key_map(layer, Checkpoint(layer.state_dict()))
        {'weight': 'weight', 'bias': 'bias'}
    """
    entries = model.state_dict(keep_vars=True)
    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []]
    mapping = {name: key for name, key in matching_keys(model, source).items() if name not in fixed}
    used = set(mapping.values())
    filled = {_place(entries[name]) for name in mapping if entries[name].numel()}
    spec = source.spec
    problems = [
        f"{name}: missing in the checkpoint (the network has {list(entry.shape)})"
        for name, entry in entries.items()
        if name not in mapping and name not in fixed and not (entry.numel() and _place(entry) in filled)
    ]
    problems += [
        f"{key}: not in the network (the checkpoint has {spec[key]})"
        for key in spec
        if key not in used and not any(pattern.search(key) for pattern in ignored)
    ]
    problems += [
        f"{key}: {list(spec[key].shape)} in the checkpoint, {list(entries[name].shape)} in the network"
        for name, key in mapping.items()
        if spec[key].shape != tuple(entries[name].shape)
    ]
    if problems:
        raise MismatchError(
            f"{source} does not fit {type(model).__name__}, {len(problems)} tensor(s) differ:",
            problems,
            "Load the network from the same base as the checkpoints.",
        )
    return mapping


def _place(entry: torch.Tensor) -> int:
    # Tied entries share memory; on the meta device, where there is none, they are one object.
    return id(entry) if entry.is_meta else entry.data_ptr()


def _saved_names(model: nn.Module) -> dict[str, str]:
    """State-dict names to those in files: transformers 5 renamed modules, but saves the old names.

    Args:
        model: any network.

    Returns:
        Name to file key; empty if transformers did not make the network.
    """
    if not hasattr(model, "base_model_prefix"):
        return {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4 saves what its modules are called
        return {}
    entries = model.state_dict()
    names = {id(value): name for name, value in entries.items()}
    saved = revert_weight_conversion(model, entries)  # type: ignore[arg-type]
    # Entries that are cut or stacked on saving are other tensors then, and have no single key.
    return {names[id(value)]: key for key, value in saved.items() if id(value) in names}


@torch.no_grad()
def load_weights(
    model: nn.Module, source: TensorSource | Point, mapping: Mapping[str, str] | None = None
) -> None:
    """Overwrite a network's weights and buffers in place by a point's tensors.

    Args:
        model: the network; keeps its device and dtype.
        source: a checkpoint or a point that is a model.
        mapping: from [`key_map`][], if it is known already.

    Raises:
        MismatchError: keys or shapes don't fit.
    """  # noqa: DOC502 (raised by what this calls)
    mapping = key_map(model, source) if mapping is None else mapping
    point = Point.of(source)
    entries = model.state_dict(keep_vars=True)
    for name, key in mapping.items():
        point.into(key, entries[name])
