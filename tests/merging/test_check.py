"""check(): every problem planted on tiny models, and relations that training really made."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import mergescope as ms
from mergescope.errors import MergescopeError, RecipeError
from mergescope.merging.check import check
from mergescope.merging.differences import config_table, grouped, label_findings

SIZE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
UP = "model.layers.0.mlp.up_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def llama(path, seed=0, tune=0.0, **options):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(SIZE | {"tie_word_embeddings": False} | options)))
    if tune:
        generator = torch.Generator().manual_seed(int(1e4 * tune))
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += tune * parameter.detach().abs().mean() * noise
    model.save_pretrained(path)
    return path


def edit(path, change):
    """Change the tensors on disk."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return path


def configure(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


def tokenizer(path, tokens):
    table = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=table, unk_token="<unk>").save_pretrained(path)


@pytest.fixture
def base(tmp_path):
    return llama(tmp_path / "base")


@pytest.fixture
def tuned(tmp_path):
    return llama(tmp_path / "tuned", tune=0.05)


def told(report, severity, topic):
    return [f for f in report.of(severity) if f.topic == topic]


def one(report, severity, topic):
    found = told(report, severity, topic)
    assert len(found) == 1, report.findings
    return found[0]


def test_models_that_fit_have_no_errors_and_no_warnings(base, tuned, tmp_path):
    report = check([tuned, llama(tmp_path / "b", tune=0.03)], base)
    assert report.models == ("base", "tuned", "b") and report.base == "base"
    assert report.mergeable and not report.of("warning") and not report.skipped
    assert report.exit_code() == report.exit_code(strict=True) == 0
    assert [(v.model, v.other, v.relation.word) for v in report.verdicts] == [
        ("tuned", "base", "descends"), ("b", "base", "descends"), ("tuned", "b", "descends"),
    ]  # fmt: skip
    pair = report.verdicts[2]
    assert abs(pair.cosine) < 0.1 and pair.sign_conflict == pytest.approx(0.5, abs=0.05)
    assert "50." in pair.reason or "49." in pair.reason or "%" in pair.reason
    assert list(report.geometry.groups("layer")) == [
        "embedding", "model.layers.0", "model.layers.1", "norm", "head",
    ]  # fmt: skip


def test_missing_keys_are_one_finding_with_the_full_list(base, tmp_path):
    fewer = llama(tmp_path / "fewer", num_hidden_layers=1)
    report = check([fewer], base)
    finding = one(report, "error", "keys")
    assert len(finding.items) == 9 and all(item.startswith("model.layers.1.") for item in finding.items)
    assert "fewer lacks 9 tensors that base has" in finding.message and "and 5 more" in finding.message
    assert any(row.key == "num_hidden_layers" and row.matters == "yes" for row in report.config)
    assert report.exit_code() == 2 and any("model.layers.1" in text for text in report.skipped)
    assert report.geometry is not None  # what both have is still compared


def test_all_problems_are_told_at_once(base, tmp_path):
    bad = llama(tmp_path / "bad", tune=0.05, intermediate_size=20)

    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["extra.weight"] = torch.ones(2)
        tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = torch.nan
        tensors[UP][3] = torch.inf  # its shape differs too: it is read all the same

    configure(edit(bad, damage), rope_theta=1e6, model_type="mistral")
    report = check([bad, tmp_path / "nowhere"], base)
    topics = [finding.topic for finding in report.of("error")]
    assert sorted(topics) == ["config", "keys", "keys", "models", "shapes", "values"]
    shapes = one(report, "error", "shapes")
    assert len(shapes.items) == 6 and "[16, 24] in base and [16, 20] in bad" in shapes.message
    values = one(report, "error", "values")
    assert len(values.items) == 2 and f"{UP} (16 of 320)" in values.items
    assert "llama" in one(report, "error", "config").message
    assert "nowhere" in one(report, "error", "models").message
    assert report.verdicts[0].relation.word == "unknown"


def test_dtypes_are_told(base, tmp_path):
    half = edit(
        llama(tmp_path / "half", tune=0.05), lambda t: t.update({k: v.bfloat16() for k, v in t.items()})
    )
    note = one(check([half], base), "note", "dtypes")
    assert "float32 in base and bfloat16 in half" in note.message and len(note.items) == 21
    quantised = edit(llama(tmp_path / "q"), lambda t: t.update({UP: (t[UP] * 100).to(torch.int8)}))
    assert UP in one(check([quantised], base), "error", "dtypes").message
    configure(half, quantization_config={"quant_method": "gptq"})
    assert "quantised" in one(check([half], base), "error", "config").message


