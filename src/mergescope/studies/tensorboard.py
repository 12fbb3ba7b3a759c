"""Where the numbers of a training go while it runs: TensorBoard, and whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergescope.errors import MergescopeError

Log = Callable[[str, Mapping[str, float]], None]
"""Takes ``"train"`` or ``"evaluation"``, and the numbers."""


class Logs:
    """Passes the numbers of every step on; a context, which gives what to call.

    Args:
        folder: directory of TensorBoard logs, or None.
        other: who else is told, or None.

    Raises:
        MergescopeError: TensorBoard is not installed.

    Example:
        >>> with Logs(None, lambda kind, numbers: print(kind, numbers["loss"])) as log:
        ...     log("train", {"step": 1, "loss": 0.5})
        train 0.5
    """

    def __init__(self, folder: Path | None = None, other: Log | None = None) -> None:
        self._other = other
        self._writer: Any = None if folder is None else _writer(folder)

    def __enter__(self) -> Log | None:
        return None if self._writer is None and self._other is None else self._log

    def _log(self, kind: str, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items() if self._writer is not None else ():
            if name not in ("step", "epoch", "samples"):
                self._writer.add_scalar(f"{kind}/{name}", value, int(numbers["step"]))
        if self._other is not None:
            self._other(kind, numbers)

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()


def require_tensorboard() -> None:
    """Refuse to log to TensorBoard where it is not installed.

    Raises:
        MergescopeError: that is so.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError as error:
        raise MergescopeError(
            "TensorBoard is not installed: pip install tensorboard, or leave --tensorboard out."
        ) from error


def _writer(folder: Path) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
