"""Regimes by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from mergescope.errors import MergescopeError, did_you_mean
from mergescope.training.regimes.attention import PARADIGMS, Attention
from mergescope.training.regimes.full import Full
from mergescope.training.regimes.linearized import LinearizedRegime
from mergescope.training.regimes.lora import Lora
from mergescope.training.regimes.protocol import Limits, Regime

REGIMES: dict[str, tuple[type, Callable[..., Regime], str]] = {
    "full": (Full, Full, "every weight"),
    **{name: (Attention, partial(Attention, name=name), what) for name, what in PARADIGMS.items()},
    "linearized": (
        LinearizedRegime,
        LinearizedRegime,
        "every weight, in the model linearised around the base",
    ),
    "lora": (Lora, Lora, "low-rank additions to W_q, W_k, W_v and W_o"),
}
"""Name to the class, what makes it, and what trains, in words."""


def regime(
    name: str,
    *,
    frozen: Collection[str] = (),
    also: Collection[str] = (),
    base_digest: str | None = None,
    **options: Any,
) -> Regime:
    """The fine-tuning regime of a name (ATTN, section 3).

    Args:
        name: one of [`REGIMES`][mergescope.training.regimes.registry.REGIMES].
        frozen: parameters or modules that are never trained: usually the task head.
        also: parameters or modules that always are.
        base_digest: content digest of the pretrained checkpoint, for the header of linearised ones.
        **options: of the regime: ``patterns`` (attention-1 and -2); ``checkpointing`` (linearized);
            ``rank``, ``alpha``, ``rslora``, ``dropout``, ``targets``, ``seed`` (lora).

    Returns:
        The regime.

    Raises:
        MergescopeError: there is no such regime, it has no such option, or the option is of another type.

    Example:
        >>> regime("attention-2", frozen=["head"]).metadata()
        {'regime': 'attention-2', 'paradigm': '2'}
        >>> regime("lora", rank=8, rslora=True).metadata()["lora_alpha"]
        '16'
    """
    if name not in REGIMES:
        listing = "; ".join(f"{each} ({what})" for each, (_, _, what) in REGIMES.items())
        raise MergescopeError(
            f"There is no regime {name!r}.{did_you_mean(name, REGIMES)} Choose one of: {listing}."
        )
    kind, make, _ = REGIMES[name]
    known = [
        each.name for each in dataclasses.fields(kind) if each.init and each.name not in ("limits", "name")
    ]
    for option in options:
        if option not in known:
            has = f"Its options are {', '.join(known)}" if known else "It has none"
            raise MergescopeError(
                f"The regime {name} has no option {option!r}.{did_you_mean(option, known)} {has}."
            )
    for option, value in (("frozen", frozen), ("also", also)):
        if isinstance(value, str):
            raise MergescopeError(
                f"{option} must be a list of names, got the name {value!r}. Write [{value!r}]."
            )
    return make(Limits(tuple(frozen), tuple(also), base_digest), **options)
