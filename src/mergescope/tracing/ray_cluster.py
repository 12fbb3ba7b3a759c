"""A Ray cluster: connecting to one that runs, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from mergescope.errors import MergescopeError

PATIENCE = 5.0
"""Seconds that a cluster's address has to answer in; Ray itself would try for minutes."""


def require_ray() -> Any:
    """Import Ray. It is told not to report its use to anybody.

    Returns:
        The module.

    Raises:
        MergescopeError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it, every start warns
    try:
        import ray
    except ImportError as error:
        raise MergescopeError("The Ray engine needs Ray, which is not installed: pip install ray.") from error
    return ray


def connect(address: str | None, cpus: int | None) -> bool:
    """Connect this process to a cluster, unless it is connected to one.

    Args:
        address: of a cluster, or ``"auto"``; by default that of ``RAY_ADDRESS``, else one is started here.
        cpus: of a cluster that is started; by default those of this machine.

    Returns:
        Whether this call connected, so that the caller disconnects.

    Raises:
        MergescopeError: there is none at the address.
    """  # noqa: DOC501, DOC502 (made by a function)
    ray = require_ray()
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        options |= {"include_dashboard": False, "num_cpus": cpus}
    _require_answer(address)
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, SystemExit) as error:
        raise _unreachable(address, str(error)) from error
    return True


def _require_answer(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> MergescopeError:
    first = reason.strip().splitlines()[0].rstrip(".") if reason.strip() else "it does not answer"
    if address == "local":
        return MergescopeError(f"Ray can't start here: {first}. Look at the room under /tmp and /dev/shm.")
    return MergescopeError(
        f"No Ray cluster answers at {address!r}: {first}. Give the address that ray start printed (host:6379), auto on "
        "a machine of the cluster, or none to start one here. If it asks for a token, set RAY_AUTH_MODE=token."
    )


def room_for_workers(cpus: int, gpus: float) -> int:
    """How many workers the machines of the cluster have room for.

    Args:
        cpus: of each worker.
        gpus: of each worker.

    Returns:
        At least 1.

    Raises:
        MergescopeError: there is no room for one.
    """
    ray = require_ray()
    found = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        rooms = [has.get("CPU", 0) // cpus, *([has.get("GPU", 0) // gpus] if gpus else [])]
        found += int(min(rooms))
    if not found:
        has = ray.cluster_resources()
        raise MergescopeError(
            f"No machine of the cluster has {cpus} CPUs and {gpus:g} GPUs for a worker; in all it has "
            f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs. Ask for less (--num-cpus, --num-gpus); where "
            "machines join on demand, say how many workers to wait for (--workers)."
        )
    return found
