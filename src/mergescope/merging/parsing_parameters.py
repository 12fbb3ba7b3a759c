"""Parameters of a recipe: numbers and flags, gradients over depth, filters by tensor name."""

from __future__ import annotations

import sys
from typing import Any

import yaml

from mergescope.errors import did_you_mean
from mergescope.merging.methods import METHODS, Method, Parameter
from mergescope.merging.parsing_yaml import Fields, YamlReader, shown
from mergescope.merging.settings import Scalar, Setting


class ParameterReader:
    """Reads settings of a method's parameters.

    Args:
        reader: collects what is wrong.
        method: the merge method; None if the recipe names none that is known.

    Attributes:
        unread: parameters that were given, but wrongly.
    """

    def __init__(self, reader: YamlReader, method: Method | None) -> None:
        self._reader, self._method = reader, method
        self.unread: set[str] = set()

    def settings(self, fields: Fields, source: bool = False) -> dict[str, Setting]:
        """The settings under the key ``parameters``.

        Args:
            fields: of a recipe, module, slice or model.
            source: whether it is a model, which has parameters of its own only.

        Returns:
            Name to setting, of those that are right.
        """
        if "parameters" not in fields:
            return {}
        found = {}
        # With an unknown method, a name that no method has is wrong all the same.
        methods = [self._method] if self._method else list(METHODS.values())
        known = {item.name: item for method in methods for item in method.parameters}
        for name, (node, line) in self._reader.fields(fields["parameters"][0], None, "parameters").items():
            if name not in known:
                hint = did_you_mean(name, known)
                whose = (
                    f"{self._method.name} has no parameter" if self._method else "no method has a parameter"
                )
                have = f" It has: {', '.join(known) or 'none'}." if self._method else ""
                self._reader.problem(line, f"{whose} {name!r}.{hint}{have}")
                continue
            if self._method is None:
                continue
            if source and not known[name].per_model:
                self._reader.problem(
                    line, f"{name} is one value for all models: put it outside the list of models."
                )
                continue
            setting = self._setting(known[name], node, line)
            if setting is not None:
                found[name] = setting
            else:
                self.unread.add(name)
        return found

    def _setting(self, parameter: Parameter, node: yaml.Node, line: int) -> Setting | None:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        mappings = [isinstance(item, yaml.MappingNode) for item in nodes]
        if not any(mappings):
            values = self._values(parameter, self._reader.plain(node), line)
            return None if values is None else Setting((("", values),), line)
        if not all(mappings):
            self._reader.problem(
                line, f"{parameter.name} mixes numbers and filters: an entry has filter and value."
            )
            return None
        cases: list[tuple[str, tuple[Scalar, ...]]] = []
        for item in nodes:
            at = item.start_mark.line + 1
            inner = self._reader.fields(item, ("filter", "value"), f"an entry of {parameter.name}")
            if "value" not in inner:
                self._reader.problem(
                    at, f"{parameter.name}: a value is missing; an entry has filter and value."
                )
                return None
            pattern = self._reader.plain(inner["filter"][0]) if "filter" in inner else "*"
            if not isinstance(pattern, str) or not pattern:
                self._reader.problem(at, f"a filter must be part of a tensor's name, got {shown(pattern)}.")
                return None
            if cases and cases[-1][0] == "":
                self._reader.problem(
                    at, f"{parameter.name}: this entry is never used, because the one before fits all."
                )
            values = self._values(parameter, self._reader.plain(inner["value"][0]), inner["value"][1])
            if values is None:
                return None
            cases.append(("" if pattern == "*" else pattern, values))
        return Setting(tuple(cases), line)

    def _values(self, parameter: Parameter, value: Any, line: int) -> tuple[Scalar, ...] | None:
        listed = value if isinstance(value, list) else [value]
        if not listed:
            self._reader.problem(line, f"{parameter.name} is an empty list.")
            return None
        out: list[Scalar] = []
        for item in listed:
            number = _number(item) if parameter.kind != "flag" else item
            wanted = {"flag": "true or false", "integer": "an integer", "number": "a number"}[parameter.kind]
            if parameter.kind == "flag" and type(item) in (int, float) and item in (0, 1):
                number = bool(item)
            right = isinstance(number, bool) if parameter.kind == "flag" else number is not None
            if not right or (parameter.kind == "integer" and isinstance(number, float) and number % 1):
                self._reader.problem(line, f"{parameter.name} must be {wanted}, got {shown(item)}.")
                return None
            assert number is not None
            if parameter.kind != "flag" and not parameter.low <= number <= parameter.high:
                self._reader.problem(
                    line, f"{parameter.name} must be {_interval(parameter)}, got {shown(item)}."
                )
                return None
            out.append({"flag": bool, "integer": int, "number": float}[parameter.kind](number))
        return tuple(out)


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or value != value or abs(value) > sys.float_info.max:
        return None
    return value


def _interval(parameter: Parameter) -> str:
    if parameter.low == parameter.high:
        return f"{parameter.low:g} for this method"
    if parameter.high == float("inf"):
        return f"at least {parameter.low:g}"
    return f"in [{parameter.low:g}, {parameter.high:g}]"
