"""Questions and answers as batches, and classes that are numbered anew."""

import datasets
import pytest
import torch
from tiny import ENTRIES, save_config, save_tokenizer

from mergescope.data import Wording, encode, load_processor, load_split, task_spec
from mergescope.data.labels import read_labels
from mergescope.data.registry import as_template
from mergescope.data.tokens import IGNORED
from mergescope.errors import DataError

T5 = {"architectures": ["T5ForConditionalGeneration"], "relative_attention_num_buckets": 32, "vocab_size": 23}
ROWS = {
    "text": ["the film", "it was fun", "boring", "good"],
    "answer": ["good", "so fun and good", None, "bad film"],
}


def number(text):
    return [ENTRIES.index(word) for word in text.split()]


@pytest.fixture
def words(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "t5", **T5))
    return load_processor(folder, "encoder-decoder")


def test_answers_are_labels_that_are_padded_with_what_is_ignored(words):
    data = encode(datasets.Dataset.from_dict(ROWS), words, batch_size=2, answer_column="answer")
    first, second = data
    assert first["labels"].tolist() == [
        [*number("[CLS] good [SEP]"), *[IGNORED] * 3],
        number("[CLS] so fun and good [SEP]"),
    ]
    assert first["input_ids"].tolist()[0] == number("[CLS] the film [SEP] [PAD]")
    assert second["labels"].tolist() == [number("[CLS] bad film [SEP]")]
    assert data.rows.tolist() == [0, 1, 3] and data.skipped == {"empty answer": 1}
    turned = data.batch(torch.tensor([2, 0]))["labels"]
    assert turned.tolist() == [number("[CLS] bad film [SEP]"), [*number("[CLS] good [SEP]"), IGNORED]]


def test_answers_count_for_the_fingerprint_and_the_limit(words):
    table = datasets.Dataset.from_dict(ROWS).select([0, 1])
    other = table.map(lambda row: {"answer": "bad" if row["answer"] == "good" else row["answer"]})
    prints = {encode(rows, words, answer_column="answer").fingerprint for rows in (table, other)}
    assert len(prints | {encode(table, words).fingerprint}) == 3
    cut = encode(table, words, answer_column="answer", max_length=5)
    (batch,) = cut
    assert batch["labels"][1].tolist() == number("[CLS] so fun and [SEP]"), "the end is kept"
    assert cut.truncated == 1 and "cut off 1 of 2 texts" in cut.notes


def test_only_networks_that_write_learn_answers(tmp_path):
    folder = save_tokenizer(save_config(tmp_path / "bert", vocab_size=23))
    table = datasets.Dataset.from_dict(ROWS)
    with pytest.raises(
        DataError, match="'answer' holds answers to be written, which only an encoder-decoder"
    ):
        encode(table, load_processor(folder, "encoder"), answer_column="answer")


def test_padding_that_was_added_to_the_tokenizer_alone_is_not_used(tmp_path):
    processor = load_processor(save_tokenizer(save_config(tmp_path / "m", **T5)), "encoder-decoder")
    processor.tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    assert processor.tokenizer.pad_token_id == 23 and processor.filler == 0
    (batch,) = encode(datasets.Dataset.from_dict(ROWS), processor)
    assert int(batch["input_ids"].max()) < 23 and batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("named", [True, False])
def test_chosen_classes_are_numbered_anew(named):
    table = datasets.Dataset.from_dict({"label": [7, 2, 2, 7]})
    if named:
        table = table.cast_column("label", datasets.ClassLabel(names=[f"c{n}" for n in range(9)]))
    labels = read_labels(table, "label", label2id={2: 0, 7: 1})
    assert labels.ids.tolist() == [1, 0, 0, 1] and labels.names == (("c2", "c7") if named else None)
    assert labels.notes == ("the classes are numbered anew: 2 = 0, 7 = 1",)
    with pytest.raises(DataError, match=r"has the classes \[7\], and the task is made up of \[2, 3\]"):
        read_labels(table, "label", label2id={2: 0, 3: 1})
    assert read_labels(table.select([1, 2]), "label", label2id={0: 0, 1: 1, 2: 2}).notes == ()


def write(folder, **columns):
    for split in ("train", "test"):
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_a_part_of_the_classes_is_held_out_as_the_whole_is(tmp_path):
    data = write(tmp_path / "d", text=[f"t{n}" for n in range(60)], label=[n % 3 for n in range(60)])
    spec = task_spec(data)
    for split in ("train", "validation", "test"):
        whole = load_split(spec, split)
        part = load_split(spec, split, classes=(2, 0))
        assert part["text"][:] == [row["text"] for row in whole if row["label"] != 1]
    limited = load_split(spec, "train", classes=(2,), limit=5)
    assert len(limited) == 5 and set(limited["label"]) == {2}


def test_users_say_which_columns_count(tmp_path):
    rows = {"a": ["x y"] * 20, "b": ["z"] * 20, "mark": [0, 1] * 10, "reply": [f"r{n}" for n in range(20)]}
    data = write(tmp_path / "d", **rows)
    with pytest.raises(DataError, match="has no labels"):
        task_spec(data)
    with pytest.raises(DataError, match="Several could be the text: a, b, reply"):
        task_spec(data, label_column="mark")
    spec = task_spec(data, label_column="mark", text="a,b")
    assert (spec.kind, spec.columns) == ("text-classification", {"text": "a,b", "label": "mark"})
    spec = task_spec(data, text="say {b} of {a}", answer_column="reply")
    row = load_split(spec, "test")[3]
    assert spec.kind == "text-to-text" and row == {"text": "say z of x y", "answer": "r3"}
    assert task_spec("squad", text="context").wording.text == as_template("context") == "{context}"
    assert task_spec("squad", answer_column="id").wording.answer == "{id}"
    assert task_spec("cifar100", label_column="coarse_label").columns["label"] == "coarse_label"


def sentences(folder, words_given, targets):
    """Data in the layout of CommonGen."""
    folder.mkdir()
    for split in ("train", "validation"):
        rows = {"concepts": words_given, "target": targets}
        datasets.Dataset.from_dict(rows).to_parquet(str(folder / f"{split}.parquet"))
    return task_spec(f"common_gen={folder}")


def test_rows_without_a_question_or_an_answer_are_left_out_and_told(tmp_path, words):
    asked, targets = [["good", "film"]] * 20, ["a good film"] * 20
    asked[5], targets[3], targets[4] = [], "", None
    table = load_split(sentences(tmp_path / "data", asked, targets), "test")
    data = encode(table, words, text_column="text", answer_column="answer")
    assert data.samples == 17 and data.skipped == {"empty answer": 2, "empty text": 1}
    assert "left out 3 of 20 rows: empty answer (2), empty text (1)" in data.notes


def test_a_split_whose_answers_are_all_hidden_is_refused(tmp_path):
    spec = sentences(tmp_path / "data", [["good", "film"]] * 20, [""] * 20)
    with pytest.raises(DataError, match=r"The field \{target\} is empty: .* may be hidden"):
        load_split(spec, "test")


def test_a_row_without_the_column_of_a_part_is_empty():
    wording = Wording("{question}", "{answers[text]:first}")
    assert wording.fill_what_is_there({"question": "Why?", "answers": None}) == ("Why?", None)
