"""Reading recipes: what mergekit's YAML means, and every mistake told with its line."""

# ruff: noqa: E501 (one mistake a line)

from pathlib import Path

import pytest

from mergescope.errors import RecipeError
from mergescope.merging.methods import METHODS
from mergescope.merging.recipe import read_recipe

GOOD = """\
merge_method: task_arithmetic
base_model: base
models:
  - model: base
  - model: a
    parameters:
      weight: 0.5
  - model: b
    parameters:
      weight:
        - filter: mlp
          value: [0, 1]
        - value: 0.25
parameters:
  lambda: 1e-1
  normalize: false
dtype: torch.bfloat16
out_dtype: fp16
"""


def problems(text):
    with pytest.raises(RecipeError) as caught:
        read_recipe(text)
    assert str(caught.value).count("\n") == len(caught.value.problems)
    return caught.value.problems


def only(text):
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


def test_a_recipe_is_read_as_written(tmp_path):
    (tmp_path / "r.yml").write_text("\ufeff" + GOOD)
    recipe = read_recipe(tmp_path / "r.yml")
    (module,) = recipe.modules
    (part,) = module.slices
    assert recipe.references == ["base", "a", "b"]
    assert (recipe.dtype, recipe.out_dtype) == ("bfloat16", "float16")
    assert recipe.parameters["lambda"].values == (0.1,)  # YAML 1.1 reads 1e-1 as text
    assert part.sources[1].parameters["weight"].at("x", 0) == 0.5
    assert part.sources[2].parameters["weight"].at("layers.1.mlp.w", 0.75) == 0.75
    assert part.sources[2].parameters["weight"].at("layers.1.attn.w", 0.75) == 0.25
    assert recipe.text.lstrip("\ufeff") == GOOD


def test_text_file_and_mapping_mean_the_same(tmp_path):
    models = [
        {"model": Path("a"), "parameters": {"weight": (0, 1)}},
        {"model": "b", "parameters": {"weight": 1}},
    ]
    recipe = read_recipe({"merge_method": "linear", "models": models})
    assert recipe.references == ["a", "b"]
    assert next(recipe.slices)[1].sources[0].parameters["weight"].at("w", 0.5) == 0.5
    with pytest.raises(RecipeError, match="YAML can't"):
        read_recipe({"merge_method": "linear", "models": object()})


def test_slices_and_modules():
    recipe = read_recipe("""
merge_method: passthrough
modules:
  text_model:
    slices:
      - sources: [{model: a, layer_range: [0, 4]}]
      - sources:
          - model: b
            layer_range: [2, 6]
            parameters: {scale: 2}
        parameters: {scale: 3}
    parameters: {scale: 4}
  default:
    models: [{model: a}]
""")
    text, rest = recipe.modules
    assert (text.prefix, rest.prefix) == ("text_model", "")
    assert [part.sources[0].layers for part in text.slices] == [(0, 4), (2, 6)]
    assert text.slices[1].sources[0].parameters["scale"].values == (2.0,)
    assert text.slices[1].parameters["scale"].values == (3.0,) and text.parameters["scale"].values == (4.0,)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("org/name@v1", "org/name@v1"),
        ("'  a  '", "a"),
        ("a+lora@v2", "a+lora@v2"),
        ("{model: a, lora: b}", "a+b"),
        ("{path: org/a, revision: main}", "org/a@main"),
        ("{model: org/a, revision: 1e10}", "org/a@1e10"),
        ("{model: {path: org/a, revision: v1}, lora: {path: org/l, revision: v2}}", "org/a@v1+org/l@v2"),
        ("{path: a, lora: b}", "a+b"),
        ("{model: a, lora: null, override_architecture: null}", "a"),
    ],
)
def test_model_references(written, read):
    assert read_recipe(f"merge_method: passthrough\nmodels:\n  - model: {written}\n").references == [read]


def test_anchors_and_merge_keys_are_yaml_too():
    recipe = read_recipe("""
merge_method: linear
models:
  - model: a
    parameters: &shared
      weight: 2
  - model: b
    parameters:
      <<: *shared
  - model: c
    parameters:
      <<: *shared
      weight: 3
""")
    weights = [source.parameters["weight"].values for source in next(recipe.slices)[1].sources]
    assert weights == [(2.0,), (2.0,), (3.0,)]


def test_a_key_without_a_value_is_not_there():
    recipe = read_recipe(
        "merge_method: passthrough\nbase_model:\ndtype: null\nparameters:\nmodels: [{model: a}]\n"
    )
    assert recipe.base_model is None and recipe.dtype is None and not recipe.parameters
    assert recipe.seed is None


@pytest.mark.parametrize("method", [name for name, item in METHODS.items() if item.base == "required"])
def test_every_method_takes_a_seed(method):
    models = ", ".join(f"{{model: m{n}}}" for n in range(METHODS[method].least))
    parameters = {item.name: 1 for item in METHODS[method].parameters if item.default is None}
    text = f"merge_method: {method}\nbase_model: c\nmodels: [{models}]\nparameters: {parameters}\nseed: 12\n"
    assert read_recipe(text).seed == 12


