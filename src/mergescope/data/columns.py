"""Which columns of a table hold labels and images, and how columns are named in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergescope.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets

LABELS = ("label", "labels", "target", "class")
"""Names of label columns."""


def describe_columns(table: datasets.Dataset) -> str:
    """The columns with their types, for messages.

    Args:
        table: any table.

    Returns:
        For example ``"text (string), label (ClassLabel)"``.
    """
    return ", ".join(f"{name} ({_type(feature)})" for name, feature in table.features.items())


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or "list") if is_value(feature) else type(feature).__name__


def is_value(feature: Any) -> bool:
    """Whether a feature is a plain value: text, number, truth value or time.

    Args:
        feature: of a table.

    Returns:
        True or False.
    """
    return type(feature).__name__ == "Value"


def is_text(feature: Any) -> bool:
    """Whether a feature is text.

    Args:
        feature: of a table.

    Returns:
        True or False.
    """
    return is_value(feature) and "string" in feature.dtype


def known_column(table: datasets.Dataset, column: str, option: str) -> str:
    """Refuse the name of a column that is not there.

    Args:
        table: any table.
        column: the name.
        option: where it comes from, for the message.

    Returns:
        The name.

    Raises:
        DataError: there is no such column.
    """
    if column not in table.features:
        raise DataError(
            f"The data have no column {column!r} ({option}).{did_you_mean(column, table.features)} Their columns "
            f"are: {describe_columns(table)}."
        )
    return column


def label_columns(table: datasets.Dataset, column: str | None = None) -> list[str]:
    """Every column that may hold the labels.

    Args:
        table: any table.
        column: the one that the user names.

    Returns:
        That column; else those named as in [`LABELS`][], else those of type ``ClassLabel``.

    Raises:
        DataError: there is no such column.
    """  # noqa: DOC502 (raised by what this calls)
    if column is not None:
        return [known_column(table, column, "--label-column")]
    named = [name for name in table.features if name.lower() in LABELS]
    return named or [n for n, feature in table.features.items() if type(feature).__name__ == "ClassLabel"]


def choose_label_column(table: datasets.Dataset, column: str | None = None) -> str | None:
    """The column of the labels.

    Args:
        table: any table.
        column: the one that the user names.

    Returns:
        Its name, or None if nothing looks like labels.

    Raises:
        DataError: there is no such column, or several could be it.

    Example:
        >>> from datasets import Dataset
        >>> choose_label_column(Dataset.from_dict({"text": ["a"], "label": [0]}))
        'label'
    """
    found = label_columns(table, column)
    if len(found) > 1:
        raise DataError(
            f"Several columns could be the labels: {', '.join(found)}. Choose one with --label-column. All columns: "
            f"{describe_columns(table)}."
        )
    return found[0] if found else None


def choose_image_column(table: datasets.Dataset, column: str | None = None) -> str:
    """The column of the images: of type ``Image``, or with ``bytes`` or ``path`` of image files.

    Args:
        table: any table.
        column: the one that the user names.

    Returns:
        Its name.

    Raises:
        DataError: there is no such column, it holds no images, or several could be it.
    """
    found = [name for name, feature in table.features.items() if is_image(feature)]
    if column is not None:
        if known_column(table, column, "--image-column") not in found:
            raise DataError(
                f"The column {column!r} holds no images. Columns: {describe_columns(table)}. Cast it: "
                f"table.cast_column({column!r}, datasets.Image())."
            )
        return column
    if len(found) != 1:
        what = f"Several columns hold images: {', '.join(found)}" if found else "No column holds images"
        advice = "Choose one with --image-column." if found else "This model takes images: use image data."
        raise DataError(f"{what}. Columns: {describe_columns(table)}. {advice}")
    return found[0]


def is_image(feature: Any) -> bool:
    """Whether a feature is images: by its type, or ``bytes`` and ``path`` of image files.

    Args:
        feature: of a table.

    Returns:
        True or False.
    """
    # Files written without the datasets library lack its types, but keep their layout.
    return type(feature).__name__ == "Image" or (
        isinstance(feature, dict) and {"bytes", "path"} == set(feature)
    )