def test_nan_in_the_base_and_in_the_only_model_are_both_told(base, tuned):
    for path in (base, tuned):
        edit(path, lambda tensors: tensors[EMBED].__setitem__((0, 0), float("nan")))
    names = [finding.message.split()[0] for finding in told(check([tuned], base), "error", "values")]
    assert names == ["base", "tuned"]


def test_configurations_are_compared_key_by_key(base, tuned):
    rope = {"rope_type": "default", "rope_theta": 5e5}
    configure(tuned, rope_parameters=rope, torch_dtype="bfloat16", odd_option=3, attention_dropout=0.5)
    configure(tuned, layer_types=["a", "b"])
    configure(base, odd_option=4, layer_types=["a", "a"])
    report = check([tuned], base, fast=True)
    rows = {row.key: row for row in report.config}
    assert rows["rope_theta"].values[1] == "500000.0" and rows["rope_theta"].matters == "yes"
    assert rows["layer_types"].matters == "yes"
    assert rows["attention_dropout"].matters == "no" and rows["odd_option"].matters == "unknown"
    assert "num_hidden_layers" not in rows
    warnings = told(report, "warning", "config")
    assert len(warnings) == 2 and "rope_theta" in warnings[0].message and "odd_option" in warnings[1].message
    assert report.exit_code() == 0 and report.exit_code(strict=True) == 3


def test_a_damaged_config_is_an_error_and_an_absent_one_a_note(base, tuned):
    (tuned / "config.json").write_text("{")
    assert "not valid JSON" in one(check([tuned], base, fast=True), "error", "config").message
    (tuned / "config.json").unlink()
    assert "no config.json" in one(check([tuned], base, fast=True), "note", "config").message


def test_tied_heads(base, tuned, tmp_path):
    tied = llama(tmp_path / "tied", tie_word_embeddings=True)
    report = check([tied], base)
    assert HEAD in one(report, "note", "tied").message and not told(report, "error", "keys")
    assert "needs a head of its own" in one(report, "warning", "tied").message
    configure(tuned, tie_word_embeddings=True)
    assert "drops that head" in one(check([tuned], base), "warning", "tied").message


def test_tokenizers(base, tuned):
    words = ["<unk>", "a", "b", "c"]
    tokenizer(base, words)
    tokenizer(tuned, words)
    assert not [f for f in check([tuned], base, fast=True).findings if f.topic == "tokenizer"]
    tokenizer(tuned, ["<unk>", "b", "a", "c"])
    assert "2 token(s) with other ids" in one(check([tuned], base, fast=True), "error", "tokenizer").message
    tokenizer(tuned, [*words, "<tool>"])
    assert "'<tool>'" in one(check([tuned], base, fast=True), "warning", "tokenizer").message


def test_vocabulary_rows_differ_and_a_recipe_that_aligns_them_copes(base, tmp_path):
    words = ["<unk>", *(f"w{i}" for i in range(39))]
    tokenizer(base, words)
    larger = configure(llama(tmp_path / "larger", tune=0.05), vocab_size=41)
    more = {
        key: pad(value, (0, 0, 0, 1))
        for key, value in ms.Checkpoint(larger).state_dict().items()
        if value.ndim > 1
    }
    edit(larger, lambda tensors: tensors.update({key: more[key] for key in (EMBED, HEAD)}))
    tokenizer(larger, [*words, "<tool>"])
    report = check([larger], base)
    assert not report.mergeable and "tokenizer: {source: union}" in one(report, "error", "shapes").message
    recipe = {
        "merge_method": "linear", "models": [
            {"model": str(path), "parameters": {"weight": 1}} for path in (base, larger)
        ],
        "tokenizer_source": "union",
    }  # fmt: skip
    coped = check(recipe=recipe)
    assert coped.mergeable, coped.findings
    assert "copes" in one(coped, "note", "shapes").message and told(coped, "note", "tokenizer")


