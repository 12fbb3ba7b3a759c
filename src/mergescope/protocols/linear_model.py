"""Measuring in the linearised model: when, and through which network (TANGENT section 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from mergescope.errors import MergescopeError, MismatchError
from mergescope.models.with_head import WithHead
from mergescope.training.linearized import linearized_network
from mergescope.training.origins import origin_of, require_origin
from mergescope.weights import Point

EXECUTORS = ("auto", "affine", "resident")
"""Those that can run a linearised network."""


def in_linear_model(
    base: Point | None, models: Mapping[str, Point], wanted: bool | None
) -> tuple[bool, list[str]]:
    """Whether models are to be measured in the network that is linearised around their base.

    Args:
        base: th_0, or None if there is none.
        models: name to fine-tune.
        wanted: True for any fine-tunes ("post-hoc"), False for none, None if all of them were trained in
            the linearised regime around this base.

    Returns:
        Whether, and what the user should know.

    Raises:
        MismatchError: it is wanted, and a fine-tune was linearised around another base.
        MergescopeError: it is wanted, and there is no base.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> base, a = (Checkpoint({"w": torch.full((2,), v)}, name=name) for name, v in (("base", 1.0), ("a", 2.0)))
        >>> in_linear_model(Point.of(base), {"a": Point.of(a)}, None)
        (False, [])
        >>> in_linear_model(Point.of(base), {"a": Point.of(a)}, True)[1]
        ['a was not trained in the linearised regime: its task vector is put into the linearised model (post-hoc)']
    """  # noqa: DOC502 (raised by what this calls)
    own = {source.identity for source in base.checkpoints} if base is not None else set()
    linear = [
        name
        for name, point in models.items()
        if all(origin_of(source) for source in point.checkpoints if source.identity not in own)
    ]
    others = [name for name in models if name not in linear]
    if wanted is False or (wanted is None and not linear):
        return False, []
    was = f"{', '.join(linear)} {_were(linear)} trained in the linearised regime"
    if wanted is None and (base is None or others):
        why = f"{', '.join(others)} {_were(others)} not" if others else "there is no base to linearise around"
        return False, [f"{was}, and {why}: measured in the ordinary network"]
    if base is None:
        raise MergescopeError("The linearised model is linearised around the base. Give a base: --base.")
    try:
        for point in models.values():
            require_origin(point, base)
    except MismatchError:
        if wanted:
            raise
        return False, [f"{was}, but around another base than {base}: measured in the ordinary network"]
    if not others:
        return True, []
    whose = "its task vector is" if len(others) == 1 else "their task vectors are"
    return True, [
        f"{', '.join(others)} {_were(others)} not trained in the linearised regime: {whose} put into the linearised "
        "model (post-hoc)"
    ]


def _were(names: list[str]) -> str:
    return "was" if len(names) == 1 else "were"


def require_executor(name: str) -> None:
    """Refuse an executor that can't run a linearised network.

    Args:
        name: of the executor.

    Raises:
        MergescopeError: it can't.
    """
    if name not in EXECUTORS:
        raise MergescopeError(
            f"The {name} executor can't run a linearised network. Choose one of {', '.join(EXECUTORS)} (--executor), "
            "or measure in the ordinary network (--no-linearized)."
        )


@contextmanager
def linearized_in_place(network: nn.Module, base: Point, fixed: Collection[str] = ()) -> Iterator[nn.Module]:
    """Linearise a network for a while; its weights, modes and modules are put back.

    Kernels without a forward-mode derivative stay replaced.

    Args:
        network: the architecture.
        base: th_0.
        fixed: state-dict entries that the base does not fill.

    Yields:
        The linearised network, at the base.

    Raises:
        MismatchError: keys or shapes don't fit.

    Example:
        >>> from mergescope import MLP, Checkpoint
        >>> net = MLP((4, 3, 2))
        >>> with linearized_in_place(net, Point.of(Checkpoint(net.state_dict(), name="base"))) as linear:
        ...     linear.affine
        True
    """  # noqa: DOC502 (raised by what this calls)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    modes = {module: module.training for module in network.modules()}
    backbone = network.backbone if isinstance(network, WithHead) else None
    try:
        yield linearized_network(network, base, fixed)
    finally:
        if backbone is not None:
            network.backbone = backbone
        network.load_state_dict(weights)
        for module, mode in modes.items():
            module.training = mode
