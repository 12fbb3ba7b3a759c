"""The worker processes of a Ray engine: started when there is work, replaced when they die."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergescope._version import __version__
from mergescope.errors import MergescopeError
from mergescope.tracing.ray_cluster import require_ray
from mergescope.tracing.ray_worker import Worker

STARTS = 3
"""How many workers in a row may die while they start."""


class Pool:
    """Actors that are free, and those that are starting; whoever gives one work returns it afterwards.

    An actor that waits for room on the cluster is starting: it gets no work that others could do.

    Args:
        cpus: of each, and its torch threads.
        gpus: of each.

    Attributes:
        idle: those that are free.
        starting: reference to an actor's first answer, to the actor.
    """

    def __init__(self, cpus: int, gpus: float) -> None:
        self._ray = require_ray()
        self._make = self._ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus)
        self._threads = max(1, int(cpus))
        self._dead = 0
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}

    def start(self) -> None:
        """Begin to start one."""
        actor = self._make.remote(self._threads, str(Path.cwd()), sys.path)
        self.starting[actor.versions.remote()] = actor

    def started(self, ref: Any) -> None:
        """Take in the first answer of one: it is free now, unless it died.

        Args:
            ref: of the answer.

        Raises:
            MergescopeError: workers can't be started, or run another version.
        """
        actor, errors = self.starting.pop(ref), self._ray.exceptions
        try:
            versions = self._ray.get(ref)
        except (errors.RayActorError, errors.RayTaskError) as error:
            if "node has died" in str(error):  # it was sent to a lost machine, before that was missed
                return
            self._dead += 1
            if self._dead < STARTS:
                return
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise MergescopeError(
                f"Workers don't start: {lines[-1] if lines else type(error).__name__} Every machine of the cluster "
                f"needs mergescope {__version__} and its dependencies, and room for a process."
            ) from error
        self._dead = 0
        if versions["mergescope"] != __version__:
            raise MergescopeError(
                f"The cluster's workers have mergescope {versions['mergescope']}, and this is {__version__}. Install "
                "one version everywhere: results of two are not put together."
            )
        self.idle.append(actor)

    def drop(self, actors: Iterable[Any]) -> None:
        """End some, whatever they are doing.

        Args:
            actors: none of the free ones.
        """
        for actor in actors:
            self._ray.kill(actor)

    def close(self) -> None:
        """End all that are free or starting."""
        self.drop([*self.idle, *self.starting.values()])
        self.idle, self.starting = [], {}