def test_a_recipe_is_planned_and_its_problems_are_listed(base, tuned, tmp_path):
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(base),
        "models": [{"model": str(tuned), "parameters": {"weight": 1}}],
    }  # fmt: skip
    report = check(recipe=recipe)
    assert report.mergeable and report.base == "base" and report.models == ("base", "tuned")
    edit(tuned, lambda tensors: tensors.pop("model.norm.weight"))
    assert one(check(recipe=recipe), "error", "recipe").items
    with pytest.raises(RecipeError, match="dtpye"):
        check(recipe=recipe | {"dtpye": "bfloat16"})
    with pytest.raises(MergescopeError, match="not both"):
        check([tuned], recipe=recipe)


def test_a_recipe_of_one_model_is_checked(base):
    sources = [[{"model": str(base), "layer_range": span}] for span in ([0, 2], [1, 2])]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": each} for each in sources]}
    report = check(recipe=recipe)
    assert report.mergeable and report.models == ("base",) and not report.skipped
    edit(base, lambda tensors: tensors[UP].fill_(torch.nan))
    assert UP in one(check(recipe=recipe), "error", "values").message


def labelled(name, labels):
    state = {"classifier.weight": torch.ones(2, 3), "token_type_embeddings.weight": torch.ones(2, 3)}
    config = {"id2label": {str(number): label for number, label in enumerate(labels)}}
    return SimpleNamespace(name=name, config=config, spec=ms.Checkpoint(state).spec)


@pytest.mark.parametrize(
    ("labels", "severity", "said"),
    [
        (["pos", "neg"], "error", "the same classes other numbers: 0 is 'pos' in b and 'neg' in a"),
        (["spam", "ham"], "warning", "for other classes: 0 is 'spam' in b and 'neg' in a"),
        (["NEG", "Pos"], None, None),
        (["LABEL_0", "LABEL_1"], None, None),
        (["neg", "none", "pos"], None, None),
    ],
)
def test_heads_whose_rows_are_other_classes_are_told(labels, severity, said):
    found = label_findings([labelled("a", ["neg", "pos"]), labelled("b", labels)])
    assert [finding.severity for finding in found] == [severity] * (severity is not None)
    assert all(said in finding.message and finding.items == ("classifier.weight",) for finding in found)


def test_classes_in_another_order_stand_against_a_mean_but_not_against_stacking(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path, labels in zip(paths, (["neg", "pos"], ["pos", "neg"]), strict=True):
        path.mkdir()
        save_file({"classifier.weight": torch.ones(2, 3)}, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(labels))}))
    assert "Rows of different classes" in one(check(paths, fast=True), "error", "config").message
    recipe = {"merge_method": "passthrough", "models": [{"model": str(paths[0])}]}
    assert check(recipe=recipe | {"base_model": str(paths[1])}, fast=True).mergeable


def test_stacking_layers_of_strangers_is_no_error(base, tmp_path):
    other = llama(tmp_path / "other", seed=1)
    slices = [{"sources": [{"model": str(path), "layer_range": [0, 2]}]} for path in (base, other)]
    report = check(recipe={"merge_method": "passthrough", "slices": slices})
    assert report.mergeable and "No common origin" in one(report, "note", "relation").message


def test_an_unrelated_model_is_told_from_a_fine_tune(base, tuned, tmp_path):
    report = check([tuned, llama(tmp_path / "other", seed=1)], base)
    finding = one(report, "error", "relation")
    assert finding.message.startswith("other does not descend from base")
    assert [v.relation.word for v in report.verdicts] == ["descends", "unrelated", "unrelated"]
    # Norms of ones make the cosine over all weights look related: the reason for taking matrices.
    total = report.geometry.total
    assert float(total.model_cosines[0, 2]) > 0.3
    assert abs(report.verdicts[1].relation.cosine) < 0.1
    assert report.exit_code() == 2


def test_a_wrong_base_of_two_siblings_is_recognised(base, tmp_path):
    siblings = [llama(tmp_path / name, seed=1, tune=tune) for name, tune in (("a", 0.02), ("b", 0.05))]
    report = check(siblings, base)
    assert len(told(report, "error", "relation")) == 2
    assert "name the base that they come from" in one(report, "note", "relation").message
    without = check(siblings)
    assert without.mergeable and without.verdicts[0].relation.word == "descends"
    assert without.verdicts[0].cosine is None  # no base, no task vectors


