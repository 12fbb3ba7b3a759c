"""Texts made from the columns of a table: one column, a pair, or a template."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergescope.data.columns import LABELS, describe_columns, is_text, is_value, known_column
from mergescope.errors import DataError

if TYPE_CHECKING:
    import datasets

TEXTS = ("text", "sentence", "content", "review", "document", "comment", "body", "utterance", "message")
"""Names of text columns."""

PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
"""Names of columns that are two segments of one input."""


@dataclass(frozen=True)
class Template:
    """A text made from columns: ``"premise: {premise} hypothesis: {hypothesis}"``.

    Attributes:
        parts: pairs of literal text and the column that follows it, or None at the end.
        names: names of classes, for ``ClassLabel`` columns, which give names and not numbers.

    Example:
        >>> from datasets import Dataset
        >>> table = Dataset.from_dict({"q": ["Why?"], "a": ["So."]})
        >>> Template.parse("Q: {q} A: {a}", table).fill({"q": "Why?", "a": "So."})
        'Q: Why? A: So.'
    """

    parts: tuple[tuple[str, str | None], ...]
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, table: datasets.Dataset, option: str = "--template") -> Template:
        """Read a template; ``{{`` and ``}}`` are braces.

        Args:
            text: with columns in braces.
            table: the table.
            option: where the template comes from, for messages.

        Returns:
            The template.

        Raises:
            DataError: the braces don't match, a field is no column, or a column is no text or number.
        """
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise DataError(
                f"The template {text!r} ({option}) can't be read: {error}. Write columns as {{name}}, and a brace "
                "as {{ or }}."
            ) from error
        if any(spec or conversion for _, _, spec, conversion in pieces):
            raise DataError(
                f"The template {text!r} ({option}) has a field with a format. Write columns as {{name}}."
            )
        parts = tuple((literal, name) for literal, name, _, _ in pieces)
        if not any(name is not None for _, name in parts):
            raise DataError(
                f"The template {text!r} ({option}) names no column, so that every text would be the same. Write "
                f"columns as {{name}}. Columns: {describe_columns(table)}."
            )
        return cls._of(parts, table, option)

    @classmethod
    def of_column(cls, column: str, table: datasets.Dataset, option: str = "--text-column") -> Template:
        """The text of one column.

        Args:
            column: its name.
            table: the table.
            option: where the name comes from, for messages.

        Returns:
            The template.

        Raises:
            DataError: there is no such column, or it is no text.
        """
        if not is_text(table.features[known_column(table, column, option)]):
            raise DataError(
                f"The column {column!r} ({option}) is no text. Columns: {describe_columns(table)}. Choose a string "
                "column, or make a text of it with --template."
            )
        return cls._of((("", column),), table, option)

    @classmethod
    def _of(cls, parts: tuple[tuple[str, str | None], ...], table: datasets.Dataset, option: str) -> Template:
        columns = [known_column(table, name, option) for _, name in parts if name is not None]
        features = {name: table.features[name] for name in columns}
        for name, feature in features.items():
            if not is_value(feature) and not hasattr(feature, "names"):
                raise DataError(
                    f"The template's field {name!r} ({option}) is neither text nor a number. Columns: "
                    f"{describe_columns(table)}."
                )
        names = {name: feature.names for name, feature in features.items() if hasattr(feature, "names")}
        return cls(parts, names)

    @property
    def columns(self) -> list[str]:
        """The columns that it uses."""
        return list(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, row: Mapping[str, Any]) -> str | None:
        """The text of a row.

        Args:
            row: column to value.

        Returns:
            The text; None if a column that it uses is empty: None, NaN or blanks.
        """
        text = []
        for literal, name in self.parts:
            text.append(literal)
            if name is None:
                continue
            value = row[name]
            if value is not None and name in self.names:
                value = self.names[name][value] if value >= 0 else None  # -1 is a hidden label
            if value is None or value != value or not str(value).strip():
                return None
            text.append(str(value))
        return "".join(text)


@dataclass(frozen=True)
class Texts:
    """How the rows of a table become texts.

    Attributes:
        text: what is measured.
        pair: a second segment, for encoders that were trained on pairs.
        prompt: what comes before the text, and counts neither as feature nor for the loss.
    """

    text: Template
    pair: Template | None = None
    prompt: Template | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that they use."""
        used = [template.columns for template in (self.text, self.pair, self.prompt) if template is not None]
        return list(dict.fromkeys(name for names in used for name in names))


def choose_texts(
    table: datasets.Dataset,
    *,
    text_column: str | Sequence[str] | None = None,
    template: str | None = None,
    prompt: str | None = None,
    label_column: str | None = None,
) -> Texts:
    """The texts of a table.

    Without any choice: a known pair of columns ([`PAIRS`][]), else the column with a known name
    ([`TEXTS`][]), else the only string column.

    Args:
        table: any table.
        text_column: one column, or two that are a pair (also ``"premise,hypothesis"``).
        template: a text made from columns instead.
        prompt: a column, or a template in braces, whose text comes first and does not count.
        label_column: not a text.

    Returns:
        The texts.

    Raises:
        DataError: a column or field is unknown or no text, or it is not clear which is meant.

    Example:
        >>> from datasets import Dataset
        >>> texts = choose_texts(Dataset.from_dict({"id": ["a"], "text": ["So."]}))
        >>> texts.columns
        ['text']
    """
    before = None
    if prompt is not None:
        option = "--prompt-column"
        make = Template.parse if "{" in prompt and prompt not in table.features else Template.of_column
        before = make(prompt, table, option)
    if template is not None:
        if text_column is not None:
            raise DataError("Give a text column or a template, not both: the template names its columns.")
        return Texts(Template.parse(template, table), prompt=before)
    if text_column is None:
        chosen = _guess(table, {label_column, *([] if before is None else before.columns)})
    elif isinstance(text_column, str):
        chosen = [text_column] if text_column in table.features else text_column.split(",")
    else:
        chosen = list(text_column)
    if len(chosen) not in (1, 2):
        raise DataError(
            f"A text is one column or a pair, got {len(chosen)}: {chosen}. Use --template for more."
        )
    first, *second = (Template.of_column(name.strip(), table) for name in chosen)
    return Texts(first, second[0] if second else None, before)


def _guess(table: datasets.Dataset, others: set[str | None]) -> list[str]:
    texts = [name for name, feature in table.features.items() if is_text(feature) and name not in others]
    pairs = [list(pair) for pair in PAIRS if set(pair) <= set(texts)]
    named = [[name] for name in texts if name.lower() in TEXTS]
    found = pairs or named or [[name] for name in texts if name.lower() not in LABELS]
    if len(found) != 1:
        which = f"Several could be the text: {', '.join(' with '.join(names) for names in found)}"
        raise DataError(
            f"{which if found else 'This model takes texts, and no column is text'}. Columns: "
            f"{describe_columns(table)}. Choose one with --text-column, or make a text of several with --template."
        )
    return found[0]
