"""Plans: which tensors come out, of what, and everything that is wrong before a byte is read."""

import json

import pytest
import torch
from written_models import entry, mean_of, save_family, tensors, write_model

import mergescope as ms
from mergescope.errors import CheckpointError, MismatchError
from mergescope.merging.merge import merge
from mergescope.merging.plan import make_plan
from mergescope.merging.recipe import read_recipe


def plan(recipe, **states):
    opened = {name: ms.Checkpoint(state, name=name) for name, state in states.items()}
    return make_plan(read_recipe(recipe), opened=opened)


def refused(recipe, **states):
    with pytest.raises(MismatchError) as caught:
        plan(recipe, **states)
    return str(caught.value)


def weights(made):
    return {job.name: job.values.per_model["weight"] for job in made.jobs}


LAYERS = {f"h.{n}.{part}.w": torch.ones(2) for n in range(3) for part in ("attn", "mlp")}
NET = {"wte.weight": torch.ones(4, 2), **LAYERS, "ln.weight": torch.ones(2)}


def test_gradients_filters_and_levels():
    made = plan("""
merge_method: linear
parameters: {weight: 7}
models:
  - model: a
    parameters:
      weight: [{filter: mlp, value: [0, 1]}, {filter: attn, value: 5}]
  - model: b
""", a=NET, b=NET)  # fmt: skip
    found = weights(made)
    assert [found[f"h.{n}.mlp.w"] for n in range(3)] == [[0, 7], [0.5, 7], [1, 7]]
    assert found["h.1.attn.w"] == [5, 7] and found["ln.weight"] == [7, 7] == found["wte.weight"]


def test_parameters_that_do_not_go_together_are_refused_before_the_merge():
    text = """
merge_method: della
base_model: c
models:
  - {model: a, parameters: {weight: 1, density: [0, 1]}}
  - {model: b, parameters: {weight: [{filter: attn, value: -1}, {value: 1}]}}
"""
    assert plan(text.replace("[0, 1]", "[0, 0.5, 1]").replace("-1", "2"), a=NET, b=NET, c=NET).jobs
    told = refused(text.replace("[0, 1]", "[0, 0.2]"), a=NET, b=NET, c=NET)
    assert "h.0.attn.w and 2 more: The weights [1.0, -1.0] sum to zero" in told
    assert "h.1.mlp.w: density - epsilon and density + epsilon must both be" in told
    assert "density is 0.1 and epsilon 0.15" in told and "Correct the recipe's parameters." in told


def test_source_beats_slice_beats_module_beats_recipe():
    text = """
merge_method: task_arithmetic
base_model: a
parameters: {weight: 1, lambda: 1}
modules:
  default:
    parameters: {weight: 2, lambda: 2}
    slices:
      - sources:
          - {model: a, layer_range: [0, 1]}
          - {model: b, layer_range: [0, 1], parameters: {weight: 4}}
        parameters: {weight: 3, lambda: 3}
      - sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]
        parameters: {weight: 3}
      - sources: [{model: a, layer_range: [2, 3]}, {model: b, layer_range: [2, 3]}]
"""
    made = {job.name: job for job in plan(text, a=NET, b=NET).jobs}
    assert [made[f"h.{n}.mlp.w"].values.weights for n in range(3)] == [[4], [3], [2]]
    assert [made[f"h.{n}.mlp.w"].values["lambda"] for n in range(3)] == [3, 2, 2]


def test_the_base_may_be_listed_or_not_and_linear_needs_no_weight_for_it():
    for listed in ([], [entry("base")]):
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [*listed, entry("a", weight=1)],
        }
        made = plan(recipe, base=NET, a=NET)
        assert all(job.labels == ("a",) and job.base.model.name == "base" for job in made.jobs)
    made = plan(mean_of("a", "b", base_model="base"), base=NET, a=NET, b=NET)
    assert all(job.labels == ("a", "b") and job.base is None for job in made.jobs)


def test_the_dtype_is_the_homes_unless_the_recipe_says_otherwise():
    half = {key: value.bfloat16() for key, value in NET.items()}
    for recipe, wanted in (
        (mean_of("a", "b"), torch.float32),
        (mean_of("a", "b", base_model="b"), torch.bfloat16),
        (mean_of("a", "b", dtype="fp16"), torch.float16),
        (mean_of("a", "b", dtype="fp16", out_dtype="bf16"), torch.bfloat16),
    ):
        made = plan(recipe, a=NET, b=half)
        assert {job.spec.dtype for job in made.jobs} == {wanted}
        assert any("stored as bfloat16 and float32" in note for note in made.notes) == ("dtype" not in recipe)