def test_equal_models_are_warned_about(base, tuned, tmp_path):
    same, twin = llama(tmp_path / "same"), llama(tmp_path / "twin", tune=0.05)
    report = check([same, tuned, twin], base)
    messages = [finding.message for finding in told(report, "warning", "relation")]
    assert messages == [
        "Every weight of same equals base's: its task vector is zero.",
        "tuned and twin are the same model: in a merge it counts twice.",
    ]
    assert report.exit_code() == 0 and report.exit_code(strict=True) == 3


def test_a_new_head_is_named_though_the_rest_descends(base, tuned):
    edit(tuned, lambda tensors: tensors.update({HEAD: torch.randn(tensors[HEAD].shape)}))
    report = check([tuned], base)
    assert report.verdicts[0].relation.word == "descends"
    assert one(report, "warning", "relation").items == (HEAD,)


def train(net, data, labels, rate, epochs=15):
    net = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    for _ in range(epochs):
        for x, y in zip(data.split(32), labels.split(32), strict=True):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
    return net


def test_training_really_leaves_these_relations():
    def strip(net, name):
        return ms.Checkpoint(net.state_dict(), name=name)

    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(6, 32, generator=generator)
    labels = torch.randint(0, 6, (640,), generator=generator)
    data = centres[labels] + torch.randn(640, 32, generator=generator)
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(train(ms.MLP((32, 64, 64, 6)), data, labels, 1e-3))
    few = labels < 3
    tuned = train(nets[0], data[few], labels[few], 1e-3)
    report = check([strip(tuned, "tuned"), strip(nets[1], "other")], strip(nets[0], "base"))
    words = [verdict.relation.word for verdict in report.verdicts]
    assert words == ["descends", "unrelated", "unrelated"]
    near, far = (verdict.relation for verdict in report.verdicts[:2])
    assert near.cosine > 0.95 and near.distance < 0.4 and abs(far.cosine) < 0.15 and far.distance > 1.2


def test_fast_reads_no_weights_and_says_what_it_left_out(base, tuned, monkeypatch):
    edit(tuned, lambda tensors: tensors[UP].fill_(torch.nan))
    monkeypatch.setattr(ms.Checkpoint, "rows", lambda *_: pytest.fail("read weights"))
    monkeypatch.setattr(ms.Checkpoint, "tensor", lambda *_: pytest.fail("read weights"))
    report = check([tuned], base, fast=True)
    assert report.mergeable and report.geometry is None and not report.verdicts
    assert all(word in report.skipped[0] for word in ("NaN", "tied", "descend", "task vectors"))


def test_models_of_one_directory_name_are_told_apart(tmp_path):
    paths = [llama(tmp_path / run / "checkpoint-1", tune=tune) for run, tune in (("a", 0.02), ("b", 0.05))]
    report = check([str(path) for path in paths])
    assert report.models == ("checkpoint-1", str(paths[1]))
    twice = check([str(paths[0]), str(paths[0])])
    assert len(set(twice.models)) == 2 and "same model" in one(twice, "warning", "relation").message


def test_too_few_models_are_refused(base):
    with pytest.raises(MergescopeError, match="two models"):
        check([base])
    report = check(["nowhere/at/all"], base)
    assert report.exit_code() == 2 and any("Fewer than two" in text for text in report.skipped)


def test_the_report_is_plain_json(base, tuned):
    edit(tuned, lambda tensors: tensors[UP].fill_(torch.nan))
    text = json.dumps(check([tuned], base).to_dict(), allow_nan=False)
    found = json.loads(text)
    assert found["mergeable"] is False and found["verdicts"][0]["relation"]["distance"] is None
    assert found["geometry"] and "not how good their merge is" in found["about"]


def test_hundreds_of_names_become_a_few_patterns():
    names = [f"model.layers.{i}.mlp.experts.{j}.w" for i in range(20) for j in range(20)]
    assert grouped([*names, "a", "b", "c", "d"]) == "model.layers.*.mlp.experts.*.w (400), a, b, c and 1 more"


def test_long_values_that_begin_alike_are_told_apart():
    stubs = [SimpleNamespace(name=str(end), config={"layer_types": ["x"] * 30 + [end]}) for end in (1, 2)]
    row = config_table(stubs)[0]
    assert row.values[0] != row.values[1] and all(len(value) < 60 for value in row.values)
