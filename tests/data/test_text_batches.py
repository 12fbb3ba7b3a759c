"""Texts as batches: masks, prompts, padding, what is left out, and what the models make of them."""

import datasets
import pytest
import torch
from tiny import ENTRIES, save_config, save_tokenizer

import mergescope as ms
from mergescope.data import encode, load_processor
from mergescope.data.heads import head_of
from mergescope.data.tokens import IGNORED
from mergescope.errors import DataError
from mergescope.models.features import TOKEN_MASK, Features

TEXTS = ["the film was good", "bad", "so boring and it was a bad bad film", "the film", "it was fun and good"]
CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "vocab_size": len(ENTRIES)}
CAUSAL = {"architectures": ["GPT2LMHeadModel"], "n_positions": 32, "vocab_size": 300}


def table(split=None, **columns):
    named = None if split is None else datasets.NamedSplit(split)
    return datasets.Dataset.from_dict({"text": TEXTS} | columns, split=named)


@pytest.fixture
def words(tmp_path):
    """An encoder that classifies, with one token a word."""
    return load_processor(save_tokenizer(save_config(tmp_path / "words", **CLASSIFIER)), "encoder")


@pytest.fixture
def bytes_(tmp_path):
    """A causal language model, with byte-level BPE and no padding token."""
    return load_processor(save_tokenizer(save_config(tmp_path / "bytes", **CAUSAL), "bytes"), "decoder")


def number(text):
    return [ENTRIES.index(word) for word in text.split()]


def test_batches_keep_the_order_and_pad_to_their_longest(words):
    data = encode(table(label=[0, 1, 0, 1, 1]), words, batch_size=2)
    first, second, third = data
    assert (len(data), data.samples, data.labels.tolist()) == (3, 5, [0, 1, 0, 1, 1])
    assert first["input_ids"].tolist() == [
        number("[CLS] the film was good [SEP]"),
        number("[CLS] bad [SEP] [PAD] [PAD] [PAD]"),
    ]
    assert first["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert second["input_ids"].shape == (2, 11) and third["input_ids"].shape == (1, 7)
    assert [batch["labels"].tolist() for batch in data] == [[0, 1], [0, 1], [1]]
    assert set(first) == {"input_ids", "attention_mask", "labels"}


def test_a_pass_gives_the_same_tensors_whatever_the_budget_and_the_fingerprint_whatever_the_batch(words):
    data = table(label=[0, 1, 0, 1, 1])
    kept = encode(data, words, batch_size=2)
    for budget in (0, 200, 400):
        again = encode(data, words, batch_size=2, budget=budget)
        for _ in range(2):
            for one, two in zip(kept, again, strict=True):
                assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        assert again.fingerprint == kept.fingerprint
    assert encode(data, words, batch_size=3).fingerprint == kept.fingerprint
    others = [
        (data, {"max_length": 5}),
        (table(label=[0, 1, 0, 1, 0]), {}),
        (data.select([1, 0, 2, 3, 4]), {}),
        (data, {"template": "it : {text}"}),
    ]
    assert kept.fingerprint not in {encode(rows, words, **options).fingerprint for rows, options in others}


def test_only_batches_within_the_budget_are_kept(words):
    data = table(label=[0, 1, 0, 1, 1])
    sizes = [sum(value.nbytes for value in batch.values()) for batch in encode(data, words, batch_size=2)]
    for count in range(4):
        assert len(encode(data, words, batch_size=2, budget=sum(sizes[:count]))._kept) == count


def test_data_that_change_between_passes_are_refused(words):
    data = encode(table(label=[0, 1, 0, 1, 1]), words, batch_size=2, budget=0)
    read, data._read = data._read, lambda rows: read([0 for _ in rows])
    with pytest.raises(DataError, match="rows 0 to 1 of the data differ from the pass before"):
        list(data)


def test_empty_texts_are_left_out_and_told(words):
    texts = ["good", None, "  ", "bad", "fun"]
    data = encode(table(text=texts, label=[0, 1, 1, 0, 1]), words, batch_size=2)
    assert data.rows.tolist() == [0, 3, 4] and data.labels.tolist() == [0, 0, 1]
    assert [len(batch["labels"]) for batch in data] == [2, 1]
    assert data.skipped == {"empty text": 2} and "left out 2 of 5 rows: empty text (2)" in data.notes
    with pytest.raises(DataError, match=r"Not one of 2 rows is left to measure on \(empty text \(2\)\)"):
        encode(table(text=["", None]), words)


def test_rows_that_are_left_out_at_the_end_lose_no_batch(words):
    data = encode(table(text=["good", "bad", "fun", "", ""], label=[0, 1, 0, 1, 0]), words, batch_size=2)
    assert [batch["labels"].tolist() for batch in data] == [[0, 1], [0]] and data.samples == 3


@pytest.mark.parametrize(("length", "cut"), [(None, 0), (11, 0), (10, 1), (6, 2), (3, 4)])
def test_texts_that_are_cut_are_counted(words, length, cut):
    data = encode(table(), words, max_length=length)
    assert data.truncated == cut
    assert (f"cut off {cut} of 5 texts" in data.notes) == bool(cut)
    assert next(iter(data))["input_ids"].shape[1] == min(length or 11, 11)


def test_the_model_s_positions_and_the_tokenizer_s_length_limit_texts(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "m", max_position_embeddings=8), model_max_length=5)
    processor = load_processor(folder, "encoder")
    assert next(iter(encode(table(), processor)))["input_ids"].shape == (5, 5)
    data = encode(table(), processor, max_length=100)
    assert next(iter(data))["input_ids"].shape == (5, 8)
    assert "texts are cut at 8 tokens, not 100: the model has no more positions" in data.notes


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 514}, 512),  # RoBERTa counts from 2
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"n_positions": 512, "relative_attention_num_buckets": 32}, None),  # T5
        ({"max_position_embeddings": 514, "relative_attention_num_buckets": 32}, 512),  # MPNet
    ],
)
def test_positions_are_read_from_the_configuration(tmp_path, config, positions):
    assert (
        load_processor(save_tokenizer(save_config(tmp_path / "m", **config)), "encoder").positions
        == positions
    )


