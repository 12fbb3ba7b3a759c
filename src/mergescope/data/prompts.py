"""Words: class names of the known tasks, templates for zero-shot heads, wordings of text-to-text tasks.

The class names are those of the data sets, in the order of their labels (``class_names.json``). The
templates and wordings are this project's own, so zero-shot accuracies differ a little from papers
that use CLIP's lists.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mergescope.errors import DataError, did_you_mean

TEMPLATES: dict[str, tuple[str, ...]] = {
    "cars": ("a photo of a {}, a car.", "a {} parked by the road.", "the {} seen from the side."),
    "cifar10": ("a tiny photo of a {}.", "a coarse picture of the {}.", "this is a {}."),
    "cifar100": ("a tiny photo of a {}.", "a coarse picture of the {}.", "this is a {}."),
    "dtd": ("a {} texture.", "a close look at something {}.", "a surface with a {} pattern."),
    "eurosat": ("a satellite picture that shows {}.", "{} as seen from space.", "land from above: {}."),
    "gtsrb": ("a road sign: {}.", "a traffic sign with the meaning {}.", "a cropped photo of the sign {}."),
    "mnist": ("the handwritten digit {}.", "a {} written by hand, white on black.", "the figure {}."),
    "resisc45": ("a picture of {} from high above.", "{} seen from a plane.", "an overhead picture with {}."),
    "sun397": ("a scene: {}.", "a photo taken at the {}.", "this place is a {}."),
    "svhn": ("the house number {}.", "the digit {} on a wall.", "a street photo of the figure {}."),
}
"""Templates by task; ``{}`` is the class."""

GENERIC = ("a photo of a {}.", "a picture of the {}.", "this is a {}.")
"""Templates of image tasks that nobody has described."""

ALIASES: dict[str, dict[str, str]] = {
    "cifar100": {"cra": "crab"},  # so spelled in the data set
    "eurosat": {
        "AnnualCrop": "annual crop land",
        "HerbaceousVegetation": "brushland or shrubland",
        "Highway": "highway or road",
        "Industrial": "industrial buildings or commercial buildings",
        "Pasture": "pasture land",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential buildings or homes or apartments",
        "SeaLake": "lake or sea",
    },
    "imdb": {"neg": "negative", "pos": "positive"},
}
"""Other names that data sets give a task's classes."""


@lru_cache(maxsize=1)
def known_classes() -> dict[str, tuple[str, ...]]:
    """The class names of every task that has them, in the order of the labels.

    Returns:
        Task to names.

    Example:
        >>> known_classes()["eurosat"][1]
        'forest'
    """
    text = Path(__file__).with_name("class_names.json").read_text(encoding="utf-8")
    return {task: tuple(names) for task, names in json.loads(text).items()}


def canonical(name: str) -> str:
    """A class name without what spellings differ in: case, underscores, punctuation.

    Args:
        name: of a class.

    Returns:
        Lower-case words with single spaces.

    Example:
        >>> canonical("Polka-dotted"), canonical("sea_ice")
        ('polka dotted', 'sea ice')
    """
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


class EmptyFieldError(DataError):
    """A row has nothing in a field of a wording."""


