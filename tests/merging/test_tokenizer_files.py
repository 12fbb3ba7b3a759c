"""Tokenizer files and chat templates of merged models: loaded again, they give the ids of the rows."""

import json

import pytest
from small_tokenizers import TEXT, bpe, model, three_models, unigram, word_piece, wrapped
from tokenizers import processors
from transformers import AutoTokenizer

from mergescope.errors import CheckpointError, MergescopeError
from mergescope.merging.chat_templates import BUILT_IN, choose_chat_template
from mergescope.merging.merge import merge
from mergescope.merging.tokenizers import output_vocabulary, read_vocabulary, write_tokenizer


@pytest.fixture
def three(tmp_path):
    return three_models(tmp_path)


def written(tmp_path, alignment, models, **options):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    (out / "vocab.txt").write_text("left behind")
    write_tokenizer(out, alignment, models=models, **options)
    return out


@pytest.mark.parametrize("source", ["union", "base", "b", "c"])
def test_the_written_tokenizer_gives_the_ids_of_the_rows(three, tmp_path, source):
    alignment = output_vocabulary(source, three, "a")
    out = written(tmp_path, alignment, three)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == alignment.tokens and not (out / "vocab.txt").exists()
    before = AutoTokenizer.from_pretrained(three[alignment.home].directory)
    text = "the quick merging turtle averages weights"
    assert tokenizer.encode(text) == before.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == before.decode(before.encode(text))
    assert tokenizer.eos_token_id == alignment.tokens["</s>"]
    if source == "union":
        assert alignment.tokens["<extra>"] in tokenizer.encode("fox<extra>dog")
        assert set(map(str, tokenizer.added_tokens_decoder.values())) >= {"<extra>", "<b only>", "</s>"}