def test_a_tokenizer_file_that_pads_and_cuts_by_itself_does_not(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "m"))
    processor = load_processor(folder, "encoder")
    processor.tokenizer.backend_tokenizer.enable_padding(length=20)
    processor.tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    batch = next(iter(encode(table(), load_processor(folder, "encoder"))))
    assert batch["input_ids"].shape == (5, 11)
    assert batch["attention_mask"].sum(1).tolist() == [6, 3, 11, 4, 7]


def test_pairs_have_segments_and_single_texts_do_not(tmp_path):
    names = ["input_ids", "token_type_ids", "attention_mask"]
    folder = save_tokenizer(save_config(tmp_path / "m", **CLASSIFIER), model_input_names=names)
    words = load_processor(folder, "encoder")
    data = datasets.Dataset.from_dict({"premise": ["a film", "it"], "hypothesis": ["it is good", ""]})
    encoded = encode(data, words)
    (batch,) = encoded
    assert batch["input_ids"].tolist() == [number("[CLS] a film [SEP] it is good [SEP]")]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert encoded.skipped == {"empty text": 1}
    assert "token_type_ids" not in next(iter(encode(data, words, text_column="premise")))


def test_a_pair_for_a_causal_model_is_refused(bytes_):
    data = datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"]})
    with pytest.raises(DataError, match=r"--template '\{premise\} \{hypothesis\}'"):
        encode(data, bytes_)


def test_a_model_without_a_padding_token_pads_with_its_end_token_behind_the_mask(bytes_):
    data = encode(table(), bytes_)
    end = bytes_.tokenizer.eos_token_id
    (batch,) = data
    padding = batch["attention_mask"] == 0
    assert padding.any() and (batch["input_ids"][padding] == end).all() and not padding[:, 0].any()
    assert "no padding token: its end token '<|endoftext|>' pads" in data.notes[0]
    assert "token_type_ids" not in batch


@pytest.mark.parametrize(("kind", "left"), [("encoder", True), ("decoder", False)])
def test_only_a_causal_model_s_padding_is_on_the_right_whatever_the_tokenizer_says(tmp_path, kind, left):
    folder = save_tokenizer(save_config(tmp_path / "m"), padding_side="left")
    (batch,) = encode(table(text=["the film", "bad", "it", "so", "fun"]), load_processor(folder, kind))
    assert batch["attention_mask"][1].tolist() == ([0, 1, 1, 1] if left else [1, 1, 1, 0])
    words = batch["input_ids"][1][batch["attention_mask"][1].bool()]
    assert words.tolist() == number("[CLS] bad [SEP]")


def test_next_tokens_are_the_labels_of_a_causal_model(bytes_):
    data = encode(table(label=[0, 1, 0, 1, 1]), bytes_)
    (batch,) = data
    assert torch.equal(batch["labels"] == IGNORED, batch["attention_mask"] == 0)
    assert torch.equal(
        batch["labels"][batch["labels"] >= 0], batch["input_ids"][batch["attention_mask"] == 1]
    )
    assert data.labels is None
    told = encode(table(label=[0, 1, 0, 1, 1]), bytes_, label_column="label").notes
    assert "the labels in 'label' are not used: the model's outputs are no classes" in told


