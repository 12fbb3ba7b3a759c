"""The known tasks by name: where their data are, which columns and splits count, what classes mean.

Hub data sets are read at ``main`` unless the task is pinned here or by the user
(``eurosat@COMMIT``). The pins here are commits that were seen in the data set's own history; where
none was seen there is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mergescope.data.columns import (
    choose_image_column,
    choose_label_column,
    describe_columns,
    is_image,
    is_text,
    is_value,
    known_column,
)
from mergescope.data.prompts import ALIASES, GENERIC, TEMPLATES, WORDINGS, Wording, canonical, known_classes
from mergescope.data.sources import load_table
from mergescope.data.splits import SYNONYMS, choose_split, image_files, split_files
from mergescope.data.templates import choose_texts
from mergescope.documents import usable_path
from mergescope.errors import DataError, did_you_mean, near_paths

if TYPE_CHECKING:
    import datasets

IMAGES, TEXTS, TEXT_TO_TEXT = "image-classification", "text-classification", "text-to-text"
"""Kinds of tasks."""


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task before any data are read.

    Attributes:
        name: for tables and directories.
        source: hub id ``org/name`` or local path of the data.
        kind: ``"image-classification"``, ``"text-classification"`` or ``"text-to-text"``.
        config: which of several data sets under one name.
        revision: branch, tag or commit of a hub id; None is ``main``.
        columns: ``image``, ``text`` and ``label`` to the names of those columns.
        splits: ``train`` and ``test`` to the names of those splits. Where a data set hides the
            answers of its test split, its validation split is the test. ``validation`` too, if it is not
            to be held out of train.
        classes: the class names in the order of the labels, or None if the data say them.
        aliases: other names that data give classes, to those.
        templates: for zero-shot heads; ``{}`` is the class.
        wording: of text-to-text tasks.
        citation: what to cite. Licences differ: they are on the data set's card.
        notes: what a reader of results should know of the splits.
    """

    name: str
    source: str
    kind: str = IMAGES
    config: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: {"image": "image", "label": "label"})
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    classes: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    wording: Wording | None = None
    citation: str = ""
    notes: tuple[str, ...] = ()


