"""Vocabularies of merges: real small tokenizers, embeddings compared token by token."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

import mergescope as ms
from mergescope.errors import CheckpointError, MergescopeError
from mergescope.merging.chat_templates import BUILT_IN, choose_chat_template
from mergescope.merging.plan import CheckpointRows
from mergescope.merging.tokenizers import (
    AlignedRows,
    embedding_keys,
    output_vocabulary,
    read_vocabulary,
    vocabulary_problems,
    write_tokenizer,
)

TEXT = {
    "a": ["the quick brown fox jumps over the lazy dog", "merging models averages their weights"] * 3,
    "b": ["a slow green turtle walks under the bridge", "merging turtles averages their shells"] * 3,
}
SPECIAL = ["<unk>", "<s>", "</s>"]
EMBED, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"


def bpe(text, size=70, special=SPECIAL):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    return tokenizer


def unigram(text, size=50):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def wrapped(tokenizer, added=(), **options):
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )
    fast.add_tokens(list(added))
    return fast


def word_piece(text, size=60):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special)
    tokenizer.train_from_iterator(text, trainer)
    return BertTokenizerFast(vocab=tokenizer.get_vocab())


def permuted(tokenizer, seed=0):
    """The same tokens with other ids, beyond the special ones."""
    content = json.loads(tokenizer.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    order = torch.randperm(len(tokens) - 3, generator=torch.Generator().manual_seed(seed)).tolist()
    moved = tokens[:3] + [tokens[3:][i] for i in order]
    content["model"]["vocab"] = {token: number for number, token in enumerate(moved)}
    return Tokenizer.from_str(json.dumps(content))


def model(folder, name, tokenizer, rows=None, width=3, head=True, seed=0, config=None):
    """A checkpoint whose rows are random; rows beyond the tokenizer are padding."""
    path = folder / name
    tokenizer.save_pretrained(path)
    rows = rows or len(tokenizer)
    generator = torch.Generator().manual_seed(hash_of(name) + seed)
    state = {EMBED: torch.randn(rows, width, generator=generator), "norm.weight": torch.ones(width)}
    if head:
        state |= {
            HEAD: torch.randn(rows, width, generator=generator),
            BIAS: torch.randn(rows, generator=generator),
        }
    save_file(state, path / "model.safetensors")
    settings = {"vocab_size": rows, "hidden_size": width, "tie_word_embeddings": not head} | (config or {})
    (path / "config.json").write_text(json.dumps(settings))
    return ms.Checkpoint(path)


def hash_of(name):
    return sum(map(ord, name))


def aligned(alignment, checkpoint, key, block=7):
    found = CheckpointRows(checkpoint, key, *checkpoint.spec[key])
    rows = alignment.rows(checkpoint, key, found)
    assert rows.shape[0] == alignment.size
    parts = [rows.rows(i, min(i + block, rows.shape[0])) for i in range(0, rows.shape[0], block)]
    whole = torch.cat(parts)
    assert torch.equal(whole, rows.rows(0, rows.shape[0])) and whole.shape == rows.shape
    return whole


def reference(token, checkpoint, key, have, base):
    """mergekit's rule, written naively for one token."""
    if token in have[checkpoint]:
        return checkpoint.tensor(key)[have[checkpoint][token]]
    if base is not None and token in have[base]:
        return base.tensor(key)[have[base][token]]
    owners = [other.tensor(key)[ids[token]] for other, ids in have.items() if token in ids]
    return torch.stack(owners).double().mean(0).float()


@pytest.fixture
def three(tmp_path):
    a = bpe(TEXT["a"])
    return {
        "a": model(tmp_path, "a", wrapped(a), rows=80),
        "b": model(tmp_path, "b", wrapped(permuted(a), added=["<extra>", "<b only>"])),
        "c": model(tmp_path, "c", wrapped(bpe(TEXT["b"]), added=["<extra>"]), rows=96),
    }


@pytest.mark.parametrize("base", [None, "a", "c"])
@pytest.mark.parametrize("source", ["union", "base", "b"])
@pytest.mark.parametrize("key", [EMBED, HEAD, BIAS])
def test_rows_follow_their_tokens(three, source, base, key):
    alignment = output_vocabulary(source, three, base)
    root = three[base] if base else None
    have = {checkpoint: read_vocabulary(checkpoint).ids for checkpoint in three.values()}
    for checkpoint in three.values():
        got = aligned(alignment, checkpoint, key)
        assert got.dtype == checkpoint.spec[key].dtype
        for token, number in alignment.tokens.items():
            want = reference(token, checkpoint, key, have, root)
            torch.testing.assert_close(got[number], want)


def test_a_union_keeps_the_ids_of_the_base_and_has_every_token(three):
    alignment = output_vocabulary({"source": "union"}, three, "a")
    own = read_vocabulary(three["a"]).ids
    assert {token: alignment.tokens[token] for token in own} == own
    every = set().union(*(read_vocabulary(model).ids for model in three.values()))
    assert set(alignment.tokens) == every and len(set(alignment.tokens.values())) == len(every)
    assert alignment.size == max(80, len(every))