def test_a_text_of_one_token_has_no_next_one(bytes_):
    data = encode(table(text=["the film", "a", "b", "good", "bad"]), bytes_)
    assert data.skipped["a single token, so that there is no next one"] >= 2
    assert (torch.cat([batch["attention_mask"].sum(1) for batch in data]) > 1).all()


@pytest.mark.parametrize("kind", ["words", "bytes"])
@pytest.mark.parametrize("prompt", ["question", "question : {question} answer :", "{question}\n"])
def test_the_tokens_of_a_prompt_do_not_count(words, bytes_, kind, prompt):
    processor = words if kind == "words" else bytes_
    columns = {"question": ["is it good", "is the film"], "text": ["yes", "so boring"]}
    data = encode(datasets.Dataset.from_dict(columns), processor, prompt=prompt)
    assert prompt != "question" or data.samples == 2
    for row, text in enumerate(columns["text"]):
        (batch,) = data
        counted = batch[TOKEN_MASK][row].bool()
        said = processor.tokenizer.decode(batch["input_ids"][row][counted], skip_special_tokens=True)
        left = processor.tokenizer.decode(batch["input_ids"][row][~counted], skip_special_tokens=True)
        assert said.strip() == text and columns["question"][row] in left
        assert not (counted & (batch["attention_mask"][row] == 0)).any()
        if kind == "bytes":
            assert torch.equal(batch["labels"][row] >= 0, counted)


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_rows_whose_prompt_fills_the_text_s_place_or_is_empty_are_left_out(words, bytes_, kind):
    data = datasets.Dataset.from_dict({
        "question": ["the film was " * 20, "is it", None, "is it"],
        "text": ["yes", "no", "yes", None],
    })
    encoded = encode(data, words if kind == "words" else bytes_, prompt="question", max_length=32)
    assert encoded.rows.tolist() == [1]
    assert encoded.skipped == {
        "the prompt leaves no room for the text": 1,
        "empty prompt": 1,
        "empty text": 1,
    }


def test_texts_are_cut_at_their_end_whatever_the_tokenizer_says(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "m"), truncation_side="left")
    (batch,) = encode(table(text=["the film was good"] * 5), load_processor(folder, "encoder"), max_length=4)
    assert batch["input_ids"][0].tolist() == number("[CLS] the film [SEP]")


def test_a_length_without_room_for_a_word_is_refused(words):
    for wrong in (-3, 0, 1, 2):
        with pytest.raises(
            DataError, match=rf"max_length={wrong} leaves no room .* 2 special token\(s\).* 3\."
        ):
            encode(table(), words, max_length=wrong)
    with pytest.raises(DataError, match=r"3 special token\(s\): give at least 5"):
        encode(table(other=TEXTS), words, text_column="text,other", max_length=4)


def test_labels_are_checked_against_the_model_s_classes(words):
    with pytest.raises(DataError, match="has 2 in row 4 .*the model knows the classes 0 to 1"):
        encode(table(label=[0, 1, 0, 1, 2]), words)
    assert encode(table(label=[0, 1, 0, 1, 2]), words, classes=3).labels.tolist() == [0, 1, 0, 1, 2]
    named = encode(table(label=["n", "p", "n", "p", "p"]), words, label2id={"p": 0, "n": 1})
    assert named.labels.tolist() == [1, 0, 1, 0, 0] and named.class_names == ("p", "n")
    assert "no column holds labels, so accuracy and loss can't be measured" in encode(table(), words).notes


def test_training_data_are_told(words):
    assert any("training data" in note for note in encode(table("train"), words).notes)
    assert not any("training data" in note for note in encode(table("test"), words).notes)


@pytest.mark.parametrize(
    ("architecture", "settings", "kind", "target", "classes"),
    [
        ("BertForSequenceClassification", {}, "encoder", "classes", 2),
        (
            "BertForSequenceClassification",
            {"id2label": {"0": "a", "1": "b", "2": "c"}},
            "encoder",
            "classes",
            3,
        ),
        ("LlamaForSequenceClassification", {"num_labels": 4}, "decoder", "classes", 4),
        ("BertForSequenceClassification", {"id2label": {"0": "score"}}, "encoder", "none", None),
        ("BertForSequenceClassification", {"problem_type": "regression"}, "encoder", "none", None),
        ("BertModel", {}, "encoder", "none", None),
        ("BertForTokenClassification", {}, "encoder", "none", None),
        ("T5ForConditionalGeneration", {}, "encoder-decoder", "none", None),
        ("GPT2LMHeadModel", {}, "decoder", "tokens", None),
        ("BertLMHeadModel", {}, "encoder", "none", None),
        ("LlamaModel", {}, "decoder", "none", None),
    ],
)
def test_what_outputs_mean_follows_from_the_architecture(architecture, settings, kind, target, classes):
    head = head_of({"architectures": [architecture]} | settings, kind)
    assert (head.target, head.classes) == (target, classes)


