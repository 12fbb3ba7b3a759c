"""LoRA adapters as parents of a merge, against PEFT's own merging and plain torch."""

import json

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from written_models import build, entry, loads, tensors

from mergescope.merging.merge import merge
from mergescope.merging.plan import make_plan
from mergescope.merging.recipe import read_recipe

pytestmark = [pytest.mark.peft, pytest.mark.filterwarnings("ignore::FutureWarning")]

WORDS = ["<unk>", *(f"t{n}" for n in range(39))]
TARGETS = ["q_proj", "v_proj", "down_proj"]


def tokenizer(*added):
    table = models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>")
    words = Tokenizer(table)
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    made.add_tokens(list(added))
    return made


def save_base(folder):
    build("llama", 0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder, seed, added=(), trained=True, **options):
    """A trained adapter; with added tokens it brings a tokenizer and larger embeddings. Returns PEFT's merge."""
    network = build("llama", 0)
    if added:
        network.resize_token_embeddings(len(WORDS) + len(added), mean_resizing=False)
        options = {"modules_to_save": ["embed_tokens", "lm_head"] if trained else None, **options}
        tokenizer(*added).save_pretrained(folder)
    torch.manual_seed(seed)
    network = peft.get_peft_model(network, peft.LoraConfig(r=3, target_modules=TARGETS, **options))
    with torch.no_grad():
        for value in peft.get_peft_model_state_dict(network).values():  # all that is saved, in place
            value.add_(torch.randn_like(value) * 0.2)
    network.save_pretrained(folder, save_embedding_layers=bool(added) and not trained)
    return {key: value.detach().clone() for key, value in network.merge_and_unload().state_dict().items()}


def slow_ties(base, parents, weights, density):
    """TIES entry by entry."""
    taus = []
    for parent, weight in zip(parents, weights, strict=True):
        tau = (parent.double() - base.double()).flatten()
        largest = sorted(range(len(tau)), key=lambda n: (-abs(float(tau[n])), n))
        kept = largest[: max(1, int(density * len(tau)))]
        taus.append({n: weight * float(tau[n]) for n in kept if tau[n]})
    out = base.double().flatten()
    for n in range(len(out)):
        total = sum(tau.get(n, 0.0) for tau in taus)
        agree = [k for k, tau in enumerate(taus) if n in tau and (tau[n] > 0) == (total >= 0)]
        if agree:
            out[n] += sum(taus[k][n] for k in agree) / sum(weights[k] for k in agree)
    return out.reshape(base.shape)


EXPECTED = {
    "linear": lambda base, a, b: (0.6 * a + 0.2 * b) / 0.8,
    "task_arithmetic": lambda base, a, b: base + 0.6 * (a - base) + 0.2 * (b - base),
    "ties": lambda base, a, b: slow_ties(base, (a, b), (0.6, 0.2), 0.4),
}


@pytest.mark.parametrize("method", EXPECTED)
def test_adapters_are_merged_as_the_models_that_peft_makes_of_them(tmp_path, method):
    base = save_base(tmp_path / "base")
    parents = [
        save_adapter(tmp_path / name, seed, **options)
        for seed, (name, options) in enumerate(
            {"a": {"lora_alpha": 9}, "b": {"use_rslora": True, "bias": "lora_only"}}.items(), start=1
        )
    ]
    given = {"density": 0.4} if method == "ties" else {}
    listed = [entry(f"{base}+{tmp_path / name}", weight=w, **given) for name, w in (("a", 0.6), ("b", 0.2))]
    recipe = {"merge_method": method, "models": listed}
    if method != "linear":
        recipe["base_model"] = str(base)
    out = merge(recipe, tmp_path / "out")
    before, made = tensors(base), tensors(out)
    assert set(made) == set(before)
    changed = 0
    for key, value in made.items():
        expected = EXPECTED[method](before[key].double(), *(parent[key].double() for parent in parents))
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        changed += not torch.allclose(value, before[key], rtol=1e-5, atol=1e-6)
    assert changed == 3 * len(TARGETS)
    loads(out, "llama")
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer().get_vocab()


def test_an_adapter_is_read_lazily_and_counts_as_its_base_and_itself(tmp_path):
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "a", 1)
    listed = [entry(f"{base}+{tmp_path / 'a'}", weight=1)]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": listed}
    plan = make_plan(read_recipe(recipe))
    size = sum(value.nbytes for value in tensors(base).values())
    assert plan.bytes_written == size and plan.bytes_read == 2 * size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]  # no merged copy


@pytest.mark.parametrize("method", EXPECTED)
@pytest.mark.parametrize("home", ["base", "adapter"])
@pytest.mark.parametrize("trained", [True, False])
def test_an_adapter_that_brings_tokens_widens_the_vocabulary(tmp_path, method, home, trained):
    base = save_base(tmp_path / "base")
    own = ("<think>", "<stop>")
    a = save_adapter(tmp_path / "a", 1, own, trained)
    b = save_adapter(tmp_path / "b", 2)
    given = {"density": 0.4} if method == "ties" else {}
    names = {"a": 0.6, "b": 0.2}
    order = names if home == "adapter" else reversed(names)
    listed = [entry(f"{base}+{tmp_path / name}", weight=names[name], **given) for name in order]
    recipe = {"merge_method": method, "models": listed, "tokenizer_source": "union"}
    if method != "linear":
        recipe["base_model"] = str(base)
    out = merge(recipe, tmp_path / "out")
    merged = AutoTokenizer.from_pretrained(out)
    assert merged.get_vocab() == {word: n for n, word in enumerate((*WORDS, *own))}
    assert merged("t3 <stop> t5").input_ids == [4, 41, 6]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 42
    before, made = tensors(base), tensors(out)
    for key, value in made.items():
        rows = slice(0, len(before[key]))
        old, ours, theirs = (state[key][rows].double() for state in (before, a, b))
        if "embed_tokens" in key or "lm_head" in key:
            # Who lacks a token takes its row from the only one that has it: so it stays as it is.
            torch.testing.assert_close(value[40:], a[key][40:], rtol=1e-5, atol=1e-6)
            old, ours, theirs = (torch.cat([part, a[key][40:].double()]) for part in (old, ours[:40], theirs))
        torch.testing.assert_close(value.double(), EXPECTED[method](old, ours, theirs), rtol=1e-5, atol=1e-6)
    network = loads(out, "llama")
    assert network.get_input_embeddings().weight.shape[0] == network.config.vocab_size == 42
