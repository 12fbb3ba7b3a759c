"""Vocabularies of merges: real small tokenizers, embeddings compared token by token."""

import json

import pytest
import torch
from small_tokenizers import BIAS, EMBED, HEAD, TEXT, bpe, model, permuted, three_models, wrapped

import mergescope as ms
from mergescope.errors import CheckpointError, MergescopeError, MismatchError
from mergescope.merging.plan import CheckpointRows, make_plan
from mergescope.merging.recipe import read_recipe
from mergescope.merging.tokenizers import (
    AlignedRows,
    embedding_keys,
    output_vocabulary,
    read_vocabulary,
    vocabulary_problems,
)


@pytest.fixture
def three(tmp_path):
    return three_models(tmp_path)


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


def test_a_vocabulary_size_that_is_not_the_embeddings_is_named(three):
    (three["b"].directory / "config.json").write_text(json.dumps({"vocab_size": 60}))
    with pytest.raises(CheckpointError, match=rf"{EMBED} of b has 72 rows, but its vocab_size is 60"):
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
    (b.directory / "special_tokens_map.json").write_text("{}")  # transformers 4 writes it, 5 does not
    assert any("b has no tokenizer files" in problem for problem in vocabulary_problems([a, b]))
    bare = [ms.Checkpoint({"w": torch.ones(2)}), ms.Checkpoint({"w": torch.zeros(2)})]
    assert vocabulary_problems(bare) == [] == vocabulary_problems([])


def test_two_models_that_put_other_tokens_into_one_row_are_found(tmp_path):
    tokenizer = bpe(TEXT["a"])
    base = model(tmp_path, "base", wrapped(tokenizer), rows=80)
    a = model(tmp_path, "a", wrapped(tokenizer, added=["<tool>"]), rows=80)
    b = model(tmp_path, "b", wrapped(tokenizer, added=["<seen>"]), rows=80)
    c = model(tmp_path, "c", wrapped(tokenizer, added=["<seen>", "<tool>"]), rows=80)
    assert not any("Rows of different" in problem for problem in vocabulary_problems([base, a, a]))
    for other, said in (
        (b, "1 row has another token in b than in a: row 70 is '<seen>' and '<tool>'"),
        (c, "1 token has another id in c than in a: '<tool>' is 71 and 70"),
    ):
        found = [
            problem for problem in vocabulary_problems([base, a, other]) if "Rows of different" in problem
        ]
        assert len(found) == 1 and found[0].startswith(said)
        paths = [str(it.directory) for it in (base, a, other)]
        recipe = {
            "merge_method": "task_arithmetic", "base_model": paths[0],
            "models": [{"model": path, "parameters": {"weight": 0.5}} for path in paths[1:]],
        }  # fmt: skip
        with pytest.raises(MismatchError, match="Rows of different tokens would be averaged"):
            make_plan(read_recipe(recipe))
        assert make_plan(read_recipe(recipe | {"tokenizer_source": "union"})).alignment.size == 80


def test_embedding_and_head_of_different_tokenizers_are_not_put_together(tmp_path):
    tokenizer = bpe(TEXT["a"])
    a, b = (model(tmp_path, n, wrapped(t)) for n, t in (("a", tokenizer), ("b", permuted(tokenizer))))

    def recipe(head):
        parts = {"model": a, "norm": a, "lm_head": head}
        modules = {name: {"models": [{"model": str(it.directory)}]} for name, it in parts.items()}
        return read_recipe({"merge_method": "passthrough", "modules": modules})

    assert make_plan(recipe(a)).jobs
    with pytest.raises(MismatchError, match="would be of different vocabularies: set tokenizer_source"):
        make_plan(recipe(b))
