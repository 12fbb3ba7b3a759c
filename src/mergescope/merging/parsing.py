"""From YAML to a [`Recipe`][mergescope.merging.recipe.Recipe], collecting every problem with its line."""

from __future__ import annotations

import reprlib
import sys
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

NULLABLE = frozenset({
    "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "lora",
    "override_architecture", "revision", "source", "tokens", "pad_to_multiple_of", "layer_range", "filter",
})  # fmt: skip
"""Keys that may stand without a value, which is as good as not being there."""

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
        raise RecipeError(
            f"{name} is not valid YAML:", [f"{where}{getattr(error, 'problem', error)}"]
        ) from None
    if root is None:
        raise RecipeError(f"{name} is empty. A recipe needs merge_method and models.", [])
    parser = _Parser(name)
    try:
        recipe = parser.recipe(root, text)
    except RecursionError:
        raise RecipeError(f"{name} is nested too deeply, or an anchor holds itself.", []) from None
    if parser.problems or recipe is None:
        ordered = [text for _, text in sorted(dict.fromkeys(parser.problems), key=lambda item: item[0])]
        count = f"{len(ordered)} problem{'s' if len(ordered) != 1 else ''}"
        raise RecipeError(f"{name} has {count}:", ordered)
    return recipe


class _Parser:
    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[tuple[int, str]] = []
        self.method: Method | None = None
        self.incomplete = False
        self.unread: set[str] = set()  # parameters that were given, but wrongly

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
            named = self.fields(fields["modules"][0], None, "modules")
            if not named and isinstance(fields["modules"][0], yaml.MappingNode):
                self.problem(fields["modules"][1], "modules must name at least one module.")
            for prefix, (node, at) in named.items():
                inner = self.fields(node, ("models", "slices", "parameters"), f"module {prefix!r}")
                if ("models" in inner) == ("slices" in inner):
                    self.problem(at, f"the module {prefix!r} needs either models or slices.")
                own = "" if prefix == "default" else prefix
                modules.append(Module(own, self.slices(inner), self.parameters(inner)))
        elif present:
            modules.append(Module("", self.slices(fields)))
        rest = (
            self.dtype(fields, "dtype"), self.dtype(fields, "out_dtype"), self.tokenizer(fields, base),
            self.text(fields, "chat_template"), text, self.name,
        )  # fmt: skip
        if self.method is None:
            return None
        recipe = Recipe(self.method, tuple(modules), base, parameters, *rest)
        self.check_inputs(recipe, line)
        return recipe

    def slices(self, fields: Fields) -> tuple[Slice, ...]:
        if "models" in fields:
            node, line = fields["models"]
            sources = tuple(self.sources(node, line, "models", ("model", "parameters")))
            # An entry that could not be read must not look like a missing one as well.
            whole = isinstance(node, yaml.SequenceNode) and len(node.value) == len(sources)
            self.incomplete |= not whole
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
                self.problem(
                    inner["residual_weight"][1], "residual_weight has never had an effect: remove it."
                )
            if "sources" not in inner:
                self.problem(at, "a slice needs sources.")
                continue
            sources = tuple(
                self.sources(*inner["sources"], "sources", ("model", "layer_range", "parameters"))
            )
            listed = inner["sources"][0]
            self.incomplete |= not isinstance(listed, yaml.SequenceNode) or len(listed.value) != len(sources)
            counts = {
                source.layers[1] - source.layers[0]: source.model for source in sources if source.layers
            }
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
            if "layer_range" in allowed and "layer_range" not in inner:
                self.problem(at, f"{reference} needs a layer_range in a slice.")
            yield Source(reference, layers, self.parameters(inner, source=True), at)

    def layer_range(self, node: yaml.Node, line: int) -> tuple[int, int] | None:
        value = self.plain(node)
        whole = isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)
        if not whole or not 0 <= value[0] < value[1]:
            self.problem(line, f"layer_range must be [first, one past the last], got {_shown(value)}.")
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
        if not isinstance(name, str) or name not in METHODS:
            hint = did_you_mean(name.replace("-", "_"), METHODS) if isinstance(name, str) else ""
            self.problem(at, f"unknown merge_method {_shown(name)}.{hint} Known: {known}.")
            return None
        return METHODS[name]

    def reference(self, node: yaml.Node, line: int) -> str | None:
        if not isinstance(node, yaml.MappingNode):
            value = self.plain(node)
            if isinstance(value, str) and value.strip():
                return value.strip()
            self.problem(line, f"a model must be a path or an id, got {_shown(value)}.")
            return None
        inner = self.fields(node, ("model", "lora", "override_architecture", "path", "revision"), "a model")
        if ("model" in inner) == ("path" in inner):
            self.problem(line, "a model given as a mapping needs either 'model' or 'path'.")
            return None
        model = self.reference(*inner["model" if "model" in inner else "path"])
        lora = self.reference(*inner["lora"]) if "lora" in inner else None
        if model is not None and "revision" in inner:
            node, at = inner["revision"]
            revision = node.value if isinstance(node, yaml.ScalarNode) else ""  # 1e10 may be a commit
            if not revision:
                self.problem(at, f"revision must be text, got {_shown(self.plain(node))}.")
            model = f"{model}@{revision}"
        return model + (f"+{lora}" if lora else "") if model else None

    def dtype(self, fields: Fields, key: str) -> str | None:
        if key not in fields:
            return None
        node, line = fields[key]
        value = self.plain(node)
        name = value.removeprefix("torch.") if isinstance(value, str) else ""
        if value is not None and name not in DTYPES:
            known = ", ".join(DTYPES)
            self.problem(line, f"unknown {key} {_shown(value)}.{did_you_mean(name, DTYPES)} Known: {known}.")
        return DTYPES.get(name)

    def text(self, fields: Fields, key: str) -> str | None:
        if key not in fields:
            return None
        node, line = fields[key]
        value = self.plain(node)
        if value is not None and not isinstance(value, str):
            self.problem(line, f"{key} must be text, got {_shown(value)}.")
        return value if isinstance(value, str) else None

    def tokenizer(self, fields: Fields, base: str | None) -> dict[str, Any] | None:
        if "tokenizer" in fields and "tokenizer_source" in fields:
            self.problem(fields["tokenizer"][1], "tokenizer and tokenizer_source exclude each other.")
        if "tokenizer" not in fields:
            if "tokenizer_source" not in fields:
                return None
            return {"source": self.tokenizer_source(fields["tokenizer_source"], base)}
        inner = self.fields(fields["tokenizer"][0], ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
        tokens: dict[str, Any] = {}
        if "tokens" in inner:
            for token, (item, at) in self.fields(inner["tokens"][0], None, "tokens").items():
                tokens[token] = self.token(token, item, at)
        pad = self.plain(inner["pad_to_multiple_of"][0]) if "pad_to_multiple_of" in inner else None
        if pad is not None and (type(pad) is not int or pad < 1):
            at = inner["pad_to_multiple_of"][1]
            self.problem(at, f"pad_to_multiple_of must be a positive integer, got {_shown(pad)}.")
        chosen = self.tokenizer_source(inner["source"], base) if "source" in inner else "union"
        return {"source": chosen, "tokens": tokens, "pad_to_multiple_of": pad}

    def tokenizer_source(self, field: tuple[yaml.Node, int], base: str | None) -> str | None:
        source = self.reference(*field)
        if source == "base" and base is None:
            self.problem(field[1], "the tokenizer's source is base, but there is no base_model.")
        return source

    def token(self, token: str, node: yaml.Node, line: int) -> dict[str, Any]:
        fields = self.fields(node, ("source", "force"), f"token {token!r}")
        force = self.plain(fields["force"][0]) if "force" in fields else False
        if not isinstance(force, bool):
            self.problem(fields["force"][1], f"force must be true or false, got {_shown(force)}.")
        out: dict[str, Any] = {"force": bool(force)}
        if "source" in fields:
            out["source"] = self.token_source(token, *fields["source"])
        elif not out["force"]:
            self.problem(line, f"the token {token!r} needs a source.")
        return out

    def token_source(self, token: str, node: yaml.Node, line: int) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self.reference(node, line)
        inner = self.fields(node, ("kind", "model", "token", "token_id"), f"the source of {token!r}")
        source = {key: self.plain(value) for key, (value, _) in inner.items()}
        if "model" in inner:
            source["model"] = self.reference(*inner["model"])
        kind = source.get("kind", "model_token" if "model" in source else None)
        if kind not in ("zero", "model_token"):
            self.problem(line, f"the source of token {token!r} needs kind: zero or model_token.")
        elif kind == "model_token" and (
            "model" not in source or ("token" in source) == ("token_id" in source)
        ):
            self.problem(line, f"the source of token {token!r} needs a model, and either token or token_id.")
        elif kind == "zero" and len(source) > 1:
            self.problem(line, f"the source of token {token!r} has kind: zero, which takes nothing else.")
        elif "token_id" in source and type(source["token_id"]) is not int:
            self.problem(line, f"token_id must be an integer, got {_shown(source['token_id'])}.")
        return {**source, "kind": kind}

    # -- parameters ------------------------------------------------------------------------

    def parameters(self, fields: Fields, source: bool = False) -> dict[str, Setting]:
        if "parameters" not in fields:
            return {}
        found = {}
        # With an unknown method, a name that no method has is wrong all the same.
        methods = [self.method] if self.method else list(METHODS.values())
        known = {item.name: item for method in methods for item in method.parameters}
        for name, (node, line) in self.fields(fields["parameters"][0], None, "parameters").items():
            if name not in known:
                hint = did_you_mean(name, known)
                whose = f"{self.method.name} has no parameter" if self.method else "no method has a parameter"
                have = f" It has: {', '.join(known) or 'none'}." if self.method else ""
                self.problem(line, f"{whose} {name!r}.{hint}{have}")
                continue
            if self.method is None:
                continue
            if source and not known[name].per_model:
                self.problem(line, f"{name} is one value for all models: put it outside the list of models.")
                continue
            setting = self.setting(known[name], node, line)
            if setting is not None:
                found[name] = setting
            else:
                self.unread.add(name)
        return found

    def setting(self, parameter: Parameter, node: yaml.Node, line: int) -> Setting | None:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        mappings = [isinstance(item, yaml.MappingNode) for item in nodes]
        if not any(mappings):
            values = self.values(parameter, self.plain(node), line)
            return None if values is None else Setting((("", values),), line)
        if not all(mappings):
            self.problem(line, f"{parameter.name} mixes numbers and filters: an entry has filter and value.")
            return None
        cases: list[tuple[str, tuple[Scalar, ...]]] = []
        for item in nodes:
            at = item.start_mark.line + 1
            inner = self.fields(item, ("filter", "value"), f"an entry of {parameter.name}")
            if "value" not in inner:
                self.problem(at, f"{parameter.name}: a value is missing; an entry has filter and value.")
                return None
            pattern = self.plain(inner["filter"][0]) if "filter" in inner else "*"
            if not isinstance(pattern, str) or not pattern:
                self.problem(at, f"a filter must be part of a tensor's name, got {_shown(pattern)}.")
                return None
            if cases and cases[-1][0] == "":
                self.problem(
                    at, f"{parameter.name}: this entry is never used, because the one before fits all."
                )
            values = self.values(parameter, self.plain(inner["value"][0]), inner["value"][1])
            if values is None:
                return None
            cases.append(("" if pattern == "*" else pattern, values))
        return Setting(tuple(cases), line)

    def values(self, parameter: Parameter, value: Any, line: int) -> tuple[Scalar, ...] | None:
        listed = value if isinstance(value, list) else [value]
        if not listed:
            self.problem(line, f"{parameter.name} is an empty list.")
            return None
        out: list[Scalar] = []
        for item in listed:
            number = _number(item) if parameter.kind != "flag" else item
            wanted = {"flag": "true or false", "integer": "an integer", "number": "a number"}[parameter.kind]
            if parameter.kind == "flag" and type(item) in (int, float) and item in (0, 1):
                number = bool(item)
            right = isinstance(number, bool) if parameter.kind == "flag" else number is not None
            if not right or (parameter.kind == "integer" and isinstance(number, float) and number % 1):
                self.problem(line, f"{parameter.name} must be {wanted}, got {_shown(item)}.")
                return None
            assert number is not None
            if parameter.kind != "flag" and not parameter.low <= number <= parameter.high:
                self.problem(line, f"{parameter.name} must be {_interval(parameter)}, got {_shown(item)}.")
                return None
            out.append({"flag": bool, "integer": int, "number": float}[parameter.kind](number))
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
                for name in dict.fromkeys(name for name in names if names.count(name) > 1):
                    self.problem(at, f"{name} is listed more than once.")
            wrong = len(models) < method.least or (method.most is not None and len(models) > method.most)
            if wrong and not self.incomplete:
                most = (
                    ""
                    if method.most == method.least
                    else " or more"
                    if method.most is None
                    else f" to {method.most}"
                )
                counted = " besides the base" if method.base == "required" else ""
                self.problem(
                    at,
                    f"{method.name} merges {method.least}{most} model(s){counted}, but {len(models)} are given.",
                )
            levels = (part.parameters, module.parameters, recipe.parameters)
            for parameter in method.parameters:
                if parameter.default is not None or parameter.name in self.unread:
                    continue
                for source in models if parameter.per_model else models[:1]:
                    places = (source.parameters, *levels) if parameter.per_model else levels
                    given = [place[parameter.name] for place in places if parameter.name in place]
                    if not any(setting.total for setting in given):
                        which = f" for {source.model}" if parameter.per_model else ""
                        why = " for tensors that no filter matches" if given else ""
                        self.problem(
                            source.line or at,
                            f"{method.name} needs the parameter {parameter.name!r}{which}{why}.",
                        )

    # -- YAML ------------------------------------------------------------------------------

    def fields(self, node: yaml.Node, allowed: tuple[str, ...] | None, what: str) -> Fields:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self.problem(line, f"{what} must be a mapping of keys to values.")
            return {}
        found: Fields = {}
        for key_node, value in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    found = {**self.fields(merged, allowed, what), **found}
        own: Fields = {}
        for key_node, value in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            text = isinstance(key_node, yaml.ScalarNode) and key_node.tag.endswith((":str", ":int", ":float"))
            at = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(at, f"a key of {what} must be text.")
                continue
            key = str(key_node.value if text else self.plain(key_node))
            if key in own:
                self.problem(at, f"the key {key!r} occurs twice in {what}.")
            elif allowed is not None and key not in allowed:
                hint = did_you_mean(key, allowed)
                self.problem(
                    at, f"unknown key {key!r}.{hint} {what[0].upper()}{what[1:]} has: {', '.join(allowed)}."
                )
            else:
                own[key] = (value, at)
        found |= own
        empty = "tag:yaml.org,2002:null"
        return {key: field for key, field in found.items() if key not in NULLABLE or field[0].tag != empty}

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
    if not isinstance(value, (int, float)) or value != value or abs(value) > sys.float_info.max:
        return None
    return value


def _interval(parameter: Parameter) -> str:
    if parameter.high == float("inf"):
        return f"at least {parameter.low:g}"
    return f"in [{parameter.low:g}, {parameter.high:g}]"


def _shown(value: Any) -> str:
    return _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2