def test_a_dtype_that_is_not_the_homes_is_told():
    half = {key: value.bfloat16() for key, value in NET.items()}
    sources = [[{"model": name, "layer_range": [0, 3]}] for name in "ab"]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": each} for each in sources]}
    made = plan(recipe, a=NET, b=half)
    kinds = {job.name: job.spec.dtype for job in made.jobs}
    assert kinds["h.0.attn.w"] == torch.float32 and kinds["h.3.attn.w"] == torch.bfloat16
    assert any("in a (where that has no part, as in the first that has)" in note for note in made.notes)
    assert not any("no part" in note for note in plan(mean_of("a", "b"), a=NET, b=half).notes)


def test_every_difference_is_named_with_tensor_models_and_shapes():
    other = {**NET, "ln.weight": torch.ones(3), "extra": torch.ones(1)}
    del other["h.1.mlp.w"]
    told = refused(mean_of("a", "b"), a=NET, b=other)
    assert "ln.weight: [2] in a, [3] in b" in told
    assert "h.1.mlp.w: missing in b" in told
    assert "extra: only in b, missing in a" in told
    assert "one architecture" in told and "tokenizer" not in told


def test_only_a_different_number_of_rows_is_a_matter_of_tokens():
    told = refused(mean_of("a", "b"), a=NET, b={**NET, "wte.weight": torch.ones(5, 2)})
    assert "wte.weight: [4, 2] in a, [5, 2] in b" in told and "tokenizer_source" in told
    told = refused(mean_of("a", "b"), a=NET, b={**NET, "wte.weight": torch.ones(4, 3)})
    assert "tokenizer" not in told


def test_integers_are_copied_if_equal_and_refused_if_not():
    ids, count = torch.arange(3), torch.tensor(5)
    a = {**NET, "ids": ids, "bn.num_batches_tracked": count}
    made = plan(mean_of("a", "b"), a=a, b={**a, "bn.num_batches_tracked": count + 1})
    assert [job.name for job in made.jobs if job.copy] == ["ids", "bn.num_batches_tracked"]
    assert "ids: integers that differ between a and b" in refused(
        mean_of("a", "b"), a=a, b={**a, "ids": ids + 1}
    )
    told = refused(mean_of("a", "b"), a=NET, b={**NET, "ln.weight": torch.ones(2, dtype=torch.int8)})
    assert "float32[2] in a, int8[2] in b" in told and "equantise" in told


@pytest.mark.parametrize(("with_ids", "without"), [("a", "b"), ("b", "a")])
def test_position_numbers_that_some_models_lack_are_left_out(with_ids, without):
    states = {with_ids: {**NET, "embeddings.position_ids": torch.arange(4)[None]}, without: NET}
    made = plan(mean_of("a", "b"), **states)
    assert {job.name for job in made.jobs} == set(NET)
    other = {with_ids: {**NET, "embeddings.extra": torch.arange(4)[None]}, without: NET}
    assert "embeddings.extra" in refused(mean_of("a", "b"), **other)


BOTH = {
    "shared.weight": torch.rand(4, 2), "encoder.block.0.w": torch.ones(2), "decoder.block.0.w": torch.ones(2),
}  # fmt: skip
ONCE_MORE = {
    name: BOTH["shared.weight"] for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
}


@pytest.mark.parametrize("states", [({}, ONCE_MORE), (ONCE_MORE, {}), (ONCE_MORE, ONCE_MORE)])
def test_a_shared_embedding_is_merged_once_however_often_it_is_saved(states):
    made = plan(mean_of("a", "b"), **{name: BOTH | more for name, more in zip("ab", states, strict=True)})
    assert {job.name for job in made.jobs} == set(BOTH)
    assert [note for note in made.notes if "once more" in note] == [
        f"{name} is the shared embedding once more and is left out" for name in ONCE_MORE
    ]
    other = {name: value + 1 for name, value in ONCE_MORE.items()}
    assert (
        len(plan(mean_of("a", "b"), a=BOTH | other, b=BOTH | other).jobs) == 5
    )  # no copies: nothing is lost
    two = {"encoder.embed_tokens.weight": torch.ones(3, 2), "decoder.embed_tokens.weight": torch.ones(4, 2)}
    assert {job.name for job in plan(mean_of("a", "b"), a=two, b=two).jobs} == set(two)  # two vocabularies