LINEAR = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n  - {model: b, parameters: {weight: 1}}\n"
TIES = LINEAR.replace("linear", "ties") + "base_model: c\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LINEAR + "dtpye: float16\n", "line 5: unknown key 'dtpye'. Did you mean: dtype"),
        (LINEAR + "tokenizer_sorce: union\n", "Did you mean: tokenizer_source"),
        (LINEAR + "parameters: {normlize: true}\n", "line 5: linear has no parameter 'normlize'. Did you mean: normalize"),
        (TIES + "parameters: {lamda: 1}\n", "Did you mean: lambda"),
        (TIES + "parameters: {desnity: 1}\n", "Did you mean: density"),
        (LINEAR + "parameters: {density: 0.5}\n", "linear has no parameter 'density'"),
        (LINEAR + "dtype: bf17\n", "line 5: unknown dtype 'bf17'. Did you mean: bf16"),
        (LINEAR + "out_dtype: [1]\n", "line 5: unknown out_dtype [1]"),
        (LINEAR + "dtype: int8\n", "unknown dtype 'int8'"),
        (LINEAR + "models: [{model: a}]\n", "line 5: the key 'models' occurs twice in the recipe"),
        (LINEAR + "slices: [{sources: [{model: a, layer_range: [0, 1], parameters: {weight: 1}}]}]\n", "not models and slices"),
        (LINEAR.replace("linear", "dare-ties") + "base_model: c\n", "line 1: unknown merge_method 'dare-ties'. Did you mean: dare_ties"),
        (LINEAR.replace("linear", "[linear]"), "line 1: unknown merge_method ['linear']"),
        (LINEAR.replace("linear", "ties"), "ties needs a base_model"),
        (LINEAR.replace("model: b", "model: a"), "a is listed more than once"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b"), "line 4: linear needs the parameter 'weight' for b"),
        (LINEAR.replace("model: b", "modle: b"), "Did you mean: model"),
        (LINEAR.replace("model: b", "model: 7"), "line 4: a model must be a path or an id, got 7"),
        (LINEAR.replace("b, parameters", "b, paramters"), "line 4: unknown key 'paramters'. Did you mean: parameters"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: x}"), "line 4: weight must be a number, got 'x'"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: true}"), "weight must be a number, got True"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: .nan}"), "weight must be a number, got nan"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: []}"), "weight is an empty list"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: [{filter: x, value: 1}]}"),
         "line 4: linear needs the parameter 'weight' for b for tensors that no filter matches"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: [{filtre: x, value: 1}]}"), "Did you mean: filter"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: [{filter: x, value: 1}, 2]}"), "mixes numbers and filters"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: [{filter: x}]}"), "a value is missing"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: [{value: 1, value: 2}]}"), "'value' occurs twice"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: [{value: 1}, {filter: x, value: 2}]}"), "never used"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: 1, weight: 2}"), "'weight' occurs twice"),
        (LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: 1, normalize: true}"), "one value for all models"),
        (TIES + "parameters: {density: 1.5}\n", "line 6: density must be in [0, 1], got 1.5"),
        (TIES + "parameters: {density: [0.5, -0.1]}\n", "density must be in [0, 1], got -0.1"),
        (TIES + "parameters: {normalize: 'yes'}\n", "normalize must be true or false, got 'yes'"),
        (TIES + "parameters: 3\n", "line 6: parameters must be a mapping"),
        ("merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 1.5}\n", "line 3: max_iter must be an integer, got 1.5"),
        ("merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {tol: -1}\n", "tol must be at least 0"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {t: 0.5}\n",
         "slerp merges 1 model(s) besides the base, but 2 are given"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n", "slerp needs the parameter 't'"),
        ("merge_method: linear\nmodels: a\n", "line 2: models must be a list"),
        ("merge_method: linear\nmodels: [a]\n", "line 2: an entry of models must be a mapping"),
        ("merge_method: linear\nmodules: {}\n", "line 2: modules must name at least one module"),
        ("merge_method: passthrough\nmodules: {x: {models: [{model: a}], slices: []}}\n", "either models or slices"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [4, 2]}]}]\n", "layer_range must be [first, one past the last], got [4, 2]"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a}]}]\n", "a needs a layer_range"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}]\n", "residual_weight has never had an effect"),
        ("merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n  - sources:\n    - {model: a, layer_range: [0, 2]}\n    - {model: b, layer_range: [0, 3]}\n",
         "line 5: the sources of one slice must have equally many layers, but a has 2, b has 3"),
        ("merge_method: passthrough\nmodels: [{model: {lora: x}}]\n", "either 'model' or 'path'"),
        (LINEAR + "tokenizer: {source: union}\ntokenizer_source: union\n", "line 5: tokenizer and tokenizer_source exclude each other"),
        (LINEAR + "tokenizer_source: base\n", "there is no base_model"),
        (LINEAR + "tokenizer: {sorce: union}\n", "Did you mean: source"),
        (LINEAR + "tokenizer: {pad_to_multiple_of: 0}\n", "pad_to_multiple_of must be a positive integer, got 0"),
        (LINEAR + "tokenizer: {tokens: {x: {}}}\n", "the token 'x' needs a source"),
        (LINEAR + "tokenizer: {tokens: {x: {source: {kind: one}}}}\n", "kind: zero or model_token"),
        (LINEAR + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n", "either token or token_id"),
        (LINEAR + "tokenizer: {tokens: {x: {source: a, force: 3}}}\n", "force must be true or false, got 3"),
        (LINEAR + "chat_template: 3\n", "line 5: chat_template must be text, got 3"),
        (LINEAR + "chat_template: chatlm\n", "line 5: chat_template 'chatlm' is neither auto, a built-in"),
        (LINEAR + "chat_template: '{% for'\n", "line 5: The chat_template is no valid Jinja"),
        (LINEAR + "seed: -1\n", "line 5: seed must be a non-negative integer, got -1"),
        (LINEAR + "seed: 1.5\n", "line 5: seed must be a non-negative integer, got 1.5"),
        (LINEAR + "seed: true\n", "line 5: seed must be a non-negative integer, got True"),
        ("- a\n- b\n", "line 1: the recipe must be a mapping"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_line(text, said):
    found = problems(text)
    assert any(said in problem for problem in found), found


SHARES = [
    (name, parameter.name)
    for name, method in sorted(METHODS.items())
    for parameter in method.parameters
    if parameter.high == 1 and name != "task_arithmetic"
]


@pytest.mark.parametrize(("method", "parameter"), SHARES)
@pytest.mark.parametrize("wrong", ["1.5", "[0.5, -0.1]", "[{filter: mlp, value: [0, 1.01]}]"])
def test_a_share_must_be_in_0_to_1_and_both_ends_are_fine(method, parameter, wrong):
    count = METHODS[method].least
    models = "".join(f"  - {{model: m{n}, parameters: {{weight: 1}}}}\n" for n in range(count))
    if all(item.name != "weight" for item in METHODS[method].parameters):
        models = models.replace("weight: 1", "")
    text = f"merge_method: {method}\nbase_model: c\nmodels:\n{models}parameters:\n  {parameter}: "
    assert f"line {count + 5}: {parameter} must be in [0, 1], got" in only(text + wrong + "\n")
    for right in ("0", "1", "[0, 0.5, 1]"):
        read_recipe(text + right + "\n")


def test_task_arithmetic_drops_no_entries():
    text = TIES.replace("ties", "task_arithmetic")
    assert read_recipe(text + "parameters: {density: 1.0}\n")
    assert "line 6: density must be 1 for this method, got 0.5" in only(text + "parameters: {density: 0.5}\n")


def test_all_mistakes_are_told_at_once_in_order_and_each_once():
    found = problems("""\
merge_method: tise
dtpye: float16
dtype: bf61
base_model: c
models:
  - model: a
    parameters:
      wieght: 1
  - modle: b
    parameters: {density: 0.5}
tokenizer: {source: union, tokns: {}}
chat_template: [1]
""")
    assert [problem.split(":")[0] for problem in found] == [
        f"line {line}" for line in (1, 2, 3, 8, 9, 9, 11, 12)
    ]
    assert len(set(found)) == len(found)


def test_a_wrong_value_is_not_told_as_missing_too():
    assert "got 'x'" in only(LINEAR.replace("b, parameters: {weight: 1}", "b, parameters: {weight: x}"))
    assert "must be a path" in only(
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: 3}]\nparameters: {t: 1}\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n", "empty"),
        ("# only a comment\n", "empty"),
        ("merge_method: [\n", "line 2, column 1"),
        ("a: b: c\n", "line 1, column 5"),
        ("merge_method: linear\n---\nmodels: 1\n", "another document"),
        ("merge_method: !!python/object:os.system x\nmodels: [{model: a}]\n", "line 1"),
        ("merge_method: passthrough\nmodels: [{model: &m {model: *m}}]\n", "holds itself"),
    ],
)
def test_what_is_no_recipe_is_refused(text, said):
    with pytest.raises(RecipeError, match=said):
        read_recipe(text)


def test_a_bomb_of_aliases_gives_a_short_message():
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    text = "l0: &l0 [x]\n" + levels + "merge_method: *l11\nmodels: [{model: a}]\n"
    with pytest.raises(RecipeError) as caught:
        read_recipe(text)
    assert len(str(caught.value)) < 10_000


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(RecipeError, match="no recipe file"):
        read_recipe(tmp_path / "absent.yml")
    with pytest.raises(RecipeError, match="no recipe file"):
        read_recipe(tmp_path)
    (tmp_path / "b.yml").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_recipe(tmp_path / "b.yml")