def _images(name: str, source: str, citation: str, **more: str | None | dict[str, str]) -> TaskSpec:
    return TaskSpec(
        name, source, IMAGES, classes=known_classes()[name], aliases=ALIASES.get(name, {}),
        templates=TEMPLATES[name], citation=citation, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def _texts(name: str, source: str, test: str, citation: str, config: str | None = None) -> TaskSpec:
    return TaskSpec(
        name, source, TEXT_TO_TEXT, config, columns={}, splits={"train": "train", "test": test},
        classes=known_classes().get(name), aliases=ALIASES.get(name, {}), wording=WORDINGS[name], citation=citation,
    )  # fmt: skip


_SPECS = (
    _images("cars", "tanganke/stanford_cars", "Krause et al., 3dRR 2013"),
    _images("dtd", "tanganke/dtd", "Cimpoi et al., CVPR 2014"),
    _images("eurosat", "tanganke/eurosat", "Helber et al., JSTARS 2019"),
    _images(
        "gtsrb", "tanganke/gtsrb", "Stallkamp et al., Neural Networks 2012",
        revision="ea889fff70dda7b09e94a4b207dded438deca549",
    ),
    _images("mnist", "ylecun/mnist", "LeCun et al., Proc. IEEE 1998"),
    _images("resisc45", "tanganke/resisc45", "Cheng et al., Proc. IEEE 2017"),
    _images(
        "sun397", "tanganke/sun397", "Xiao et al., CVPR 2010", revision="9c4afd6174afa3974f209a0ef099dbbe244dfd27"
    ),
    _images("svhn", "ufldl-stanford/svhn", "Netzer et al., NIPS workshop 2011", config="cropped_digits"),
    _images(
        "cifar10", "uoft-cs/cifar10", "Krizhevsky 2009", columns={"image": "img", "label": "label"}
    ),
    _images(
        "cifar100", "uoft-cs/cifar100", "Krizhevsky 2009", columns={"image": "img", "label": "fine_label"}
    ),
    TaskSpec(
        "tiny-imagenet", "zh-plus/tiny-imagenet", splits={"train": "train", "test": "valid"},
        citation="Le and Yang 2015; Deng et al., CVPR 2009",
    ),
    _texts("imdb", "stanfordnlp/imdb", "test", "Maas et al., ACL 2011"),
    _texts("race", "ehovy/race", "test", "Lai et al., EMNLP 2017", "all"),
    _texts("qasc", "allenai/qasc", "validation", "Khot et al., AAAI 2020"),
    # Fabbri's own copy is a script, which datasets runs no longer.
    _texts("multi_news", "Awesome075/multi_news_parquet", "test", "Fabbri et al., ACL 2019"),
    _texts("squad", "rajpurkar/squad", "validation", "Rajpurkar et al., EMNLP 2016"),
    _texts("common_gen", "allenai/common_gen", "validation", "Lin et al., EMNLP Findings 2020"),
)  # fmt: skip

TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in _SPECS}
"""The known tasks by name."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "clip8": ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn"),
    "t5-six": ("imdb", "race", "qasc", "multi_news", "squad", "common_gen"),
}
"""Sets of tasks that papers use together (TA, ATTN; CTL Figs 19 to 24): CLIP's eight and T5's six."""

_SYNONYMS = {"stanfordcars": "cars"}


def known_task(name: str) -> str | None:
    """The task that a name means, whatever its spelling.

    Args:
        name: a task's name or its data set's hub id.

    Returns:
        A key of [`TASKS`][], or None.

    Example:
        >>> known_task("Stanford-Cars"), known_task("CIFAR-10"), known_task("tanganke/dtd"), known_task("pets")
        ('cars', 'cifar10', 'dtd', None)
    """
    plain = _joined(name)
    found = _SYNONYMS.get(plain)
    fits = (spec.name for spec in TASKS.values() if plain == _joined(spec.name) or name == spec.source)
    return found or next(fits, None)


def _joined(name: str) -> str:
    return canonical(name).replace(" ", "")


def task_spec(
    name_or_path: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    text: str | None = None,
    answer_column: str | None = None,
    image_column: str | None = None,
) -> TaskSpec:
    """The description of a task.

    Args:
        name_or_path: a known task; a known task or a new name with its data, ``name=directory``; a
            local directory with train and test splits; a hub id. Known tasks and hub ids may end
            in ``@revision``. A path that exists wins over everything else.
        label_column: the labels' column, if its name does not say so.
        text: the texts' column, two with a comma between, or a template with columns in braces.
        answer_column: what is to be written, which makes it a text-to-text task.
        image_column: the images' column, if there are several.

    Returns:
        The description. For data that nobody has described, their columns decide what kind of task
        it is, so a table is opened.

    Raises:
        DataError: there is no such task, or the data are no task. Near matches are suggested.

    Example:
        >>> task_spec("eurosat").source, len(task_spec("tanganke/sun397").classes)
        ('tanganke/eurosat', 397)
        >>> task_spec("dtd@v1").revision
        'v1'
    """
    said = _Said(label_column, text, answer_column, image_column)
    given = os.fspath(name_or_path).strip()
    if (path := usable_path(given, DataError)).exists():
        return _described(path.resolve().name, given, said)
    name, equals, source = (part.strip() for part in given.partition("="))
    if equals and "/" not in name:
        if not name or not source:
            raise DataError(f"The task {given!r} has an empty part. Write name=directory.")
        known = known_task(name)
        return _described(name, source, said) if known is None else said.over(copy_of(TASKS[known], source))
    plain, at, revision = given.partition("@")
    known = known_task(plain)
    if known is not None:
        return said.over(replace(TASKS[known], revision=revision) if at else TASKS[known])
    hint = did_you_mean(plain, [*TASKS, *(spec.source for spec in TASKS.values())]) or near_paths(plain)
    if plain.count("/") == 1 and not plain.startswith((".", "/", "~")):
        try:
            return _described(plain.rpartition("/")[2], plain, said, revision or None)
        except DataError as error:
            raise DataError(f"{error}{hint}") from error
    raise DataError(
        f"There is no task {given!r}.{hint} Known tasks: {', '.join(TASKS)}. For other data give a directory, "
        "name=directory or a hub id."
    )


@dataclass(frozen=True)
class _Said:
    """What the user says of the columns."""

    label: str | None = None
    text: str | None = None
    answer: str | None = None
    image: str | None = None

    def over(self, spec: TaskSpec) -> TaskSpec:
        # What is known of a task stays where nothing is said.
        if self.label is not None:
            spec = replace(spec, columns={**spec.columns, "label": self.label})
        if spec.wording is not None and (self.text, self.answer) != (None, None):
            spec = replace(
                spec,
                wording=Wording(
                    spec.wording.text if self.text is None else as_template(self.text),
                    spec.wording.answer if self.answer is None else f"{{{self.answer}}}",
                ),
            )
        return spec


def as_template(text: str) -> str:
    """A choice of columns as a template.

    Args:
        text: a column, two with a comma between, or a template.

    Returns:
        The template.

    Example:
        >>> as_template("premise,hypothesis"), as_template("summarize: {document}")
        ('{premise} {hypothesis}', 'summarize: {document}')
    """
    return text if "{" in text else " ".join(f"{{{name.strip()}}}" for name in text.split(","))


def copy_of(spec: TaskSpec, source: str) -> TaskSpec:
    """A task with its data in a directory, in place of the hub.

    Args:
        spec: the task.
        source: the directory. Where it holds several data sets as on the hub, the task's is taken.

    Returns:
        The description.

    Raises:
        DataError: there is no such directory.
    """
    path = usable_path(source, DataError)
    if not path.exists():
        raise DataError(
            f"There is no directory {source!r} with the data of the task {spec.name}.{near_paths(path)} Give "
            f"one that exists, or {spec.name} alone to read {spec.source} from the hub."
        )
    kept = [place for place in (path, path / "data") if spec.config and (place / spec.config).is_dir()]
    return replace(spec, source=source, revision=None, config=spec.config if kept else None)


def _described(name: str, source: str, said: _Said, revision: str | None = None) -> TaskSpec:
    table = load_table(source, revision=revision)
    path = Path(source).expanduser()
    names = _split_names(path, table)
    test = choose_split(names, None, source)
    if SYNONYMS.get(test.lower()) not in ("test", "validation"):
        raise DataError(
            f"{source} has no test split, only {test}. Put the data in files or directories that are called train and "
            "test."
        )
    kind, columns = _roles(table, source, said)
    splits, notes = _chosen_splits(names, test, _are_hidden(table, columns.get("label")))
    templates = GENERIC if kind == IMAGES else ()
    wording = None
    if said.answer is not None:
        wording = Wording(as_template(columns.pop("text")), f"{{{said.answer}}}")
    return TaskSpec(
        name,
        source,
        kind,
        revision=revision,
        columns=columns,
        splits=splits,
        templates=templates,
        wording=wording,
        notes=notes,
    )


def _chosen_splits(names: Sequence[str], test: str, hidden: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    others = [split for split in names if split != test and SYNONYMS.get(split.lower()) == "validation"]
    splits = {"train": "train", "test": test}
    if others and hidden:
        told = f"the labels of the split {test} are hidden: tests are on {others[0]}, validation is held out of train"
        return {**splits, "test": others[0]}, (told,)
    if others:  # its makers know best which rows are alike
        splits["validation"] = others[0]
    return splits, ()


def _are_hidden(table: datasets.Dataset, label: str | None) -> bool:
    return label is not None and all(value is None or value == -1 for value in table[label][:])


def _split_names(path: Path, table: datasets.Dataset) -> list[str]:
    if not path.is_dir():  # of a hub data set, the library knows all
        return list(table.info.splits or [str(table.split)])
    saved = path / "dataset_dict.json"
    if saved.is_file():
        return list(json.loads(saved.read_text(encoding="utf-8"))["splits"])
    files = list(split_files(path))
    return files if any(name in SYNONYMS for name in files) else list(image_files(path)) or files


def _roles(table: datasets.Dataset, source: str, said: _Said) -> tuple[str, dict[str, str]]:
    if said.answer is not None:
        answer = known_column(table, said.answer, "the answers")
        return TEXT_TO_TEXT, {"text": said.text or ",".join(choose_texts(table, label_column=answer).columns)}
    label = choose_label_column(table, said.label)
    pictures = any(is_image(feature) for feature in table.features.values())
    if label is None:
        raise DataError(
            f"{source} has no labels, so it is no task. Columns: {describe_columns(table)}. Call the labels' column "
            "label, or put images into one directory a class."
        )
    if pictures:
        return IMAGES, {"image": choose_image_column(table, said.image), "label": label}
    feature = table.features[label]
    if not is_value(feature) and not hasattr(feature, "names"):
        raise DataError(
            f"The column {label!r} of {source} holds no single labels ({describe_columns(table)}); several a row can't "
            "be classified. Choose a column of one class a row, or write one."
        )
    different = len(set(table[label][:])) if is_text(feature) else 0
    if len(table) >= 20 and different > len(table) / 2:
        raise DataError(
            f"The column {label!r} of {source} has {different} different texts in {len(table)} rows, so these are no "
            "classes. Write classes, or say that this is the column of answers to be written (answer_column)."
        )
    return TEXTS, {
        "text": said.text or ",".join(choose_texts(table, label_column=label).columns), "label": label,
    }  # fmt: skip
