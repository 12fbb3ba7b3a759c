"""From YAML to a [`Recipe`][mergescope.merging.recipe.Recipe], collecting every problem with its line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from mergescope.errors import RecipeError, did_you_mean
from mergescope.merging.methods import METHODS, Method, Parameter
from mergescope.merging.recipe import DTYPES, Module, Recipe, Slice, Source
from mergescope.merging.settings import Scalar, Setting

TOP = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip

Fields = dict[str, tuple[yaml.Node, int]]


def parse(text: str, name: str) -> Recipe:
    """Read YAML.

    Args:
        text: the YAML.
        name: of the file, for messages.

    Returns:
        The recipe.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(f"{name} is not valid YAML:", [f"{where}{getattr(error, 'problem', error)}"]) from None
    if root is None:
        raise RecipeError(f"{name} is empty. A recipe needs merge_method and models.", [])
    parser = _Parser(name)
    recipe = parser.recipe(root, text)
    if parser.problems or recipe is None:
        ordered = [text for _, text in sorted(parser.problems, key=lambda item: item[0])]
        count = f"{len(ordered)} problem{'s' if len(ordered) != 1 else ''}"
        raise RecipeError(f"{name} has {count}:", ordered)
    return recipe


class _Parser:
    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[tuple[int, str]] = []
        self.method: Method | None = None

    def problem(self, line: int, message: str) -> None:
        self.problems.append((line, f"line {line}: {message}"))

    # -- structure -------------------------------------------------------------------------

    def recipe(self, root: yaml.Node, text: str) -> Recipe | None:
        fields = self.fields(root, TOP, "the recipe")
        line = root.start_mark.line + 1
        self.method = self.merge_method(fields, line)
        parameters = self.parameters(fields)
        base = self.reference(*fields["base_model"]) if "base_model" in fields else None
        present = [key for key in ("models", "slices", "modules") if key in fields]
        if len(present) != 1:
            what = f"not {' and '.join(present)}" if present else "none is there"
            self.problem(line, f"exactly one of models, slices and modules is needed, {what}.")
        modules: list[Module] = []
        if "modules" in fields:
            for prefix, (node, at) in self.fields(fields["modules"][0], None, "modules").items():
                inner = self.fields(node, ("models", "slices", "parameters"), f"module {prefix!r}")
                if ("models" in inner) == ("slices" in inner):
                    self.problem(at, f"the module {prefix!r} needs either models or slices.")
                own = "" if prefix == "default" else prefix
                modules.append(Module(own, self.slices(inner), self.parameters(inner)))
        elif present:
            modules.append(Module("", self.slices(fields)))
        recipe = None
        if self.method is not None:
            recipe = Recipe(
                self.method, tuple(modules), base, parameters, self.dtype(fields, "dtype"),
                self.dtype(fields, "out_dtype"), self.tokenizer(fields), self.text(fields, "chat_template"),
                text, self.name,
            )  # fmt: skip
            self.check_inputs(recipe, line)
        return recipe

    def slices(self, fields: Fields) -> tuple[Slice, ...]:
        if "models" in fields:
            node, line = fields["models"]
            sources = tuple(self.sources(node, line, "models", ("model", "parameters")))
            return (Slice(sources, line=line),) if sources else ()
        if "slices" not in fields:
            return ()
        found = []
        node, line = fields["slices"]
        for item in self.items(node, line, "slices"):
            allowed = ("sources", "base_model", "parameters", "residual_weight")
            inner = self.fields(item, allowed, "a slice")
            at = item.start_mark.line + 1
            if "residual_weight" in inner:
                self.problem(inner["residual_weight"][1], "residual_weight has never had an effect: remove it.")
            if "sources" not in inner:
                self.problem(at, "a slice needs sources.")
                continue
            sources = tuple(self.sources(*inner["sources"], "sources", ("model", "layer_range", "parameters")))
            for source in sources:
                if source.layers is None:
                    self.problem(source.line or at, f"{source.model} needs a layer_range in a slice.")
            counts = {source.layers[1] - source.layers[0]: source.model for source in sources if source.layers}
            if len(counts) > 1:
                told = ", ".join(f"{model} has {count}" for count, model in counts.items())
                self.problem(at, f"the sources of one slice must have equally many layers, but {told}.")
            base = self.reference(*inner["base_model"]) if "base_model" in inner else None
            found.append(Slice(sources, base, self.parameters(inner), at))
        return tuple(found)

    def sources(self, node: yaml.Node, line: int, what: str, allowed: tuple[str, ...]) -> Iterable[Source]:
        for item in self.items(node, line, what):
            at = item.start_mark.line + 1
            inner = self.fields(item, allowed, f"an entry of {what}")
            if "model" not in inner:
                self.problem(at, f"an entry of {what} needs a model.")
                continue
            reference = self.reference(*inner["model"])
            if reference is None:
                continue
            layers = self.layer_range(*inner["layer_range"]) if "layer_range" in inner else None
            yield Source(reference, layers, self.parameters(inner), at)

    def layer_range(self, node: yaml.Node, line: int) -> tuple[int, int] | None:
        value = self.plain(node)
        whole = isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)
        if not whole or not 0 <= value[0] < value[1]:
            self.problem(line, f"layer_range must be [first, one past the last], got {value!r}.")
            return None
        return value[0], value[1]

    # -- leaves ----------------------------------------------------------------------------

    def merge_method(self, fields: Fields, line: int) -> Method | None:
        known = ", ".join(sorted(METHODS))
        if "merge_method" not in fields:
            self.problem(line, f"merge_method is missing; it names one of: {known}.")
            return None
        node, at = fields["merge_method"]
        name = self.plain(node)
        if name not in METHODS:
            hint = did_you_mean(str(name), METHODS) or did_you_mean(str(name).replace("-", "_"), METHODS)
            self.problem(at, f"unknown merge_method {name!r}.{hint} Known: {known}.")
            return None
        return METHODS[name]

    def reference(self, node: yaml.Node, line: int) -> str | None:
        if not isinstance(node, yaml.MappingNode):
            value = self.plain(node)
            if isinstance(value, str) and value.strip():
                return value
            self.problem(line, f"a model must be a path or an id, got {value!r}.")
            return None
        inner = self.fields(node, ("model", "lora", "override_architecture", "path", "revision"), "a model")
        if "path" in inner:
            path = str(self.plain(inner["path"][0]))
            return path + (f"@{self.plain(inner['revision'][0])}" if "revision" in inner else "")
        if "model" not in inner:
            self.problem(line, "a model given as a mapping needs 'model' or 'path'.")
            return None
        model = self.reference(*inner["model"])
        lora = self.reference(*inner["lora"]) if "lora" in inner and self.plain(inner["lora"][0]) else None
        return model + (f"+{lora}" if lora else "") if model else None

    def dtype(self, fields: Fields, key: str) -> str | None:
        if key not in fields:
            return None
        node, line = fields[key]
        value = self.plain(node)
        name = str(value).removeprefix("torch.")
        if value is not None and name not in DTYPES:
            known = ", ".join(DTYPES)
            self.problem(line, f"unknown {key} {value!r}.{did_you_mean(name, DTYPES)} Known: {known}.")
        return DTYPES.get(name)

    def text(self, fields: Fields, key: str) -> str | None:
        if key not in fields:
            return None
        node, line = fields[key]
        value = self.plain(node)
        if value is not None and not isinstance(value, str):
            self.problem(line, f"{key} must be text, got {value!r}.")
        return value if isinstance(value, str) else None

    def tokenizer(self, fields: Fields) -> dict[str, Any] | None:
        source = fields.get("tokenizer_source")
        if "tokenizer" not in fields:
            return {"source": self.reference(*source)} if source and self.plain(source[0]) is not None else None
        node, line = fields["tokenizer"]
        if source:
            self.problem(line, "tokenizer and tokenizer_source exclude each other.")
        inner = self.fields(node, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
        tokens: dict[str, Any] = {}
        if "tokens" in inner:
            for token, (item, at) in self.fields(inner["tokens"][0], None, "tokens").items():
                tokens[token] = self.token(token, item, at)
        pad = self.plain(inner["pad_to_multiple_of"][0]) if "pad_to_multiple_of" in inner else None
        if pad is not None and (type(pad) is not int or pad < 1):
            self.problem(inner["pad_to_multiple_of"][1], f"pad_to_multiple_of must be a positive integer, got {pad!r}.")
        chosen = self.reference(*inner["source"]) if "source" in inner else "union"
        return {"source": chosen, "tokens": tokens, "pad_to_multiple_of": pad}

    def token(self, token: str, node: yaml.Node, line: int) -> dict[str, Any]:
        fields = self.fields(node, ("source", "force"), f"token {token!r}")
        out: dict[str, Any] = {"force": bool(self.plain(fields["force"][0])) if "force" in fields else False}
        if "source" in fields:
            inner, at = fields["source"]
            if isinstance(inner, yaml.MappingNode):
                described = self.fields(inner, ("kind", "model", "token", "token_id"), f"the source of {token!r}")
                out["source"] = {key: self.plain(value) for key, (value, _) in described.items()}
                if out["source"].get("kind") not in ("zero", "model_token"):
                    self.problem(at, f"the source of token {token!r} needs kind: zero or model_token.")
            else:
                out["source"] = self.reference(inner, at)
        elif not out["force"]:
            self.problem(line, f"the token {token!r} needs a source.")
        return out

    # -- parameters ------------------------------------------------------------------------

    def parameters(self, fields: Fields) -> dict[str, Setting]:
        if "parameters" not in fields:
            return {}
        found = {}
        known = {item.name: item for item in self.method.parameters} if self.method else {}
        for name, (node, line) in self.fields(fields["parameters"][0], None, "parameters").items():
            if self.method is None:
                continue
            if name not in known:
                hint = did_you_mean(name, known)
                have = ", ".join(known) or "none"
                self.problem(line, f"{self.method.name} has no parameter {name!r}.{hint} It has: {have}.")
                continue
            setting = self.setting(known[name], node, line)
            if setting is not None:
                found[name] = setting
        return found

    def setting(self, parameter: Parameter, node: yaml.Node, line: int) -> Setting | None:
        value = self.plain(node)
        conditional = [value] if isinstance(value, dict) else value
        if isinstance(conditional, list) and conditional and all(isinstance(item, dict) for item in conditional):
            cases = []
            for item in conditional:
                unknown = sorted(set(item) - {"filter", "value"})
                if unknown or "value" not in item:
                    what = f"unknown key {unknown[0]!r}" if unknown else "a value is missing"
                    self.problem(line, f"{parameter.name}: {what}; an entry has filter and value.")
                    return None
                pattern = item.get("filter")
                values = self.values(parameter, item["value"], line)
                if values is None:
                    return None
                cases.append(("" if pattern in (None, "*") else str(pattern), values))
            return Setting(tuple(cases), line)
        values = self.values(parameter, value, line)
        return None if values is None else Setting((("", values),), line)

    def values(self, parameter: Parameter, value: Any, line: int) -> tuple[Scalar, ...] | None:
        listed = value if isinstance(value, list) else [value]
        if not listed:
            self.problem(line, f"{parameter.name} is an empty list.")
            return None
        out: list[Scalar] = []
        for item in listed:
            number = _number(item) if parameter.kind != "flag" else item
            wanted = {"flag": "true or false", "integer": "an integer", "number": "a number"}[parameter.kind]
            if parameter.kind == "flag" and item in (0, 1):
                number = bool(item)
            right = isinstance(number, bool) if parameter.kind == "flag" else number is not None
            if not right or (parameter.kind == "integer" and number != int(number or 0)):
                self.problem(line, f"{parameter.name} must be {wanted}, got {item!r}.")
                return None
            assert number is not None
            if parameter.kind != "flag" and not parameter.low <= number <= parameter.high:
                self.problem(line, f"{parameter.name} must be in [{parameter.low:g}, {parameter.high:g}], got {item!r}.")
                return None
            out.append(int(number) if parameter.kind == "integer" else number)
        return tuple(out)

    def check_inputs(self, recipe: Recipe, line: int) -> None:
        method = recipe.method
        for module, part in recipe.slices:
            base = part.base_model or recipe.base_model
            at = part.line or line
            if method.base == "required" and base is None:
                self.problem(line, f"{method.name} needs a base_model.")
            models = [source for source in part.sources if source.model != base or method.base == "none"]
            names = [source.model for source in part.sources]
            if not any(source.layers for source in part.sources):
                for name in {name for name in names if names.count(name) > 1}:
                    self.problem(at, f"{name} is listed more than once.")
            if len(models) < method.least or (method.most is not None and len(models) > method.most):
                most = "" if method.most == method.least else " or more" if method.most is None else f" to {method.most}"
                counted = " besides the base" if method.base == "required" else ""
                self.problem(
                    at, f"{method.name} merges {method.least}{most} model(s){counted}, but {len(models)} are given."
                )
            levels = (part.parameters, module.parameters, recipe.parameters)
            for parameter in method.parameters:
                if parameter.default is not None:
                    continue
                for source in models if parameter.per_model else models[:1]:
                    places = (source.parameters, *levels) if parameter.per_model else levels
                    given = [place[parameter.name] for place in places if parameter.name in place]
                    if not any(setting.total for setting in given):
                        which = f" for {source.model}" if parameter.per_model else ""
                        why = " for tensors that no filter matches" if given else ""
                        self.problem(
                            source.line or at, f"{method.name} needs the parameter {parameter.name!r}{which}{why}."
                        )

    # -- YAML ------------------------------------------------------------------------------

    def fields(self, node: yaml.Node, allowed: tuple[str, ...] | None, what: str) -> Fields:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self.problem(line, f"{what} must be a mapping of keys to values.")
            return {}
        found: Fields = {}
        for key_node, value in node.value:
            key, at = str(self.plain(key_node)), key_node.start_mark.line + 1
            if key in found:
                self.problem(at, f"the key {key!r} occurs twice in {what}.")
            elif allowed is not None and key not in allowed:
                hint = did_you_mean(key, allowed)
                self.problem(at, f"unknown key {key!r}.{hint} {what[0].upper()}{what[1:]} has: {', '.join(allowed)}.")
            else:
                found[key] = (value, at)
        return found

    def items(self, node: yaml.Node, line: int, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.problem(line, f"{what} must be a list with at least one entry.")
            return []
        return list(node.value)

    def plain(self, node: yaml.Node) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            self.problem(node.start_mark.line + 1, f"can't be read: {getattr(error, 'problem', error)}")
            return None
        finally:
            loader.dispose()


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and value == value and abs(value) != float("inf") else None