def test_a_head_that_is_the_embedding_and_that_only_some_models_save_is_left_out():
    head = {"lm_head.weight": BOTH["shared.weight"]}
    made = plan(mean_of("a", "b"), a=BOTH, b=BOTH | head)
    assert {job.name for job in made.jobs} == set(BOTH)
    assert list(made.notes) == ["lm_head.weight equals the embedding and is left out"]
    own = {"lm_head.weight": BOTH["shared.weight"] + 1}
    assert {job.name for job in plan(mean_of("a", "b"), a=BOTH, b=BOTH | own).jobs} == {
        *BOTH,
        "lm_head.weight",
    }


def test_a_tied_head_is_kept_where_it_is_not_the_embedding(tmp_path):
    rows = BOTH["shared.weight"]
    for name, head in (("same", rows.clone()), ("own", rows + 1)):
        a, b = (
            write_model(
                tmp_path / name / each, BOTH | {"lm_head.weight": head}, {"tie_word_embeddings": True}
            )
            for each in "ab"
        )
        made = make_plan(read_recipe(mean_of(a, b)))
        kept = "lm_head.weight" in {job.name for job in made.jobs}
        assert kept is (name == "own") and made.config["tie_word_embeddings"] is not kept
        assert any("is kept and tie_word_embeddings set to false" in note for note in made.notes) is kept


def test_what_a_network_does_not_read_is_left_out_and_nothing_else(tmp_path):
    table = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    a = write_model(tmp_path / "a", BOTH | {table: torch.zeros(2, 2)}, config)
    b = write_model(tmp_path / "b", BOTH, config)
    for first, second in ((a, b), (b, a)):
        made = make_plan(read_recipe(mean_of(str(first), str(second))))
        assert {job.name for job in made.jobs} == set(BOTH)
        assert (
            f"{table} is not read by T5ForConditionalGeneration and is left out: {b} lacks it" in made.notes
        )
    c = write_model(tmp_path / "c", BOTH | {"decoder.extra": torch.zeros(2)}, config)
    with pytest.raises(MismatchError, match="decoder.extra"):
        make_plan(read_recipe(mean_of(str(b), str(c))))


def test_stacks_leave_out_what_follows_from_the_configuration_too():
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 2, 2) for n in range(3)}
    recipe = """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 2], parameters: {weight: 1}},
              {model: b, layer_range: [0, 2], parameters: {weight: 1}}]
"""
    made = plan(recipe, a=NET | masks, b=NET)
    assert {job.name for job in made.jobs} == {key for key in NET if not key.startswith("h.2")}


def test_running_statistics_are_noted():
    made = plan(mean_of("a", "b"), a={"bn.running_mean": torch.ones(2)}, b={"bn.running_mean": torch.ones(2)})
    assert made.statistics == ("bn.running_mean",) and "BatchNorm" in made.notes[0]


def test_modules_take_their_prefix_and_must_cover_the_model(tmp_path):
    paths = save_family(tmp_path, "clip", ("a", "b"))
    models = [entry(paths[name], weight=1) for name in "ab"]
    recipe = {
        "merge_method": "linear",
        "modules": {"text_model": {"models": models}, "vision_model": {"models": models}},
    }
    with pytest.raises(MismatchError) as caught:
        make_plan(read_recipe(recipe))
    assert "logit_scale: belongs to no module" in str(caught.value)
    for name in ("logit_scale", "visual_projection", "text_projection"):
        recipe["modules"][name] = {"models": models[:1]}
    made = make_plan(read_recipe(recipe))
    assert {job.name for job in made.jobs} == set(tensors(paths["a"]))
    assert {
        len(job.models) for job in made.jobs if "projection" in job.name or job.name == "logit_scale"
    } == {1}
    recipe["modules"]["text_model.encoder"] = {"models": models}
    with pytest.raises(MismatchError, match="made by 2 modules"):
        make_plan(read_recipe(recipe))


