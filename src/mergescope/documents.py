"""JSON and YAML that others wrote, read so that no file exhausts memory, time or the stack.

Both formats are small languages. Lists nested ten thousand deep exhaust the stack, YAML's anchors make
a few lines stand for billions of nodes, and a tag such as ``!!int`` before a word raises whatever Python's
own conversions raise. Here each of these is one kind of error, before anything is built.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from mergescope.errors import CheckpointError, MergescopeError

JSON_BYTES = 100_000_000
"""Largest JSON file that is read: the format's own limit of a safetensors header."""

YAML_CHARACTERS = 10_000_000
"""Longest YAML text that is read; recipes and families have some hundreds."""

ALIASED_NODES = 100_000
"""So many nodes may YAML's aliases add to those that are written."""


class DocumentError(ValueError):
    """A text is no document, or would take too much to read. The message goes on a sentence."""


def read_json(path: Path, *, unique: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        unique: refuse a key that occurs twice in one mapping; otherwise the last one counts.

    Returns:
        Its content.

    Raises:
        DocumentError: it can't be read, is no UTF-8 or no JSON, or is too large or nested too deeply.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "deep.json"
        ...     _ = file.write_text("[" * 100_000)
        ...     read_json(file)
        Traceback (most recent call last):
        ...
        mergescope.documents.DocumentError: it is nested too deeply
    """
    try:
        size = path.stat().st_size
        if size > JSON_BYTES:
            raise DocumentError(f"it has {size:,} bytes, more than the {JSON_BYTES:,} that are read")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys if unique else None)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except OSError as error:
        raise DocumentError(error.strerror or str(error)) from error
    except ValueError as error:
        raise DocumentError(str(error)) from error


def read_settings(
    path: Path, *, named: Path | None = None, refused: type[MergescopeError] = CheckpointError
) -> dict[str, Any]:
    """Read a JSON file of settings, such as ``config.json``.

    Args:
        path: the file.
        named: what messages call it, if it is a copy.
        refused: the error to raise.

    Returns:
        Its content.

    Raises:
        MergescopeError: it is not valid JSON, or no mapping.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "config.json"
        ...     _ = file.write_text('{"model_type": "bert"}')
        ...     read_settings(file)
        {'model_type': 'bert'}
    """  # noqa: DOC502 (of the kind that is asked for)
    named = named or path
    try:
        found = read_json(path)
    except DocumentError as error:
        raise refused(f"{named} is not valid JSON: {error}. Fetch it again.") from error
    if not isinstance(found, dict):
        raise refused(f"{named} holds no settings but a {type(found).__name__}. Fetch it again.")
    return found


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of which JSON's parser found these keys and values: its ``object_pairs_hook``.

    Args:
        pairs: in the order of the text.

    Returns:
        The mapping.

    Raises:
        DocumentError: a key occurs twice.

    Example:
        >>> json.loads('{"a": 1, "a": 2}', object_pairs_hook=unique_keys)
        Traceback (most recent call last):
        ...
        mergescope.documents.DocumentError: 'a' occurs twice in one mapping
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted(name for name in found if names.count(name) > 1)
        raise DocumentError(f"{', '.join(map(repr, twice[:5]))} occurs twice in one mapping")
    return found


def compose_yaml(text: str) -> yaml.Node | None:
    r"""The nodes of a YAML text, none of them built yet.

    Args:
        text: one document.

    Returns:
        The root; None if the text is empty.

    Raises:
        YAMLError: it is no YAML.
        DocumentError: it is too long or nested too deeply, or its aliases stand for too much.

    Example:
        >>> text = "- &a [x, x, x, x, x]"
        >>> for one, next in zip("abcdefgh", "bcdefghi"):
        ...     text += f"\n- &{next} [*{one}, *{one}, *{one}, *{one}, *{one}]"
        >>> compose_yaml(text)
        Traceback (most recent call last):
        ...
        mergescope.documents.DocumentError: its aliases stand for more than 100,000 further entries
    """  # noqa: DOC502 (raised by the parser)
    if len(text) > YAML_CHARACTERS:
        raise DocumentError(
            f"it has {len(text):,} characters, more than the {YAML_CHARACTERS:,} that are read"
        )
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _entries(root, {}, len(text) + ALIASED_NODES)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except DocumentError:
        raise
    except (ValueError, OverflowError) as error:  # an escaped character that there is none of
        raise DocumentError(f"it is no YAML ({error})") from error
    return root


def _entries(node: yaml.Node, known: dict[int, int], most: int) -> int:
    # Aliases are the node itself, so that each is counted once and added as often as it is named.
    if id(node) in known:
        if not known[id(node)]:
            raise DocumentError("an anchor holds itself")
        return known[id(node)]
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.SequenceNode):
        count += sum(_entries(item, known, most) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        count += sum(_entries(item, known, most) for pair in node.value for item in pair)
    elif any("\ud800" <= character <= "\udfff" for character in node.value):
        raise DocumentError(f"{node.value!r:.60} holds half a character")
    if count > most:
        raise DocumentError(f"its aliases stand for more than {ALIASED_NODES:,} further entries")
    known[id(node)] = count
    return count


def yaml_value(node: yaml.Node) -> Any:
    """The Python value of a node.

    Args:
        node: from [`compose_yaml`][].

    Returns:
        The value, of plain types.

    Raises:
        DocumentError: it is not what its tag or form says it is.

    Example:
        >>> yaml_value(compose_yaml("[1, 2.5, yes]"))
        [1, 2.5, True]
        >>> yaml_value(compose_yaml("2001-13-45"))
        Traceback (most recent call last):
        ...
        mergescope.documents.DocumentError: '2001-13-45' is no timestamp: month must be in 1..12
    """
    loader = _Constructor("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise DocumentError(str(getattr(error, "problem", None) or error)) from error
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    finally:
        loader.dispose()


class _Constructor(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        # Of Python's own conversions, whose errors are of many kinds and name neither value nor type.
        try:
            return super().construct_object(node, deep)
        except DocumentError:
            raise
        except (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            why = f": {error}" if isinstance(error, ValueError) else ""
            raise DocumentError(f"{node.value!r:.60} is no {kind}{why}") from error


def load_yaml(text: str) -> Any:
    r"""The content of a YAML text.

    Args:
        text: one document.

    Returns:
        Its content, of plain types; None if it is empty.

    Raises:
        DocumentError: it is no YAML, or would take too much to read.

    Example:
        >>> load_yaml("base: org/base\ntasks: [mnist]")
        {'base': 'org/base', 'tasks': ['mnist']}
    """
    try:
        root = compose_yaml(text)
    except yaml.YAMLError as error:
        raise DocumentError(str(error)) from error
    return None if root is None else yaml_value(root)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Args:
        path: the file.

    Returns:
        Its content, of plain types; None if it is empty.

    Raises:
        DocumentError: it can't be read, is no UTF-8 or no YAML, or would take too much to read.
    """
    try:
        size = path.stat().st_size
        if size > 4 * YAML_CHARACTERS:
            raise DocumentError(f"it has {size:,} bytes, more than the {4 * YAML_CHARACTERS:,} that are read")
        return load_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DocumentError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise DocumentError(str(error)) from error


def usable_path(source: str | os.PathLike[str], error: type[MergescopeError]) -> Path:
    """A path that the system can be asked about: names from files may be longer than it takes.

    Args:
        source: a path as the user or a file names it.
        error: what to raise.

    Returns:
        The path, with ``~`` expanded.

    Raises:
        MergescopeError: its name is too long, or holds what no name can.

    Example:
        >>> usable_path("a" * 10_000, MergescopeError)
        Traceback (most recent call last):
        ...
        mergescope.errors.MergescopeError: 'aaaa...'... (10,000 characters) can't be the name of a file or ...
    """  # noqa: DOC502 (raised as the caller wants it)
    path = Path(source)
    try:
        path = path.expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError, RuntimeError) as problem:  # RuntimeError: ~nobody has no home
        name = str(path)
        raise error(
            f"{name[:200]!r}{f'... ({len(name):,} characters)' if len(name) > 200 else ''} can't be the name of a "
            f"file or a directory ({getattr(problem, 'strerror', None) or problem}). Check what names it."
        ) from problem
    return path
