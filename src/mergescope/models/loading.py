"""Loading networks, and putting a point's weights into one.

A missing or unexpected key is an error, always: a network with some weights left at random
looks like a network.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mergescope.errors import MergescopeError, MismatchError, did_you_mean
from mergescope.models.architecture import Architecture, find_gguf
from mergescope.models.nets import NETS, net_from_config
from mergescope.models.plausible import require_plausible
from mergescope.models.quiet import quiet_transformers
from mergescope.weights import Checkpoint, Point
from mergescope.weights.kinds import is_derived
from mergescope.weights.lora import LoraCheckpoint
from mergescope.weights.point import TensorSource

_ANOTHER_HEAD = re.compile(
    r"(^|\.)(cls|classifier|lm_head|pooler|score|qa_outputs|embed_out|\w*_predictions)\."
)
"""Heads of transformers' networks. One that a network lacks leaves nothing of it at random: bert-base-uncased
names a masked language model and holds the pooler and the head of next-sentence prediction as well."""

HELD = 256 << 20
"""Bytes of points' weights that a [`WeightLoader`][] keeps: of dozens of small networks, of no large one."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_WRAPPERS = ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.")


def load_model(
    source: str | os.PathLike[str] | Checkpoint,
    *,
    dtype: str | torch.dtype = "float32",
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> nn.Module:
    """Build the network of a model, with its weights, in eval mode.

    The class is the one that the model's own configuration names, so a fine-tune comes with its head.

    Args:
        source: a directory with ``config.json``, a hub id ``org/name[@revision]``, a checkpoint
            read from one, or a GGUF file (see [`load_gguf`][mergescope.models.gguf.load_gguf]).
        dtype: of the weights: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the one
            that the model was saved in.
        device: where to put it.
        trust_remote_code: let transformers run code that comes with the model.

    Returns:
        The network.

    Raises:
        CheckpointError: there is no usable configuration, or the files can't be read.
        MismatchError: keys or shapes don't fit the architecture; all are named.
        MergescopeError: there is no such dtype or device.
    """  # noqa: DOC502 (raised by what this calls)
    wanted, place = _dtype(dtype), usable_device(device)
    if not isinstance(source, Checkpoint) and find_gguf(source) is not None:
        return _from_transformers(Architecture.of(source), wanted, trust_remote_code, {}).to(place)
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    architecture = Architecture.of(checkpoint)
    of_weights = checkpoint.base if isinstance(checkpoint, LoraCheckpoint) else checkpoint
    require_plausible(architecture.config, f"{architecture.name}'s config.json", of_weights.spec)
    if architecture.config["model_type"] in NETS:
        net = net_from_config(architecture.config)
        stored = (spec.dtype for spec in checkpoint.spec.values() if spec.dtype.is_floating_point)
        net.to(place, wanted or next(stored, torch.float32))
        load_weights(net, checkpoint)
        return net.eval()
    if not isinstance(checkpoint, LoraCheckpoint):
        return _from_transformers(architecture, wanted, trust_remote_code, _shapes(checkpoint)).to(place)
    # transformers builds the base from its directory; the adapted weights then replace the base's.
    base = Architecture.of(checkpoint.base)
    model: Any = _from_transformers(base, wanted, trust_remote_code, _shapes(checkpoint.base))
    size = architecture.config.get("vocab_size")
    if size is not None and size != base.config.get("vocab_size"):
        model.resize_token_embeddings(size, mean_resizing=False)
    load_weights(model, checkpoint)
    return model.to(place).eval()


def empty_model(source: str | os.PathLike[str] | Checkpoint, *, trust_remote_code: bool = False) -> nn.Module:
    """The network of a model without memory for its parameters, for the streamed executor.

    Only the configuration is read, so the weights need not be there.

    Args:
        source: as for [`load_model`][].
        trust_remote_code: let transformers run code that comes with the model.

    Returns:
        The network in eval mode: parameters on the meta device, other tensors (position tables
        that follow from the configuration) as they should be.

    Raises:
        CheckpointError: there is no usable configuration.
    """  # noqa: DOC502 (raised by what this calls)
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: Any = Architecture.of(source).build(trust_remote_code=trust_remote_code)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.eval()


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {key: spec.shape for key, spec in checkpoint.spec.items()}


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    if dtype == "auto":
        return None
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        known = [*DTYPES, "auto"]
        raise MergescopeError(
            f"A network can't be loaded in dtype={str(dtype)!r}.{did_you_mean(str(dtype), known)} "
            f"Use one of {', '.join(known)}."
        )
    return found


def usable_device(device: torch.device | str) -> torch.device:
    """A device, if it can be used.

    Args:
        device: as torch names it.

    Returns:
        The device.

    Raises:
        MergescopeError: this machine or this build of torch has none such.
    """
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise MergescopeError(
            f"device={str(device)!r} can't be used here: {str(error).splitlines()[0]}"
            f"{did_you_mean(str(device), ('cpu', 'cuda', 'xpu'))} Use 'cpu', or a device that this machine and "
            "this build of torch have."
        ) from error
    if found.type == "mps":
        raise MergescopeError(
            f"device={str(device)!r} can't be used: Apple's GPUs have no float64, which features are summed in. Use "
            "'cpu'."
        )
    return found


def _from_transformers(
    architecture: Architecture,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    stored: Mapping[str, tuple[int, ...]],
) -> nn.Module:
    import transformers

    # Without a word on remote code, transformers would ask at the terminal.
    given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    place = str(architecture.directory)
    # The bar of the GGUF conversion is tqdm's own, which no setting of transformers silences.
    hidden = (
        contextlib.nullcontext() if architecture.gguf is None else contextlib.redirect_stderr(io.StringIO())
    )
    try:
        with quiet_transformers(), hidden:
            loader: Any = architecture.named_class()
            if architecture.gguf is not None:
                given["gguf_file"] = architecture.gguf.name
                given["config"] = transformers.AutoConfig.from_pretrained(place, **given)
                loader = architecture.auto_class(given["config"])
            model, info = (loader or transformers.AutoModel).from_pretrained(
                place,
                dtype="auto" if dtype is None else dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported below, by name
                **given,
            )
    except Exception as error:  # foreign code over foreign files may raise anything
        raise architecture.failure(error) from error
    problems = [f"{key}: missing in the checkpoint" for key in sorted(info["missing_keys"])]
    problems += [
        f"{key}: not known to {type(model).__name__}"
        for key in sorted(info["unexpected_keys"])
        if not _ANOTHER_HEAD.search(key)
    ]
    entries = model.state_dict()
    for item in sorted(info.get("mismatched_keys") or []):
        key, have = item[:2] if isinstance(item, tuple) else (item, stored.get(item))  # transformers 5 or 4
        have = "another shape" if have is None else list(have)
        problems.append(f"{key}: {have} in the checkpoint, {list(entries[key].shape)} in the network")
    if problems:
        raise MismatchError(
            f"The checkpoint {architecture.name} ({architecture.gguf or place}) does not fill "
            f"{type(model).__name__}:",
            problems,
            "It was saved by another class or another major version of transformers "
            f"(here {transformers.__version__}). Load it where it was made and save it again.",
        )
    return model.eval()


def matching_keys(model: nn.Module, source: TensorSource | Point) -> dict[str, str]:
    """The entries of a network's state dict that a checkpoint has, whatever their shapes.

    What ``torch.compile`` and ``DataParallel`` put before names is overlooked.

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
            *(wrapper + name for wrapper in _WRAPPERS),
        )
        key = next((candidate for candidate in candidates if candidate in source.spec), None)
        if key is not None:
            mapping[name] = key
    return mapping


def key_maps(model: nn.Module, points: Iterable[Point], fixed: Collection[str] = ()) -> list[dict[str, str]]:
    """[`key_map`][] of several points, found once for those with the same tensors.

    Args:
        model: the network.
        points: checkpoints or points.
        fixed: as for [`key_map`][].

    Returns:
        One mapping a point.

    Raises:
        MismatchError: as for [`key_map`][].
    """  # noqa: DOC502 (raised by what this calls)
    known: list[tuple[Mapping[str, Any], dict[str, str]]] = []
    found = []
    for point in points:
        mapping = next((mapping for spec, mapping in known if spec == point.spec), None)
        if mapping is None:
            mapping = key_map(model, point, fixed)
            known.append((point.spec, mapping))
        found.append(mapping)
    return found


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
        if key not in used
        and not is_derived(key, spec[key].shape)  # older checkpoints hold position numbers
        and not (hasattr(model, "base_model_prefix") and _ANOTHER_HEAD.search(key))
        and not any(pattern.search(key) for pattern in ignored)
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


class WeightLoader:
    """Puts points into a network again and again, as for every batch: what fits a budget is combined once.

    Args:
        model: the network; its entries stay the same objects.
        budget: bytes of weights to keep, where the network computes.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> one = Checkpoint({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, name="one")
        >>> loader = WeightLoader(layer)
        >>> for point in (Point.of(one), Point.of(one), 0.5 * one + 0.5 * one):
        ...     with torch.no_grad():
        ...         loader.load(point, key_map(layer, point))
        >>> layer.weight.tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, model: nn.Module, budget: int = HELD) -> None:
        self._model, self._left = model, budget
        self._held: dict[Point, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def load(
        self, point: Point, mapping: Mapping[str, str], statistics: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Put a point's weights, and statistics of its own, into the network.

        Args:
            point: a model.
            mapping: from [`key_map`][], the same on every call with this point.
            statistics: state-dict names to what stands in for the point's, likewise.
        """
        if point in self._held:
            for entry, value in self._held[point]:
                entry.copy_(value)
            return
        load_weights(self._model, point, mapping)
        entries = self._model.state_dict(keep_vars=True)
        for name, value in (statistics or {}).items():
            entries[name].copy_(value)
        mine = {id(entries[name]): entries[name] for name in (*mapping, *(statistics or ()))}
        size = sum(entry.nbytes for entry in mine.values())
        if size <= self._left:
            self._left -= size
            self._held[point] = [(entry, entry.detach().clone()) for entry in mine.values()]