def test_a_union_of_added_special_tokens_keeps_that_they_are_special(tmp_path):
    tokenizer = bpe(TEXT["a"])
    a = model(tmp_path, "a", wrapped(tokenizer, added=["<mine>"]))
    chat = wrapped(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    b = model(tmp_path, "b", chat)
    alignment = output_vocabulary("union", {"a": a, "b": b}, "a")
    out = AutoTokenizer.from_pretrained(written(tmp_path, alignment, {"a": a, "b": b}))
    ids = out.encode("<|im_start|>the fox<mine><|im_end|>")
    assert ids[0] == alignment.tokens["<|im_start|>"] == 71 and ids[-1] == 72 and ids[-2] == 70
    assert out.decode(ids, skip_special_tokens=True).replace(" ", "") == "thefox<mine>"


def test_a_union_of_word_pieces(tmp_path):
    pieces = {name: model(tmp_path, name, word_piece(text)) for name, text in TEXT.items()}
    alignment = output_vocabulary("union", pieces, "a")
    out = AutoTokenizer.from_pretrained(written(tmp_path, alignment, pieces))
    assert out.get_vocab() == alignment.tokens and len(out) > 60
    ids = out("the turtle walks")["input_ids"]
    assert ids[0] == alignment.tokens["[CLS]"] and "[UNK]" not in out.convert_ids_to_tokens(ids)


def test_a_union_of_unigrams(tmp_path):
    pieces = {
        name: model(tmp_path, name, wrapped(unigram(text), added=[f"<{name}>"]))
        for name, text in TEXT.items()
    }
    alignment = output_vocabulary("union", pieces, "a")
    out = AutoTokenizer.from_pretrained(written(tmp_path, alignment, pieces))
    assert out.get_vocab() == alignment.tokens
    assert alignment.tokens["<b>"] in out.encode("the fox<b>")
    text = TEXT["a"][0]
    assert out.encode(text) == AutoTokenizer.from_pretrained(pieces["a"].directory).encode(text)


def test_a_post_processor_of_the_base_is_kept(tmp_path):
    tokenizer = bpe(TEXT["a"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    two = {
        "a": model(tmp_path, "a", wrapped(tokenizer)),
        "b": model(tmp_path, "b", wrapped(bpe(TEXT["b"]), added=["<x>"])),
    }
    out = AutoTokenizer.from_pretrained(written(tmp_path, output_vocabulary("union", two, "a"), two))
    ids = out.encode("the fox")
    assert (ids[0], ids[-1]) == (1, 2)


def test_a_tokenizer_that_comes_out_otherwise_is_an_error(three, tmp_path):
    alignment = output_vocabulary("base", three, "a")
    alignment.tokens["<s>"], alignment.tokens["</s>"] = 2, 1
    alignment.vocabularies["a"].ids.update(alignment.tokens)
    with pytest.raises(
        CheckpointError, match=r"gives 2 token\(s\) other ids than their rows: '</s>' \(row 1, id 2\)"
    ):
        written(tmp_path, alignment, three)


@pytest.mark.parametrize("text", ["{", "[]"])
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("generation_config.json", {"tokenizer_source": "union"}),
        ("tokenizer_config.json", {"chat_template": "chatml"}),
    ],
)
def test_damaged_settings_are_named_and_nothing_is_left(tmp_path, name, asked, text):
    tokenizer = wrapped(bpe(TEXT["a"]))
    a, b = (model(tmp_path, each, tokenizer).directory for each in "ab")
    (a / name).write_text(text)
    models = [{"model": str(path), "parameters": {"weight": 1}} for path in (a, b)]
    why = "is not valid JSON" if text == "{" else "holds no settings but a list"
    with pytest.raises(CheckpointError, match=f"{a / name} {why}"):
        merge({"merge_method": "linear", "models": models, **asked}, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_configurations_follow_the_vocabulary(three):
    alignment = output_vocabulary("b", three, "a")
    a, b = read_vocabulary(three["a"]).ids, read_vocabulary(three["b"]).ids
    token = next(token for token in a if token in b and a[token] != b[token])
    config = {"vocab_size": 80, "eos_token_id": [a[token], 2], "pad_token_id": None, "hidden_size": a[token]}
    out = alignment.config({**config, "text_config": {"vocab_size": 80, "bos_token_id": a[token]}}, "a")
    assert out == {
        "vocab_size": 72, "eos_token_id": [b[token], 2], "pad_token_id": None, "hidden_size": a[token],
        "text_config": {"vocab_size": 72, "bos_token_id": b[token]},
    }  # fmt: skip


# -- chat templates ----------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n"
    "### Response:\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_templates_render_the_formats_they_are_named_for(three, tmp_path, name):
    out = written(tmp_path, output_vocabulary("base", three, "a"), three, base="a", chat_template=name)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == RENDERED[name]


def test_auto_takes_the_most_common_template_and_text_is_taken_as_it_is(tmp_path):
    tokenizer = bpe(TEXT["a"])
    texts = {"a": None, "b": "{{ messages }}B", "c": "{{ messages }}C", "d": "{{ messages }}C"}
    four = {
        name: model(tmp_path, name, wrapped(tokenizer, **({"chat_template": text} if text else {})))
        for name, text in texts.items()
    }
    path = four["b"].directory / "tokenizer_config.json"  # the older place
    (four["b"].directory / "chat_template.jinja").unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": texts["b"]}))
    alignment = output_vocabulary("b", four, "a")

    def result(wanted, chosen):
        out = written(tmp_path, alignment, chosen, base="a", chat_template=wanted)
        return AutoTokenizer.from_pretrained(out).chat_template

    assert result("auto", four) == texts["c"]
    assert result("auto", {name: four[name] for name in "abc"}) == texts["b"]
    assert result("{{ bos_token }}X", four) == "{{ bos_token }}X"
    assert result("auto", {"a": four["a"]}) == texts["b"]  # none to choose: the tokenizer's own stays
    write_tokenizer(tmp_path / "out", None, models=four, base="a", chat_template="chatml")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == BUILT_IN["chatml"]


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ("chatlm", "Did you mean: chatml"),
        ("{% for x in y %}\n{{ x }", "no valid Jinja: line 2"),
        ("", "neither auto"),
    ],
)
def test_a_template_that_is_none_is_refused(wanted, named):
    with pytest.raises(MergescopeError, match=named):
        choose_chat_template(wanted, [])
