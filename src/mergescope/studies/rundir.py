"""Run directories: artefacts that are complete or absent, keyed by a digest of what made them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from mergescope.documents import DocumentError, read_yaml
from mergescope.errors import StudyError
from mergescope.weights.files import TEMPORARY, atomic_file

RESULTS = "results.parquet"
SAMPLES = "samples.parquet"
DISTRIBUTIONS = "distributions.parquet"

PACKAGES = ("mergescope", "torch", "numpy", "safetensors", "transformers", "peft", "datasets", "accelerate")
"""Whose versions a run tells."""


@dataclass(frozen=True)
class Row:
    """One line of ``results.parquet``: a mean over samples (or one number, then ``n`` is 1).

    Attributes:
        network: architecture.
        regime: how it was fine-tuned.
        kind: what was done: ``ctl``, ``eq1``, ``eq2``, ``eq3``, ``null-init``, ``null-random``,
            ``line``, ``barrier``, ``accuracy``, ``lambda-search``.
        points: which models, for example ``"22.5° + 45°"`` or ``"average"``.
        data: which data set.
        measure: ``cos``, ``coef``, ``accuracy`` ...
        mean: the value.
        parameter: alpha or lambda; NaN if there is none.
        layer: layer name; empty for outputs.
        trivial: linear in the weights by construction.
        std: standard deviation over samples.
        low: lower end of the 95 % interval.
        high: upper end.
        n: samples.
        dead: samples without a value.
        seconds: wall time of the pass that made it.
        forward_passes: forward passes (of a batch) of that pass.
        peak_bytes: peak resident memory.
    """

    network: str
    regime: str
    kind: str
    points: str
    data: str
    measure: str
    mean: float
    parameter: float = float("nan")
    layer: str = ""
    trivial: bool = False
    std: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n: int = 1
    dead: int = 0
    seconds: float = 0.0
    forward_passes: int = 0
    peak_bytes: int = 0


def digest_of(*parts: Any) -> str:
    """A short key for what made an artefact.

    Args:
        parts: anything JSON can hold.

    Returns:
        Twelve hexadecimal digits.

    Example:
        >>> digest_of({"lr": 0.1}) == digest_of({"lr": 0.1}), digest_of({"lr": 0.1}) == digest_of({"lr": 0.2})
        (True, False)
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a parquet file atomically.

    Args:
        path: the file.
        columns: name to values.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary:
        pq.write_table(pa.table(dict(columns)), temporary, compression="zstd")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a parquet file.

    Args:
        path: the file.

    Returns:
        One dictionary a row.

    Raises:
        StudyError: it is absent or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise StudyError(
            f"{path} does not exist. Is {path.parent} a run directory of mergescope, and did it finish?"
        )
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StudyError(
            f"{path} can't be read as parquet ({error}). Delete it and run the study again."
        ) from error


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write results as a tidy table.

    Args:
        path: the parquet file.
        rows: the results.
    """
    write_table(path, {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)})


def read_rows(path: Path) -> list[Row]:
    """Read results.

    Args:
        path: the parquet file.

    Returns:
        The rows.

    Raises:
        StudyError: it is absent, damaged, or lacks columns.
    """
    table = read_table(path)
    names = {field.name for field in fields(Row)}
    if table and not names <= table[0].keys():
        raise StudyError(
            f"{path} lacks the columns {sorted(names - table[0].keys())}: another version wrote it."
        )
    return [Row(**{name: line[name] for name in names}) for line in table]


def checkpoint_path(run: Path, name: str, key: str) -> Path:
    """Where a run keeps a checkpoint, without making anything.

    Args:
        run: the run directory.
        name: readable name.
        key: digest of what makes it.

    Returns:
        A directory; it exists only if it is complete.
    """
    return run / "checkpoints" / f"{name}-{key}"


def measures_path(run: Path, name: str, key: str) -> Path:
    """Where a run keeps partial results, without making anything.

    Args:
        run: the run directory.
        name: readable name.
        key: digest of what makes them.

    Returns:
        Path stem.
    """
    return run / "measures" / f"{name}-{key}"


def _unusable(path: Path, error: OSError) -> str:
    advice = "Correct its permissions, or choose another --out."
    return f"{path} can't be used as a run directory: {error.strerror}. {advice}"


class RunDirectory:
    """Where a study keeps what it made: ``run.yaml``, ``checkpoints/``, ``measures/``, results.

    Args:
        path: the directory; made if absent.

    Raises:
        StudyError: the path is a file, or can't be written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(_unusable(self.path, error)) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running here, and remove what a killed run left half-written.

        Yields:
            Nothing.

        Raises:
            StudyError: another process holds the directory, or it can't be written to.
        """
        used = (self.path / ".lock").exists()
        try:
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise StudyError(_unusable(self.path, error)) from error
        with lock as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"Another process is running in {self.path}. Wait, or choose another --out."
                ) from error
            if used:
                _remove_leftovers(self.path)
            yield

    def checkpoint(self, name: str, key: str) -> Path:
        """Where a checkpoint is, or will be.

        Args:
            name: readable name.
            key: digest of what makes it.

        Returns:
            A directory; it exists only if it is complete.
        """
        return checkpoint_path(self.path, name, key)

    def measures(self, name: str, key: str) -> Path:
        """Where partial results are, or will be.

        Args:
            name: readable name.
            key: digest of what makes them.

        Returns:
            Path stem of ``.rows.parquet`` and ``.samples.parquet``.
        """
        return measures_path(self.path, name, key)

    def write_run(
        self, study: str, preset: str, config: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> None:
        """Write ``run.yaml``.

        Args:
            study: the study's name.
            preset: which preset.
            config: the resolved configuration.
            provenance: data fingerprints, checkpoint digests, cost.
        """
        content = {
            "study": study,
            "preset": preset,
            "config": dict(config),
            "provenance": {**provenance, "versions": versions()},
        }
        with atomic_file(self.path / "run.yaml") as temporary:
            temporary.write_text(
                yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
            )

    def read_run(self) -> dict[str, Any]:
        """Read ``run.yaml``.

        Returns:
            Its content.

        Raises:
            StudyError: it is absent or damaged.
        """
        path = self.path / "run.yaml"
        if not path.is_file():
            raise StudyError(
                f"{self.path} is no run directory: it has no run.yaml. Name the directory of a study."
            )
        try:
            content = read_yaml(path)
        except DocumentError as error:
            raise StudyError(
                f"{path} is not valid YAML: {error}. Name another run, or make it again."
            ) from error
        if not isinstance(content, dict) or "study" not in content:
            raise StudyError(f"{path} does not describe a study.")
        return content


def _remove_leftovers(run: Path) -> None:
    # What a killed run was writing; nothing of another run below, which may be at work.
    for folder, names, files in os.walk(run):
        here = Path(folder)
        if here != run and (here / ".lock").exists():
            names.clear()
            continue
        for name in [name for name in names if re.fullmatch(TEMPORARY, name)]:
            names.remove(name)
            shutil.rmtree(here / name)
        for name in files:
            if re.fullmatch(TEMPORARY, name):
                (here / name).unlink(missing_ok=True)


def open_run(path: str | os.PathLike[str], study: str) -> RunDirectory:
    """A run directory: a new one, or that of an earlier run of the same study, whose results are replaced.

    Args:
        path: the directory.
        study: what ``run.yaml`` calls it.

    Returns:
        The run directory.

    Raises:
        StudyError: it holds another study, or can't be used.
    """
    run = RunDirectory(path)
    if (run.path / "run.yaml").is_file() and (found := run.read_run()["study"]) != study:
        raise StudyError(
            f"{run.path} holds the results of the study {found!r}, which would be lost. Choose another --out."
        )
    return run


def versions() -> dict[str, str]:
    """Versions that results depend on.

    Returns:
        Package of [`PACKAGES`][] (and python) to version; those that are not installed are left out.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