def sized(folder, rows, width):
    """A network of two blocks with a head, and the configuration that describes it."""
    state = {f"h.{n}.w": torch.ones(width) for n in range(2)}
    state |= {name: torch.ones(rows, width) for name in ("wte.weight", "lm_head.weight")}
    return write_model(folder, state, {"vocab_size": rows, "n_layer": 2, "tie_word_embeddings": False})


def stacked(*models):
    sources = [[{"model": str(model), "layer_range": [0, 2]}] for model in models]
    return {"merge_method": "passthrough", "slices": [{"sources": each} for each in sources]}


def exchanged(model, other):
    parts = {"h": model, "lm_head": model, "wte": other}
    return {
        "merge_method": "passthrough",
        "modules": {name: {"models": [entry(each)]} for name, each in parts.items()},
    }


@pytest.mark.parametrize(
    ("recipe", "other", "told", "advice"),
    [
        (stacked, (5, 2), "lm_head.weight: [5, 2] from {b}, but", "tokenizer_source"),
        (lambda a, b: mean_of(b, base_model=str(a)), (5, 2), "wte.weight: [5, 2] from {b}, but", "tokenizer_source"),
        (exchanged, (5, 2), "wte.weight: [5, 2] from {b}, but", "tokenizer_source"),
        (stacked, (4, 3), "h.2.w: [3] from {b}, but", "one architecture"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_the_configuration_of_the_output_are_refused(
    tmp_path, recipe, other, told, advice
):
    a, b = sized(tmp_path / "a", 4, 2), sized(tmp_path / "b", *other)
    with pytest.raises(MismatchError) as caught:
        make_plan(read_recipe(recipe(a, b)))
    assert f"{told.format(b=b)} config.json comes from {a}, which has [" in str(caught.value)
    assert advice in str(caught.value)
    assert make_plan(read_recipe(recipe(a, sized(tmp_path / "like", 4, 2)))).jobs


def test_weights_of_further_modules_are_copied_and_noted(tmp_path):
    modules = json.dumps([{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
    a, b = (write_model(tmp_path / name, NET, modules__json=modules) for name in "ab")
    write_model(a / "2_Dense", {"linear.weight": torch.ones(2)})
    recipe = read_recipe(mean_of(a, b))
    assert f"the weights in 2_Dense are those of {a}, and not merged" in make_plan(recipe).notes
    out = merge(recipe, tmp_path / "out")
    assert torch.equal(tensors(out / "2_Dense")["linear.weight"], torch.ones(2))
    assert not any("2_Dense" in note for note in make_plan(read_recipe(mean_of(b))).notes)


def test_layers_are_stacked_from_the_right_blocks():
    nets = {
        name: {f"h.{n}.w": torch.full((2,), 10.0 * k + n) for n in range(4)} | {"wte.weight": torch.full((2, 2), k), "ln": torch.full((2,), k)}  # noqa: E501
        for k, name in ((1.0, "a"), (2.0, "b"))
    }  # fmt: skip
    made = plan("""
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
""", **nets)  # fmt: skip
    values = {
        job.name: float(next(iter(job.stream(made.recipe.method))).models[0][0, 0]) for job in made.jobs
    }
    assert values == {
        "wte.weight": 1, "ln": 2, "h.0.w": 10, "h.1.w": 11, "h.2.w": 12, "h.3.w": 21, "h.4.w": 22, "h.5.w": 23,
    }  # fmt: skip


SLERP = """
merge_method: slerp
base_model: a
parameters: {t: 0.5}
slices:
  - sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]
"""


def test_what_only_a_later_source_of_a_slice_has_is_merged_or_refused():
    tied = {"wte.weight": torch.ones(4, 2), **LAYERS, "ln.weight": torch.ones(2)}
    made = plan(SLERP, a=tied, b=tied | {"lm_head.weight": torch.zeros(4, 2)})
    (head,) = (job for job in made.jobs if job.name == "lm_head.weight")
    assert {rows.key for rows in (*head.models, head.base)} == {"lm_head.weight", "wte.weight"}
    assert "ln.bias: missing in a" in refused(SLERP, a=tied, b=tied | {"ln.bias": torch.zeros(2)})
    based = SLERP.replace("slerp\nbase_model: a", "task_arithmetic\nbase_model: c").replace(
        "t: 0.5", "weight: 1"
    )
    assert "ln.bias: missing in a, b" in refused(based, a=tied, b=tied, c=tied | {"ln.bias": torch.zeros(2)})


@pytest.mark.parametrize("scale", ["h.0.mlp.w_scale", "h.0.mlp.weight_scale_inv", None])
def test_codes_of_8_bits_whose_scales_are_elsewhere_are_refused_and_plain_ones_merged(scale):
    codes = {"h.0.mlp.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    state = codes | ({scale: torch.ones(1)} if scale else {})
    recipe = mean_of("a", "b", dtype="bfloat16")
    if scale:
        told = refused(recipe, a=state, b=state)
        assert (
            "h.0.mlp.weight: 8-bit floats with scales of their own in a, b" in told and "Dequantise" in told
        )
    else:
        assert plan(recipe, a=state, b=state).jobs[0].spec.dtype == torch.bfloat16


def test_a_configuration_that_speaks_of_quantisation_is_believed(tmp_path):
    codes = {"w": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    a, b = (
        write_model(tmp_path / name, codes, {"quantization_config": {"quant_method": "fp8"}}) for name in "ab"
    )
    with pytest.raises(MismatchError, match="8-bit floats with scales"):
        make_plan(read_recipe(mean_of(a, b, dtype="bfloat16")))


def test_an_unlisted_base_of_a_slice_is_taken_at_the_sources_blocks():
    text = """
merge_method: task_arithmetic
base_model: c
parameters: {weight: 1}
slices:
  - sources: [{model: a, layer_range: [2, 3]}, {model: b, layer_range: [2, 3]}]
"""
    made = {job.name: job for job in plan(text, a=NET, b=NET, c=NET).jobs}
    assert made["h.0.mlp.w"].base.key == "h.2.mlp.w"
    told = refused(text.replace("b, layer_range: [2, 3]", "b, layer_range: [1, 2]"), a=NET, b=NET, c=NET)
    assert "list the base c with its layer_range" in told


def test_layer_ranges_beyond_the_model_are_refused():
    text = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [1, 9]}]\n"
    assert "line 3: layer_range (1, 9)".replace("(1, 9)", "[1, 9] of a, which has 3 blocks") in refused(
        text, a=NET
    )


def test_all_models_that_cannot_be_opened_are_named(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        make_plan(read_recipe(mean_of(tmp_path / "x", tmp_path / "y")))
    told = str(caught.value)
    assert told.startswith("recipe: 2 models can't be opened:\n")
    assert (
        f"  - line 3: There is no file or directory '{tmp_path / 'x'}'" in told
        and f"{tmp_path / 'y'}" in told
    )


def test_hub_ids_with_revisions_are_found_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, commit in (("a", "a" * 40), ("b", "b" * 40)):
        home = tmp_path / f"models--org--{name}"
        write_model(home / "snapshots" / commit, {**NET, "ln.weight": torch.full((2,), float(name == "b"))})
        (home / "refs").mkdir()
        (home / "refs" / "v1.0").write_text(commit)
    models = [
        entry("org/a@v1.0", weight=1),
        {"model": {"path": "org/b", "revision": "b" * 40}, "parameters": {"weight": 1}},
    ]
    out = merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    assert torch.equal(tensors(out)["ln.weight"], torch.full((2,), 0.5))
    card = (out / "README.md").read_text()
    assert "base_model:\n- org/a\n- org/b\n" in card and "a" * 40 in card and "b" * 40 in card
    models[0]["model"] = "org/a@v2"
    with pytest.raises(CheckpointError, match=r"line 3: 'org/a' is neither .* at revision 'v2'"):
        make_plan(read_recipe({"merge_method": "linear", "models": models}))


def test_the_digest_changes_with_recipe_inputs_and_seed(tmp_path):
    a, b = (write_model(tmp_path / name, NET) for name in "ab")
    recipe = read_recipe(mean_of(a, b))
    first = make_plan(recipe).digest
    assert make_plan(recipe).digest == first != make_plan(recipe, seed=1).digest
    assert make_plan(read_recipe(mean_of(a, b, parameters={"normalize": False}))).digest != first
    write_model(b, {**NET, "ln.weight": torch.zeros(2)})
    assert make_plan(recipe).digest != first


def test_the_digest_knows_which_blocks_are_taken():
    text = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 2]}]\n"
    assert plan(text, a=NET).digest == plan(text, a=NET).digest
    assert plan(text, a=NET).digest != plan(text.replace("[0, 2]", "[1, 3]"), a=NET).digest
