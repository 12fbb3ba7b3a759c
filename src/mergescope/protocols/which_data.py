"""Which held-out data are the same samples, and which are those of a fine-tune's own task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mergescope.errors import MergescopeError

if TYPE_CHECKING:
    from mergescope.protocols.measure import HeldOut


def fingerprint_of(batches: Any) -> str | None:
    """What batches say of the samples that they hold.

    Args:
        batches: of held-out data.

    Returns:
        Their ``fingerprint``; None if they have none.

    Example:
        >>> fingerprint_of([]) is None
        True
    """
    return getattr(batches, "fingerprint", None)


def alike(prints: Iterable[str | None]) -> list[int]:
    """Which data sets hold the same samples: two passes of them are not twice the evidence.

    Args:
        prints: fingerprint of each data set; one without is like no other.

    Returns:
        For each, the number of the first one with the same samples.

    Example:
        >>> alike(["x", None, "x", None])
        [0, 1, 0, 3]
    """
    named = list(prints)
    return [number if it is None else named.index(it) for number, it in enumerate(named)]


def same_data(one: HeldOut, other: HeldOut) -> bool:
    """Whether two data sets hold the same samples, as far as they say which.

    Args:
        one: held-out data.
        other: held-out data.

    Returns:
        True if their batches are one object, or have one fingerprint.

    Example:
        >>> import mergescope as ms
        >>> from mergescope.protocols import HeldOut
        >>> batches, net = [], ms.MLP((4, 8, 2))
        >>> same_data(HeldOut("a", batches, net), HeldOut("b", batches, net))
        True
    """
    said = fingerprint_of(one.batches)
    return one.batches is other.batches or (said is not None and said == fingerprint_of(other.batches))


def require_unseen(
    choosing: Mapping[str, HeldOut], reporting: Mapping[str, HeldOut] | None, what: str
) -> None:
    """Refuse to choose by the samples that figures are of.

    Args:
        choosing: name to validation data.
        reporting: name to test data; None without.
        what: is chosen, for the message.

    Raises:
        MergescopeError: validation data are test data as well.
    """
    judged = list((reporting or {}).values())
    leaking = [name for name, held in choosing.items() if any(same_data(held, other) for other in judged)]
    if leaking:
        raise MergescopeError(
            f"The validation data of {', '.join(leaking)} are the test data as well: {what} would be chosen on what "
            "it is judged by. Give another split to validate on, or no test data."
        )


def own_data(data: Mapping[str, HeldOut]) -> dict[str, str]:
    """Which data are those of each fine-tune's own task.

    A fine-tune has one task. If several data sets are for it, only the one of its name is its task's.

    Args:
        data: name to held-out data.

    Returns:
        Name of each fine-tune to the name of its task's data, where that can be told.

    Example:
        >>> import mergescope as ms
        >>> from mergescope.protocols import HeldOut
        >>> net = ms.MLP((4, 8, 2))
        >>> data = {name: HeldOut(name, [], net, "a") for name in ("x", "y", "a")}
        >>> own_data(data), own_data({"x": data["x"]}), own_data({"x": data["x"], "y": data["y"]})
        ({'a': 'a'}, {'a': 'x'}, {})
    """
    owned: dict[str, list[str]] = {}
    for name, held in data.items():
        if held.owner is not None:
            owned.setdefault(held.owner, []).append(name)
    found = {}
    for owner, names in owned.items():
        called = [name for name in names if name in (owner, owner.rpartition("/")[2])]
        chosen = names if len(names) == 1 else called
        if len(chosen) == 1:
            found[owner] = chosen[0]
    return found
