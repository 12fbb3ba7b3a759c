"""Points as a command line names them: ``"mean"``, ``"base + 0.3*sum"``, or a merged model's directory."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from mergescope.errors import PointError, did_you_mean, near_paths
from mergescope.models.with_head import WithHead
from mergescope.studies.given import Given
from mergescope.weights import Point, exact, mean
from mergescope.weights.references import open_model
from mergescope.weights.selection import Selection


def named_point(text: str, base: Any, models: Mapping[str, Any]) -> Point:
    """Read an expression of models: names, numbers, ``+ - * /`` and parentheses.

    Args:
        text: ``base``, ``mean`` (of the fine-tunes), ``sum`` (of their task vectors) and the fine-tunes' names.
        base: the pretrained model, or None.
        models: name to fine-tune.

    Returns:
        The point.

    Raises:
        PointError: it can't be read, or is no model: its coefficients don't sum to 1.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> base, a, b = (Checkpoint({"w": torch.rand(2)}, name=name) for name in ("base", "a", "b"))
        >>> named_point("base + 0.3*sum", base, {"a": a, "b": b})
        Point(0.4*base + 0.3*a + 0.3*b)
    """
    known = {name: Point.of(model) for name, model in models.items()}
    if known:
        known.setdefault("mean", mean(known.values()))
    if base is not None:
        start = Point.of(base)
        known.setdefault("base", start)
        if models:
            known.setdefault(
                "sum", sum((Point.of(model) - start for model in models.values()), start - start)
            )
    # Names of models may hold anything, so that they are replaced before the rest is read.
    places = sorted(known, key=len, reverse=True)
    pattern = "|".join(rf"(?<![\w.]){re.escape(name)}(?![\w.])" for name in places)
    spelled = re.sub(pattern, lambda found: f"_{places.index(found[0])}_", text)
    try:
        value = _value(
            ast.parse(spelled.strip(), mode="eval").body,
            {f"_{n}_": known[name] for n, name in enumerate(places)},
        )
    except SyntaxError:
        value = None
    except KeyError as error:
        name = str(error.args[0])
        raise PointError(
            f"{text!r}: there is no model {name!r}, and no such directory."
            f"{did_you_mean(name, known) or near_paths(name)} Known: {', '.join(known)}."
        ) from None
    if not isinstance(value, Point):
        raise PointError(
            f"{text!r} is no combination of models. Write base + 0.3*sum, for example; names: {', '.join(known)}."
        )
    if not value.is_model:
        raise PointError(
            f"{text!r} is no model: its coefficients sum to {float(value.total):g}, not 1. Add it to the base."
        )
    return value


def _value(node: ast.expr, known: Mapping[str, Point]) -> Point | Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return exact(node.value)
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _value(node.operand, known)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left: Any = _value(node.left, known)
        right: Any = _value(node.right, known)
        alike = isinstance(left, Point) == isinstance(right, Point)
        if isinstance(node.op, ast.Add) and alike:
            return left + right
        if isinstance(node.op, ast.Sub) and alike:
            return left - right
        if isinstance(node.op, ast.Mult) and not (isinstance(left, Point) and isinstance(right, Point)):
            return left * right
        if isinstance(node.op, ast.Div) and not isinstance(right, Point) and right:
            return left / right
    raise SyntaxError


def open_points(texts: tuple[str, ...], given: Given) -> dict[str, Point]:
    """The points that a user names, besides base and fine-tunes.

    Args:
        texts: expressions as for [`named_point`][], or ``[NAME=]directory`` (or hub id) of merged models.
        given: the models, and the networks that merged ones must fit.

    Returns:
        Name to point.

    Raises:
        PointError: an expression can't be read, or two points have one name.
        CheckpointError: a directory holds no model, or another one.
    """  # noqa: DOC502 (raised by what this calls)
    out: dict[str, Point] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals:
            name, place = text, text
        if place not in {"base", "mean", *given.models} and _is_place(place):
            name = name if equals else Path(place).name
            source = open_model(place)
            source.name = name
            point = Point.of(_as_the_others(source, given))
        else:
            point = named_point(place, given.base, given.models)
        if name in out or name in given.models:
            raise PointError(f"Two points are called {name!r}. Name one otherwise: NAME={place}.")
        out[name] = point
    return out


def _is_place(text: str) -> bool:
    return Path(text).expanduser().exists() or re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text) is not None


def _as_the_others(source: Any, given: Given) -> Any:
    network = given.held[0].model
    if isinstance(network, WithHead):
        return network.view(source)
    first = given.base if given.base is not None else next(iter(given.models.values()))
    return Selection(source, first.names) if isinstance(first, Selection) else source