@dataclass(frozen=True)
class Wording:
    """How a row of a table becomes a question to a text-to-text model, and its answer.

    Fields in braces are columns, with ``{column[part]}`` for a part of one. What a field that is a
    list becomes is said after a colon: ``lettered`` (``(A) one (B) two``), ``joined`` (``one two``)
    or ``first``. ``named`` gives the name of a class.

    Attributes:
        text: what the model reads.
        answer: what it should write.

    Example:
        >>> wording = Wording("question: {q} options: {options:lettered}", "{key}")
        >>> wording.fill({"q": "Why?", "options": ["So.", "No."], "key": "B"})
        ('question: Why? options: (A) So. (B) No.', 'B')
    """

    text: str
    answer: str

    @property
    def label(self) -> str | None:
        """The column of class numbers, whose names are written; None if there is none."""
        fields = [*string.Formatter().parse(self.text), *string.Formatter().parse(self.answer)]
        return next((name for _, name, form, _ in fields if form == "named"), None)

    def fill(self, row: Mapping[str, Any], classes: Sequence[str] = ()) -> tuple[str, str]:
        """Text and answer of one row.

        Args:
            row: column to value.
            classes: names, for fields that are class numbers.

        Returns:
            Both.

        Raises:
            EmptyFieldError: a field is empty.
            DataError: a column is missing or of another type.
        """  # noqa: DOC502 (raised by what this calls)
        filler = _Filler(classes)
        return filler.vformat(self.text, (), row), filler.vformat(self.answer, (), row)

    def fill_what_is_there(
        self, row: Mapping[str, Any], classes: Sequence[str] = ()
    ) -> tuple[str | None, str | None]:
        """Text and answer of one row, as far as it has them.

        Args:
            row: column to value.
            classes: names, for fields that are class numbers.

        Returns:
            Both; None in place of one with an empty field.

        Raises:
            DataError: a column is missing or of another type.

        Example:
            >>> Wording("question: {q}", "{key}").fill_what_is_there({"q": "Why?", "key": ""})
            ('question: Why?', None)
        """  # noqa: DOC502 (raised by what this calls)
        filler = _Filler(classes)
        return filler.filled(self.text, row), filler.filled(self.answer, row)


class _Filler(string.Formatter):
    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes

    def filled(self, text: str, row: Mapping[str, Any]) -> str | None:
        try:
            return self.vformat(text, (), row)
        except EmptyFieldError:
            return None

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        column = field_name.partition("[")[0]
        try:
            value, key = super().get_field(field_name, args, kwargs)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            if kwargs.get(column, "") is None:  # it has no parts
                raise _empty(field_name) from error
            hint = did_you_mean(column, kwargs)
            raise DataError(
                f"The task's wording needs {{{field_name}}}, which the data lack.{hint} Columns: "
                f"{', '.join(kwargs)}. Use data in the layout of the task's own, or name=directory for other data."
            ) from error
        if value is None or (isinstance(value, (str, list, tuple)) and not len(value)):
            raise _empty(field_name)
        return value, key

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "named":
            whole = isinstance(value, (int, float)) and float(value).is_integer()
            if not whole or not 0 <= value < len(self.classes):
                raise DataError(f"The label {value!r} is no class: there are {len(self.classes)} classes.")
            return self.classes[int(value)]
        if format_spec not in _FORMATS:
            raise DataError(
                f"A wording has no format {format_spec!r}.{did_you_mean(format_spec, _FORMATS)} Use named, "
                f"{', '.join(name for name in _FORMATS if name)}, or none."
            )
        return _FORMATS[format_spec](value)


def _empty(field: str) -> EmptyFieldError:
    return EmptyFieldError(
        f"The field {{{field}}} is empty: this split's answers may be hidden. Choose another split."
    )


_FORMATS: dict[str, Callable[[Any], str]] = {
    "": str,
    "first": lambda items: str(items[0]),
    "joined": lambda items: " ".join(map(str, items)),
    "lettered": lambda items: " ".join(
        f"({chr(ord('A') + place)}) {item}" for place, item in enumerate(items)
    ),
}


WORDINGS = {
    "imdb": Wording("sentiment: {text}", "{label:named}"),
    "race": Wording("question: {question} options: {options:lettered} context: {article}", "{answer}"),
    "qasc": Wording(
        "question: {question} options: {choices[text]:lettered} context: {fact1} {fact2}", "{answerKey}"
    ),
    "multi_news": Wording("summarize: {document}", "{summary}"),
    "squad": Wording("question: {question} context: {context}", "{answers[text]:first}"),
    "common_gen": Wording("write a sentence with: {concepts:joined}", "{target}"),
}
"""The text-to-text tasks' wordings."""