def test_padding_rows_of_the_base_are_kept(three):
    alignment = output_vocabulary("base", three, "a")
    assert alignment.size == 80 and len(alignment.tokens) == 70
    assert torch.equal(aligned(alignment, three["a"], EMBED)[70:], three["a"].tensor(EMBED)[70:])
    # Rows 70 and 71 are tokens in b, which is no reason to mix them with padding.
    assert torch.equal(aligned(alignment, three["b"], EMBED)[70:72], three["a"].tensor(EMBED)[70:72])


@pytest.mark.parametrize(("multiple", "size"), [(None, 80), (64, 128), (7, 84)])
def test_the_size_is_padded_to_a_multiple_with_zeros(three, multiple, size):
    alignment = output_vocabulary({"source": "base", "pad_to_multiple_of": multiple}, {"a": three["a"]}, "a")
    assert alignment.size == size
    assert not aligned(alignment, three["a"], HEAD)[80:].any()


def test_a_matrix_that_is_no_vocabulary_and_one_in_order_pass_untouched(three):
    alignment = output_vocabulary("base", three, "a")
    for key in ("norm.weight", EMBED):
        found = CheckpointRows(three["a"], key, *three["a"].spec[key])
        assert alignment.rows(three["a"], key, found) is found
    found = CheckpointRows(three["b"], EMBED, *three["b"].spec[EMBED])
    moved = alignment.rows(three["b"], EMBED, found)
    assert isinstance(moved, AlignedRows) and moved.source is found


def test_a_tied_head_is_filled_from_the_embedding(tmp_path):
    tied = model(tmp_path, "tied", wrapped(bpe(TEXT["a"])), head=False)
    free = model(tmp_path, "free", wrapped(bpe(TEXT["b"])))
    alignment = output_vocabulary("union", {"tied": tied, "free": free}, "tied")
    own = read_vocabulary(tied).ids
    token = next(token for token in own if token not in read_vocabulary(free).ids)
    got = aligned(alignment, free, HEAD)[alignment.tokens[token]]
    assert torch.equal(got, tied.tensor(EMBED)[own[token]])
    assert torch.equal(aligned(alignment, free, BIAS)[alignment.tokens[token]], torch.tensor(0.0))


def test_no_whole_tensor_is_read(three, monkeypatch):
    alignment = output_vocabulary("base", three, "c")
    key, checkpoint = EMBED, three["a"]
    read = []
    original = ms.Checkpoint.rows

    def counted(self, name, start, stop):
        read.append(stop - start)
        return original(self, name, start, stop)

    monkeypatch.setattr(ms.Checkpoint, "rows", counted)
    monkeypatch.setattr(ms.Checkpoint, "tensor", lambda *_: pytest.fail("read a whole tensor"))
    rows = alignment.rows(checkpoint, key, CheckpointRows(checkpoint, key, *checkpoint.spec[key]))
    monkeypatch.setattr("mergescope.merging.aligned_rows._GAP", 1)
    rows.rows(3, 5)
    assert 0 < sum(read) <= 4


# -- overrides ---------------------------------------------------------------------------------


def overridden(three, token, setting, base="a", key=EMBED):
    alignment = output_vocabulary({"source": "union", "tokens": {token: setting}}, three, base)
    place = alignment.tokens[token]
    return {name: aligned(alignment, checkpoint, key)[place] for name, checkpoint in three.items()}


def row(checkpoint, token, key=EMBED):
    return checkpoint.tensor(key)[read_vocabulary(checkpoint).ids[token]]


@pytest.mark.parametrize("force", [False, True])
def test_a_token_taken_from_a_model(three, force):
    got = overridden(three, "<extra>", {"source": "c", "force": force})
    assert torch.equal(got["a"], row(three["c"], "<extra>")) and torch.equal(got["c"], got["a"])
    assert torch.equal(got["b"], row(three["c" if force else "b"], "<extra>"))


@pytest.mark.parametrize("described", [{"token": "</s>"}, {"token_id": 2}])
def test_a_token_taken_from_another_token(three, described):
    got = overridden(three, "<extra>", {"source": {"kind": "model_token", "model": "b"} | described})
    assert torch.equal(got["a"], row(three["b"], "</s>")) and torch.equal(
        got["b"], row(three["b"], "<extra>")
    )


def test_a_token_set_to_zero_and_one_forced_to_the_rule(three):
    zero = overridden(three, "<extra>", {"source": {"kind": "zero"}, "force": True})
    assert not any(value.any() for value in zero.values())
    forced = overridden(three, "<s>", {"force": True})
    assert all(torch.equal(value, row(three["a"], "<s>")) for value in forced.values())
    mean = overridden(three, "<s>", {"force": True}, base=None)
    want = sum(row(checkpoint, "<s>").double() for checkpoint in three.values()) / 3
    assert all(torch.equal(value, want.float()) for value in mean.values())


