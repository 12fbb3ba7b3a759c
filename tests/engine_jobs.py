"""What tests of engines run in workers: functions that other processes can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mergescope.errors import DataError


class Here:
    """An engine in this process that says it has so many workers."""

    device = None

    def __init__(self, workers):
        self.workers = workers
        self.items = []

    def map(self, function, items, label, done=None):
        self.items = list(items)
        found = []
        for item in self.items:
            found.append(function(item))
            if done is not None:
                done(item, found[-1])
        return found


@dataclass(frozen=True)
class Job:
    """An item that knows where its traces go."""

    number: int
    folder: Path

    def __str__(self):
        return f"job {self.number}"

    @property
    def runs(self):
        return len(list(self.folder.glob(f"{self.number}-*")))


def square(job):
    """Leave a trace, and the square."""
    (job.folder / f"{job.number}-{os.getpid()}-{time.time_ns()}").touch()
    return job.number**2


def killed_once(job):
    """Dies in the middle of item 2, the first time."""
    found = square(job)
    if job.number == 2 and job.runs == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def always_killed(job):
    """Dies in the middle of item 2, every time."""
    found = square(job)
    if job.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def failing(job):
    """Items 1 and 3 are wrong, each in its way."""
    if job.number == 1:
        raise DataError("There are no rows. Choose another split.")
    if job.number == 3:
        raise ZeroDivisionError("on purpose")
    return square(job)


def slow(job):
    """Take a moment."""
    time.sleep(0.5)
    return square(job)


def process(job):
    """Who does it, and where."""
    return os.getpid(), str(Path.cwd())


def total(point, key, job):
    """The sum of a point's tensor; the point is returned as well."""
    return float(point.tensor(key).sum()) + job, point


class KilledOnce:
    """A reading that kills the first process in which it is given a second batch."""

    needs_features = False

    def __init__(self, folder):
        self.folder, self.driver, self.batches = folder, os.getpid(), 0

    def start(self, points, layers):
        self.points, self.layers = points, layers

    def update(self, batch):
        self.batches += 1
        if self.batches == 2 and os.getpid() != self.driver and not any(self.folder.iterdir()):
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def merge(self, other):
        self.batches += other.batches
