"""How rows become samples: one block of options for all commands that run models on the user's own data."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.option_blocks import Command, parameters, with_options

Rows = dict[str, Any]
"""Fields of ``DataOptions``, as the options say them."""

_of_data = functools.partial(typer.Option, rich_help_panel="Rows of the data")

OPTIONS: dict[str, tuple[Any, Any]] = {
    "data_config": (Annotated[str | None, _of_data(help="Configuration of a hub data set.")], None),
    "text_column": (Annotated[str | None, _of_data(help="Column of texts, or two with a comma.")], None),
    "image_column": (Annotated[str | None, _of_data(help="Column of images.")], None),
    "label_column": (Annotated[str | None, _of_data(help="Column of labels.")], None),
    "template": (Annotated[str | None, _of_data(help='Text from columns: "premise: {premise} ..."')], None),
    "prompt": (Annotated[str | None, _of_data("--prompt-column", help="Prompt, not counted.")], None),
    "max_length": (Annotated[int | None, _of_data(min=1, help="Cut texts at so many tokens.")], None),
    "tokenizer": (
        Annotated[Path | None, _of_data(help="Directory of the tokenizer or image processor.")], None,
    ),
}  # fmt: skip
"""Name to annotation and default."""

_FIELDS = {"data_config": "config", "tokenizer": "processor"}


def takes_rows(command: Command) -> Command:
    """Give a command the options, and hand it what they say.

    Args:
        command: a function that typer can run, but for its parameter ``rows``, which gets the fields of
            [`DataOptions`][mergescope.studies.given.DataOptions] that the options are.

    Returns:
        The function that takes the options in place of ``rows``.

    Example:
        >>> @takes_rows
        ... def hello(rows: Rows, name: str = "you") -> None:
        ...     print(name, rows["text_column"], rows["config"])
        >>> hello(name="me", text_column="words")
        me words None
    """
    own = parameters(command)
    del own["rows"]

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> None:
        said = {name: given.pop(name, default) for name, (_, default) in OPTIONS.items()}
        command(*args, rows={_FIELDS.get(name, name): value for name, value in said.items()}, **given)

    every: Any = run
    return with_options(every, own, OPTIONS)
