"""Tables of samples from anywhere: hub data sets, local files and directories, image folders."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.data.columns import is_text, label_columns
from mergescope.data.json_rows import read_json_rows
from mergescope.data.splits import (
    FORMATS,
    SYNONYMS,
    choose_split,
    file_split,
    image_files,
    split_files,
)
from mergescope.documents import read_json, usable_path
from mergescope.errors import DataError, near_paths

if TYPE_CHECKING:
    import datasets

_KINDS = ", ".join(FORMATS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def parse_data_option(text: str) -> tuple[str, str]:
    """Take ``name=spec`` apart; without a name, the file or data set gives one.

    A path that exists is taken as it is, and so is a text with a directory before its first ``=``.

    Args:
        text: ``name=spec`` or ``spec``, as for [`load_table`][].

    Returns:
        Name and spec.

    Raises:
        DataError: one of them is empty, or no name that the system takes.

    Example:
        >>> parse_data_option("reviews=org/imdb@v1"), parse_data_option("runs/lr=3/spam/test.parquet")
        (('reviews', 'org/imdb@v1'), ('spam', 'runs/lr=3/spam/test.parquet'))
    """
    text = text.strip()
    name, equals, spec = (part.strip() for part in text.partition("="))
    if not equals or re.search(r"[/\\]", name) or usable_path(text, DataError).exists():
        name, spec = _name_of(text), text
    if not name or not spec:
        raise DataError(
            f"The data option {text!r} has an empty part. Write name=spec, where spec is a hub id, a file or "
            "a directory."
        )
    return name, spec


def _name_of(spec: str) -> str:
    path = usable_path(spec, DataError)
    parts = [part for part in (path.resolve() if path.exists() else path).parts if part.strip("/.~\\")]
    if parts and Path(parts[-1]).suffix.lower() in FORMATS:
        parts.append(file_split(Path(parts.pop())))
    while len(parts) > 1 and parts[-1].lower() in SYNONYMS:  # ".../spam/test.parquet" is called spam
        parts.pop()
    return parts[-1].partition("@")[0] if parts else ""


def load_table(
    spec: str | os.PathLike[str],
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    label_column: str | None = None,
) -> datasets.Dataset:
    """Open one split of a data set.

    Args:
        spec: a hub id ``org/name[@revision]``; a ``.parquet``, ``.csv``, ``.tsv``, ``.json``,
            ``.jsonl`` (mappings, one a line or in a list, or one mapping of columns) or ``.txt`` file (one
            text a line, empty lines skipped, column ``text``); a directory of those, with the splits' names
            in file or directory names; a directory written by ``save_to_disk``; or an image folder
            ``root[/split]/class/x.png``. A path that exists always wins over a hub id.
        split: which; by default test, else validation, else the only one.
        config: which of several data sets under one name.
        revision: branch, tag or commit of a hub id.
        limit: at most so many rows: a random subset (files are often sorted by class), in the
            order of the file. A larger limit keeps the rows of a smaller one.
        seed: of that subset.
        label_column: the labels' column, if its name does not say so. String labels become a
            ``ClassLabel`` when rows are left out, so that the rest keeps its numbers.

    Returns:
        The rows; on disk and read when asked, but for JSON and text files.

    Raises:
        DataError: nothing there, or it can't be read, or there is no such split.
    """
    if limit is not None and limit < 1:
        raise DataError(f"The limit must be at least 1 row, got {limit}.")
    text = os.fspath(spec)
    path = usable_path(text, DataError)
    if path.exists():
        table = _local(path, split, config)
    elif _looks_local(text):
        raise DataError(f"There is no file or directory {text!r}.{near_paths(path)}")
    else:
        table = _from_hub(text, split, config, revision)
    if not len(table):
        raise DataError(f"{text} (split {table.split}) has no rows. Choose another split or file.")
    if limit is None or limit >= len(table):
        return table
    return _subset(table, limit, seed, label_column)


def _subset(table: datasets.Dataset, limit: int, seed: int, label_column: str | None) -> datasets.Dataset:
    import datasets

    chosen = np.sort(np.random.default_rng(seed).permutation(len(table))[:limit])
    subset = table.select(chosen)
    with quiet_datasets():
        for column in label_columns(table, label_column):
            if is_text(table.features[column]):
                names = sorted({value for value in table[column][:] if value is not None})
                subset = subset.cast_column(column, datasets.ClassLabel(names=names))
    return subset


def _local(path: Path, split: str | None, config: str | None) -> datasets.Dataset:
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise DataError(
                f"{path} is no table that can be read: expected {_KINDS}, or a directory of such files, of "
                "images by class, or from save_to_disk."
            )
        name = choose_split([file_split(path)], split, str(path))
        return _read(name, [path])
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a directory, so it is not read. Copy it to a file.")
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _from_disk(path, split)
    files = split_files(path, config)
    images = {} if any(name in SYNONYMS for name in files) else image_files(path)
    by_class = any(label is not None for members in images.values() for _, label in members)
    if images and (by_class or not files):  # beside classes of images, a lone table is a list of them
        return _images(path, images, split)
    if not files:
        seen = ", ".join(sorted(item.name for item in path.iterdir())[:10]) or "nothing"
        raise DataError(f"{path} holds no tables ({_KINDS}) and no images. It holds: {seen}.")
    name = choose_split(list(files), split, str(path))
    return _read(name, files[name])


def _read(name: str, files: list[Path]) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    where = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    suffix = files[0].suffix.lower()
    if FORMATS[suffix] in ("text", "json"):
        try:
            rows = read_json_rows(files) if FORMATS[suffix] == "json" else pa.table({"text": _lines(files)})
        except OSError as error:
            raise DataError(
                f"{error.filename or where} can't be read: {error.strerror}. Check its permissions."
            ) from error
        return datasets.Dataset(datasets.table.InMemoryTable(rows), split=datasets.NamedSplit(name))
    if suffix == ".parquet":
        _require_plausible(files)
    if any("::" in str(file) for file in files):
        raise DataError(
            f"{where} has '::' in its path, by which the datasets library names a file in an archive. Rename it."
        )
    named = [glob.escape(str(file)) for file in files]  # the library takes names for patterns
    part = datasets.NamedSplit(name)
    try:
        # Not load_dataset: it tells the hub, and waits for it, whenever a file is read.
        with quiet_datasets():
            if FORMATS[suffix] == "parquet":
                table = datasets.Dataset.from_parquet(named, part)
            else:
                # By default the words "NA", "null" and "None" would be read as nothing at all.
                separator = "\t" if suffix == ".tsv" else ","
                table = datasets.Dataset.from_csv(
                    named, part, sep=separator, keep_default_na=False, na_values=[""]
                )
    except Exception as error:  # the library raises many kinds
        _require_cache(where, error)
        raise DataError(
            f"{where} can't be read as {FORMATS[suffix]}: {_reason(error)}. Check that every row has the same "
            "columns and that the file is complete."
        ) from error
    if any(column.startswith("__index_level_") for column in table.column_names):
        raise DataError(
            f"{where}: its rows have more fields than its header names. Quote fields that contain the "
            "separator, and give every column a name."
        )
    return table


def _require_cache(where: str, error: BaseException) -> None:
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    cause = _first_cause(error)
    if not isinstance(cause, OSError):
        return
    refused = Path(cause.filename) if isinstance(cause.filename, str) else None
    of_cache = refused is not None and (refused in (cache, *cache.parents) or cache in refused.parents)
    if of_cache or cause.errno in _FULL:
        raise DataError(
            f"{where} can't be read: the datasets library can't write its copy into {cache} ({cause.strerror}). Make "
            "room or correct the permissions there, or set HF_DATASETS_CACHE to another directory."
        ) from error


def _require_plausible(files: list[Path]) -> None:
    # Repeated values cost a parquet file nothing, but the reader writes each of them to its cache.
    import pyarrow.parquet as pq

    for file in files:
        try:
            rows = pq.read_metadata(file).num_rows
        except Exception:  # told by what reads it, whatever it is
            continue
        if rows > max(file.stat().st_size, 10_000):
            raise DataError(
                f"{file} ({file.stat().st_size:,} bytes) declares {rows:,} rows, more than it has bytes: it would "
                "unpack to far more than was fetched. Fetch the data from a source that you trust."
            )


def _lines(files: list[Path]) -> list[str]:
    lines: list[str] = []
    file = files[0]
    try:
        for file in files:
            with file.open(encoding="utf-8-sig") as rows:
                lines += [row.rstrip("\r\n") for row in rows if row.strip()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}). Convert it and try again."
        ) from error
    return lines


def _from_disk(path: Path, split: str | None) -> datasets.Dataset:
    import datasets

    try:
        if not (path / "dataset_dict.json").is_file():
            table = datasets.Dataset.load_from_disk(str(path))
            choose_split([str(table.split or "all")], split, str(path))
            return table
        names = read_json(path / "dataset_dict.json")["splits"]
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise DataError(
                f"{path / 'dataset_dict.json'} names the split {outside[0]!r}; splits are directories beside it. Save "
                "the data set again."
            )
        return datasets.Dataset.load_from_disk(str(path / choose_split(names, split, str(path))))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds
        raise DataError(
            f"{path} is not a complete directory of save_to_disk: {_reason(error)}. Save it again."
        ) from error


def _images(
    path: Path, files: dict[str, list[tuple[Path, str | None]]], split: str | None
) -> datasets.Dataset:
    import datasets

    # Classes of all splits, so that a split that lacks one keeps the others' numbers.
    classes = sorted({label for members in files.values() for _, label in members if label is not None})
    name = choose_split(list(files), split, str(path))
    columns: dict[str, list[Any]] = {"image": [str(file) for file, _ in files[name]]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if classes:
        columns["label"] = [label for _, label in files[name]]
        features["label"] = datasets.ClassLabel(names=classes)
    return datasets.Dataset.from_dict(columns, datasets.Features(features), split=datasets.NamedSplit(name))


def _from_hub(text: str, split: str | None, config: str | None, revision: str | None) -> datasets.Dataset:
    import datasets

    repo, _, pinned = text.partition("@")
    if pinned and revision and pinned != revision:
        raise DataError(f"{text!r} names the revision {pinned!r}, but {revision!r} was asked for.")
    revision = revision or pinned or None
    try:
        loaded: Any = datasets.load_dataset(repo, config, revision=revision)
    except Exception as error:  # the library raises many kinds
        asked = "".join(
            f", {what} {value!r}" for what, value in (("config", config), ("revision", revision)) if value
        )
        raise DataError(
            f"There is no file or directory {repo!r}, and datasets can't load it from the hub or its cache "
            f"({datasets.config.HF_DATASETS_CACHE}{asked}): {_reason(error)}.{near_paths(repo)} Check the spelling, "
            "the config, your network and your access. Without a network, fetch it where there is one "
            f"(datasets.load_dataset({repo!r}).save_to_disk(DIR)), copy DIR here, and name DIR."
        ) from error
    return loaded[choose_split(list(loaded), split, repo)]


def _looks_local(text: str) -> bool:
    return (
        text.startswith((".", "/", "~"))
        or text.count("/") > 1
        or "\\" in text
        or Path(text).suffix.lower() in FORMATS
    )


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:  # it says more than "an error occurred"
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    error = _first_cause(error)
    said = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {said[:400]}"


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the progress bars of the datasets library: they say what it caches, not how far we are.

    Yields:
        Nothing; the bars are back afterwards, if there were any.
    """
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()