def test_a_missing_tokenizer_is_refused_and_another_directory_will_do(tmp_path):
    model = save_config(tmp_path / "model", model_type="bert", **CLASSIFIER)
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(
        DataError, match=r"no tokenizer in .*model \(looked for tokenizer.json.*--tokenizer DIR"
    ):
        load_processor(model, "encoder")
    other = save_tokenizer(tmp_path / "tokenizer")
    processor = load_processor(model, "encoder", files=other)
    assert processor.directory == other and processor.head.classes == 2


def test_a_broken_tokenizer_is_refused(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "m"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"The tokenizer in .* can't be loaded"):
        load_processor(folder, "encoder")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "m", vocab_size=5))
    with pytest.raises(DataError, match=r"gives the token \d+, but the model's embedding has 5 rows"):
        encode(table(), load_processor(folder, "encoder"))


def test_a_broken_configuration_is_refused(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "m"))
    for content, message in (("{", "is not valid JSON"), ("[1]", "holds no settings but a list")):
        (folder / "config.json").write_text(content)
        with pytest.raises(DataError, match=message):
            load_processor(folder, "encoder")


def test_a_batch_of_nothing_is_refused(words):
    with pytest.raises(DataError, match="batch size of 0"):
        encode(table(), words, batch_size=0)


def saved(model, folder, kind):
    model.save_pretrained(folder)
    save_tokenizer(folder, "words" if kind == "encoder" else "bytes")
    return ms.load_model(folder)


MODELS = {
    "encoder": lambda t: t.BertForSequenceClassification(
        t.BertConfig(
            vocab_size=len(ENTRIES),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ),
    "decoder": lambda t: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2)),
    "encoder-decoder": lambda t: t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    ),
}


READINGS = {
    "encoder": ["InnerProducts", "Outputs"],
    "decoder": ["InnerProducts", "NextTokenLoss"],
    "encoder-decoder": ["InnerProducts"],
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("prompt", [None, "question : {n}"])
def test_a_trace_over_encoded_texts_does_not_depend_on_the_batch_size(tmp_path, kind, prompt):
    transformers = pytest.importorskip("transformers")
    model = saved(MODELS[kind](transformers), tmp_path / "m", kind)
    assert Features.of(model).kind == kind
    processor = load_processor(tmp_path / "m", kind)
    base = ms.Checkpoint(tmp_path / "m")
    a, b = (ms.random_neighbour(base, base * 1.1, seed=seed) for seed in (0, 1))
    test = ms.ctl(a, b)
    rows = table(n=[1, 2, 3, 4, 5], label=[0, 1, 0, 1, 1])
    grams = []
    for size in (1, 2, 5):
        data = encode(rows, processor, batch_size=size, prompt=prompt, text_column="text")
        traced = ms.trace(test.points, data, model, progress=False)
        assert traced.samples == data.samples == 5
        assert [type(reading).__name__ for reading in traced.readings] == READINGS[kind]
        reading = traced.reading(ms.InnerProducts)
        grams.append([torch.as_tensor(reading.gram(layer, test.points)) for layer in traced.layers])
        if kind == "decoder":
            assert (traced.reading(ms.NextTokenLoss).losses(test.points[0]) > 0).all()
    for other in grams[1:]:
        for one, two in zip(grams[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_some_samples_in_any_order_are_one_batch_with_their_labels(words):
    data = encode(table(label=[1, 0, 0, 1, 1]), words, batch_size=2, label_column="label")
    got = data.batch(torch.tensor([3, 0, 3]))
    for row, text in enumerate((TEXTS[3], TEXTS[0], TEXTS[3])):
        kept = got["input_ids"][row][got["attention_mask"][row].bool()].tolist()
        assert [token for token in kept if token in number(text)] == number(text)
    assert got["labels"].tolist() == [1, 1, 1]
    assert data.batch(torch.tensor([1]))["labels"].tolist() == [0]


def test_texts_are_padded_with_the_model_s_own_token(tmp_path):
    settings = {**CAUSAL, "pad_token_id": 7, "architectures": ["GPT2ForSequenceClassification"]}
    processor = load_processor(save_tokenizer(save_config(tmp_path / "m", **settings), "bytes"), "decoder")
    batch = next(iter(encode(table(label=[0, 1, 0, 1, 1]), processor, batch_size=5)))
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 7).all()
