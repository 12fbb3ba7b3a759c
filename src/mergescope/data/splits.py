"""Which files of a directory belong together, and which of the splits is measured on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mergescope.errors import DataError, did_you_mean

SYNONYMS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Names of splits in file and directory names, and what each means."""

FORMATS = {
    ".parquet": "parquet", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".json": "json", ".txt": "text",
}  # fmt: skip
"""Suffixes of tables and the reader of each, in the order in which a directory is searched."""

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

_SHARD = re.compile(r"[-_.](\d{5,}|\d+-of-\d+(-[0-9a-f]{16})?)$")
_SIDE_FILES = {"dataset_info.json", "dataset_infos.json", "config.json", "metadata.csv", "metadata.jsonl"}


def choose_split(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The split to read: the wanted one, else test, else validation, else the only one.

    Args:
        names: the splits that exist.
        wanted: what the user asked for; ``dev``, ``val`` and ``valid`` are other words for
            validation, ``eval`` for test.
        where: the data set, for the message.

    Returns:
        One of the names.

    Raises:
        DataError: there is no such split, or no way to choose.

    Example:
        >>> choose_split(["train", "dev"], None, "data")
        'dev'
    """
    for goal in ("test", "validation") if wanted is None else (wanted,):
        if goal in names:
            return goal
        meaning = SYNONYMS.get(goal.lower())
        same = [name for name in names if meaning and SYNONYMS.get(name.lower()) == meaning]
        if len(same) == 1:
            return same[0]
    have = ", ".join(names) or "none"
    if wanted is not None:
        raise DataError(
            f"{where} has no split {wanted!r}.{did_you_mean(wanted, names)} Its splits are: {have}."
        )
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"{where} has several splits, and none is called test or validation: {have}. Choose one with split."
    )


def file_split(path: Path) -> str:
    """The split of a table that stands alone, by its name.

    Args:
        path: the file.

    Returns:
        Its split.

    Example:
        >>> file_split(Path("imdb-test.csv")), file_split(Path("reviews.csv"))
        ('test', 'reviews')
    """
    (name,) = _named([_SHARD.sub("", path.stem)]).values()
    return name


def split_files(directory: Path, config: str | None = None) -> dict[str, list[Path]]:
    """The tables of a directory by split: by file names, or by directories named like a split.

    ``test.parquet``, ``test-00000-of-00001.parquet``, ``imdb_test.csv`` and ``data/test/any.csv`` are
    all of the split test. Of several formats, the one that has split names counts, else the first
    of [`FORMATS`][]. Files in other directories belong to other data sets (configs).

    Args:
        directory: where to look.
        config: the subdirectory of one of several data sets.

    Returns:
        Split to files, sorted; empty if there are no tables.

    Raises:
        DataError: there is no such config, or there are several data sets.
    """
    if config is not None:
        inner = [path for path in (directory / config, directory / "data" / config) if path.is_dir()]
        if not inner:
            have = sorted(path.name for path in directory.iterdir() if path.is_dir())
            raise DataError(
                f"{directory} has no config {config!r}: there is no directory of that name in it."
                f"{did_you_mean(config, have)} Its directories are: {', '.join(have) or 'none'}."
            )
        return split_files(inner[0])
    found = [path for path in visible_files(directory) if path.name.lower() not in _SIDE_FILES]
    by_format = [[path for path in found if path.suffix.lower() == suffix] for suffix in FORMATS]
    named = [files for files in by_format if any(_says_split(path, directory) for path in files)]
    files = next(iter(named), None) or next((files for files in by_format if files), [])
    homes: dict[str, dict[tuple[str, bool], list[Path]]] = {}
    for path in files:
        parents = path.relative_to(directory).parts[:-1]
        words = [SYNONYMS[part.lower()] for part in parents if part.lower() in SYNONYMS]
        home = "/".join(part for part in parents if part.lower() not in {*SYNONYMS, "data"})
        group = (words[-1], True) if words else (_SHARD.sub("", path.stem), False)
        homes.setdefault(home, {}).setdefault(group, []).append(path)
    if not homes:
        return {}
    if "" not in homes and len(homes) > 1:
        raise DataError(
            f"{directory} holds several data sets, in the directories {', '.join(sorted(homes))}. Name one of "
            "those directories, or choose it with config."
        )
    groups = homes[""] if "" in homes else next(iter(homes.values()))
    names = _named([stem for stem, by_directory in groups if not by_directory])
    splits: dict[str, list[Path]] = {}
    for (word, by_directory), members in groups.items():
        splits.setdefault(word if by_directory else names[word], []).extend(members)
    return {name: sorted(members) for name, members in splits.items()}


def visible_files(directory: Path) -> list[Path]:
    """All files below a directory, but for hidden ones.

    Links to other directories are followed, unless they lead back to where they come from, or to what is
    found without them. Behind a link, a directory that further links lead to is visited once.

    Args:
        directory: where to look.

    Returns:
        Paths, sorted.
    """
    root = directory.resolve()
    # A directory to the real places on the way to it, its own last.
    above: dict[Path, tuple[Path, ...]] = {directory: (*root.parents, root)}
    found: list[Path] = []
    linked: set[Path] = set()  # places that links behind links have led to
    for folder, inner, names in os.walk(directory, followlinks=True):
        here = Path(folder)
        way = above.pop(here)
        places = {name: (here / name).resolve() for name in inner if not name.startswith(".")}
        inner[:] = sorted(name for name, place in places.items() if _leads_on(name, place, way, root))
        if way[-1] != root / here.relative_to(directory):
            further = [name for name in inner if places[name] != way[-1] / name]
            inner[:] = [name for name in inner if name not in further or places[name] not in linked]
            linked |= {places[name] for name in further}
        above |= {here / name: (*way, places[name]) for name in inner}
        files = (here / name for name in names if not name.startswith("."))
        found += [file for file in files if file.is_file()]
    return sorted(found)


def _leads_on(name: str, place: Path, way: tuple[Path, ...], root: Path) -> bool:
    if place in way:
        return False
    link = place != way[-1] / name
    if not link or root not in place.parents:
        return True
    return any(part.startswith(".") for part in place.relative_to(root).parts)


def _says_split(path: Path, directory: Path) -> bool:
    parts = path.relative_to(directory).parts[:-1]
    return bool(_meanings(path.stem)) or any(part.lower() in SYNONYMS for part in parts)


def _meanings(stem: str) -> set[str]:
    return {SYNONYMS[word] for word in re.split(r"[\W_]+", stem.lower()) if word in SYNONYMS}


def _named(stems: Iterable[str]) -> dict[str, str]:
    # A stem that merely holds a split's name ("imdb_test") gets it if no other claims it:
    # "test_a" and "test_b" are two splits, and neither is hidden behind the other.
    stems = list(dict.fromkeys(stems))
    names = {stem: SYNONYMS[stem.lower()] for stem in stems if stem.lower() in SYNONYMS}
    claims = {stem: _meanings(stem) for stem in stems if stem not in names}
    taken = list(names.values())
    for stem, meanings in claims.items():
        rivals = sum(meanings == other for other in claims.values())
        clear = len(meanings) == 1 and rivals == 1 and not meanings & set(taken)
        names[stem] = next(iter(meanings)) if clear else re.sub(r"\W+", "_", stem)
    return names


def image_files(directory: Path) -> dict[str, list[tuple[Path, str | None]]]:
    """The images of ``root/class/x.png`` or ``root/split/class/x.png``, with their classes.

    Args:
        directory: the root.

    Returns:
        Split (``all`` where there are none) to pairs of file and class; the class is None for
        images outside any class directory. Empty if there are no images.

    Raises:
        DataError: some directories are splits and others are not, or only some images have a class.
    """
    found = [path for path in visible_files(directory) if path.suffix.lower() in IMAGES]
    parts = {path: path.relative_to(directory).parts for path in found}
    tops = {names[0] for names in parts.values() if len(names) > 1}
    deep = {names[0] for names in parts.values() if len(names) > 2}
    words = {top for top in tops if top.lower() in SYNONYMS}
    # A class may be called "train" too: then its images lie right in it, beside other classes.
    by_split = bool(words) and (words == tops or bool(words & deep))
    if by_split and words != tops:
        raise DataError(
            f"{directory} mixes directories of splits ({', '.join(sorted(words))}) with others "
            f"({', '.join(sorted(tops - words))}). Expected root/class/x.png or root/split/class/x.png."
        )
    splits: dict[str, list[tuple[Path, str | None]]] = {}
    for path, names in parts.items():
        inner = names[1:] if by_split else names
        split = SYNONYMS[names[0].lower()] if by_split and len(names) > 1 else "all"
        splits.setdefault(split, []).append((path, inner[0] if len(inner) > 1 else None))
    lone = [path for members in splits.values() for path, label in members if label is None]
    if lone and len(lone) != len(found):
        raise DataError(
            f"{directory} has images outside its class directories, such as {lone[0]}. Expected "
            "root/class/x.png or root/split/class/x.png throughout."
        )
    return splits