@pytest.mark.parametrize(
    ("token", "setting", "named"),
    [
        ("<extr>", {"source": "a"}, "'<extr>' is not in the output vocabulary. Did you mean: <extra>"),
        ("<extra>", {"source": "d"}, "'d' is not one of the models: a, b, c"),
        ("<extra>", {"source": "a"}, "a has no token '<extra>'"),
        ("<extra>", {"source": {"kind": "model_token", "model": "a"}}, "either token or token_id"),
        (
            "<extra>",
            {"source": {"kind": "model_token", "model": "a", "token_id": 80}},
            "a has 80 embedding rows",
        ),
    ],
)
def test_an_override_that_fits_nothing_is_named(three, token, setting, named):
    with pytest.raises(MergescopeError) as caught:
        output_vocabulary({"source": "union", "tokens": {token: setting}}, three, "a")
    assert named in str(caught.value)


def test_an_unknown_source_and_a_model_without_tokenizer_are_named(three, tmp_path):
    with pytest.raises(MergescopeError, match=r"'unoin' is not one of the models: a, b, c"):
        output_vocabulary("unoin", three, "a")
    bare = ms.Checkpoint({EMBED: torch.ones(4, 3)}, name="bare")
    with pytest.raises(CheckpointError, match=r"bare \(in memory\) has no tokenizer files"):
        output_vocabulary("union", three | {"bare": bare}, "a")
    (three["b"].directory / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer of b in .* can't be loaded"):
        output_vocabulary("union", three, "a")


def test_models_of_different_widths_are_refused(tmp_path):
    slim = model(tmp_path, "slim", wrapped(bpe(TEXT["a"])))
    wide = model(tmp_path, "wide", wrapped(bpe(TEXT["b"])), width=5)
    alignment = output_vocabulary("union", {"slim": slim, "wide": wide}, "slim")
    with pytest.raises(MergescopeError, match=r"rows of \[5\] in wide, but .* \[3\] in slim"):
        aligned(alignment, slim, EMBED)


# -- which tensors -----------------------------------------------------------------------------


def test_embedding_keys_by_name_and_size():
    def checkpoint(config=None, **shapes):
        theta = ms.Checkpoint({key.replace("__", "."): torch.zeros(shape) for key, shape in shapes.items()})
        return type("Model", (), {"spec": theta.spec, "config": config, "name": "m"})

    bert = checkpoint(
        {"vocab_size": 11, "hidden_size": 4, "max_position_embeddings": 12},
        bert__embeddings__word_embeddings__weight=(11, 4),
        bert__embeddings__position_embeddings__weight=(12, 4),
        cls__predictions__bias=(11,),
        cls__predictions__decoder__weight=(11, 4),
        cls__predictions__decoder__bias=(11,),
        bert__pooler__dense__weight=(4, 4),
        mystery__weight=(11, 4),
    )
    assert embedding_keys(bert) == {
        "bert.embeddings.word_embeddings.weight": "input",
        "cls.predictions.bias": "bias",
        "cls.predictions.decoder.weight": "head",
        "cls.predictions.decoder.bias": "bias",
    }
    nested = checkpoint(
        {"text_config": {"vocab_size": 99, "hidden_size": 4}},
        language__embed_tokens__weight=(99, 4),
        tower__embed_tokens__weight=(7, 4),
        odd__table=(99, 4),
    )
    assert embedding_keys(nested) == {"language.embed_tokens.weight": "input", "odd.table": "other"}
    assert embedding_keys(checkpoint(None, conv__weight=(3, 3))) == {}


# -- what is wrong -----------------------------------------------------------------------------


def test_permuted_vocabularies_of_one_size_are_found(tmp_path):
    tokenizer = bpe(TEXT["a"])
    a, b = (model(tmp_path, n, wrapped(t)) for n, t in (("a", tokenizer), ("b", permuted(tokenizer))))
    same = model(tmp_path, "same", wrapped(tokenizer), seed=1)
    assert vocabulary_problems([a, same]) == []
    (problem,) = vocabulary_problems([a, same, b])
    assert "b and a have the same number of tokens" in problem and "Rows of different tokens" in problem
    moved = sum(read_vocabulary(a).ids[t] != i for t, i in read_vocabulary(b).ids.items())
    assert f"{moved} token(s) with other ids" in problem and "source: union" in problem


def test_other_sizes_added_tokens_and_missing_tokenizers_are_found(tmp_path):
    tokenizer = bpe(TEXT["a"])
    a = model(tmp_path, "a", wrapped(tokenizer))
    b = model(tmp_path, "b", wrapped(tokenizer, added=["<x>"]))
    small = model(tmp_path, "small", wrapped(tokenizer), rows=60)
    found = "\n".join(vocabulary_problems([a, b, small]))
    assert "b has 71 embedding rows, a has 70" in found
    assert "b has 1 token(s) that a lacks, 1 of them added tokens: '<x>'" in found
    assert "small: its tokenizer has ids up to 69, but its embedding has 60 rows" in found
    for file in b.directory.glob("tokenizer*"):
        file.unlink()
    assert any("b has no tokenizer files" in problem for problem in vocabulary_problems([a, b]))
    bare = [ms.Checkpoint({"w": torch.ones(2)}), ms.Checkpoint({"w": torch.zeros(2)})]
    assert vocabulary_problems(bare) == [] == vocabulary_problems([])


# -- files -------------------------------------------------------------------------------------


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
