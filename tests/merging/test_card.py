"""Model cards: parents, digests, licences, and the recipe."""

import json

import pytest
import torch
import yaml
from written_models import entry, mean_of, write_model

import mergescope as ms
from mergescope.merging.merge import merge


def two(folder, **files):
    return [write_model(folder / name, {"w": torch.randn(4, 5)}, **files) for name in "ab"]


def front(out):
    return yaml.safe_load((out / "README.md").read_text().split("---\n")[1])


def test_the_card_names_parents_digests_and_a_shared_licence(tmp_path):
    card = "---\nlicense: mit\ntags: [a---b]\n---\ntext\n"
    a, b = two(tmp_path, config={"architectures": ["X"]}, README__md=card)
    out = merge(mean_of(a, b), tmp_path / "out")
    found = front(out)
    assert found["base_model"] == ["a", "b"] and found["base_model_relation"] == "merge"
    assert found["license"] == "mit" and "merge" in found["tags"]
    text = (out / "README.md").read_text()
    assert (
        all(ms.Checkpoint(parent).digest in text for parent in (a, b))
        and str(a) in text
        and "merge_method: linear" in text
    )
    (b / "README.md").write_text("---\nlicense: [x]\npipeline_tag: [y]\n---\n")
    assert "license" not in front(merge(mean_of(a, b), tmp_path / "other", digests=False))


@pytest.mark.parametrize(
    ("config", "card", "named"),
    [
        ({"_name_or_path": "org/tuned-7B.v1"}, "", ["org/tuned-7B.v1"]),
        ({"_name_or_path": "org/tuned"}, "base_model: org/base", ["org/tuned"]),
        ({"_name_or_path": "../runs/tuned"}, "base_model: org/base", ["org/base"]),
        ({}, "base_model: [org/x, org/y]", ["org/x", "org/y"]),
        ({"_name_or_path": "/home/me/tuned"}, "base_model: gpt2", ["a"]),
        ({"_name_or_path": 3}, "base_model: {a: b}", ["a"]),
        (None, "", ["a"]),
    ],
)
def test_a_local_parent_is_named_by_the_id_it_says_it_comes_from(tmp_path, config, card, named):
    state = {"w": torch.ones(2)}
    a = write_model(tmp_path / "a", state, config, README__md=f"---\n{card or 'tags: []'}\n---\n")
    assert front(merge(mean_of(a), tmp_path / "out"))["base_model"] == named


def test_what_looks_like_an_id_but_is_a_local_path_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = write_model(tmp_path / "runs" / "a", {"w": torch.ones(2)})
    write_model(tmp_path / "b", {"w": torch.ones(2)}, {"_name_or_path": "runs/a"})
    assert front(merge(mean_of(a, "b"), tmp_path / "out"))["base_model"] == ["a", "b"]


def with_adapter(folder, base_config=None, base_card="", card=""):
    """A base and an adapter of it; returns their reference."""
    files = {"README__md": f"---\n{base_card}\n---\n"}
    base = write_model(folder / "base", {"w": torch.ones(2, 3)}, base_config, **files)
    factors = {
        "base_model.model.w.lora_A.weight": torch.ones(1, 3),
        "base_model.model.w.lora_B.weight": torch.ones(2, 1),
    }
    settings = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    lora = write_model(
        folder / "lora", factors, adapter_config__json=settings, README__md=f"---\n{card}\n---\n"
    )
    (lora / "model.safetensors").rename(lora / "adapter_model.safetensors")
    return f"{base}+{lora}"


def only(reference):
    return {"merge_method": "linear", "models": [entry(reference, weight=1)]}


@pytest.mark.parametrize(("base_config", "card", "named"), [
    ({}, "", ["base", "lora"]),
    ({"_name_or_path": "org/base"}, "", ["org/base", "lora"]),
    ({}, "base_model: org/base", ["base", "org/base"]),
    ({"_name_or_path": "org/base"}, "base_model: org/base", ["org/base"]),
])  # fmt: skip
def test_an_adapter_names_its_base(tmp_path, base_config, card, named):
    out = merge(only(with_adapter(tmp_path, base_config, card=card)), tmp_path / "out")
    assert front(out)["base_model"] == named
    assert torch.equal(ms.Checkpoint(out).tensor("w"), torch.full((2, 3), 2.0))


def test_an_adapter_has_a_licence_of_its_own(tmp_path):
    reference = with_adapter(tmp_path, base_card="license: mit")
    out = merge(only(reference), tmp_path / "out", digests=False)
    assert "license" not in front(out) and "| mit + not stated |" in (out / "README.md").read_text()
    (tmp_path / "lora" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert front(merge(only(reference), tmp_path / "both", digests=False))["license"] == "mit"


def test_other_licences_are_one_only_by_their_names(tmp_path):
    card = "---\nlicense: other\nlicense_name: {}\n---\n"
    a, b = two(tmp_path, README__md=card.format("llama3"))
    found = front(merge(mean_of(a, b), tmp_path / "same", digests=False))
    assert (found["license"], found["license_name"]) == ("other", "llama3")
    (b / "README.md").write_text(card.format("gemma"))
    out = merge(mean_of(a, b), tmp_path / "out", digests=False)
    assert "license" not in front(out) and "| other (gemma) |" in (out / "README.md").read_text()


def test_one_licence_may_be_linked_from_each_repository(tmp_path):
    card = "---\nlicense: apache-2.0\nlicense_link: https://hub/{}\n---\n"
    a, b = two(tmp_path, README__md=card.format("a"))
    (b / "README.md").write_text(card.format("b"))
    found = front(merge(mean_of(a, b), tmp_path / "out", digests=False))
    assert found["license"] == "apache-2.0" and "license_link" not in found


@pytest.mark.parametrize("text", [
    "merge_method: linear  # mean\nmodels: [{{model: {a}, parameters: {{weight: 1}}}}]\n",
    "seed: 0  # was\nmerge_method: linear\nmodels: [{{model: {a}, parameters: {{weight: 1}}}}]\n",
    "{{merge_method: linear, models: [{{model: {a}, parameters: {{weight: 1}}}}]}}\n",
    "{{merge_method: linear, models: [{{model: {a}, parameters: {{weight: 1}}}}],\nseed: 1}}\n",
    "--- # ```\nmerge_method: linear\nmodels: [{{model: {a}, parameters: {{weight: 1}}}}]\n...\n",
    "models: [{{model: {a}}}]\nmerge_method: passthrough\nchat_template: |\n  {{{{ x }}}}\n  seed: 1\n",
])  # fmt: skip
def test_the_recipe_is_kept_as_written_but_for_the_seed(tmp_path, text):
    a = write_model(tmp_path / "a", {"w": torch.ones(2)}, tokenizer_config__json="{}")
    (tmp_path / "r.yml").write_text(text.format(a=a))
    out = merge(tmp_path / "r.yml", tmp_path / "out", seed=7)
    kept = (out / "mergescope.yml").read_text()
    assert yaml.safe_load(kept) == yaml.safe_load(text.format(a=a)) | {"seed": 7}
    assert kept.strip() in (out / "README.md").read_text()
    assert ("# mean" in kept) == ("# mean" in text)
