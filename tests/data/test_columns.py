"""Choosing columns, texts made from them, and class numbers."""

import datasets
import pytest

from mergescope.data.columns import choose_image_column, choose_label_column
from mergescope.data.labels import read_labels
from mergescope.data.templates import Template, choose_texts
from mergescope.errors import DataError

IMAGE = {"bytes": b"", "path": None}


def table(**columns):
    return datasets.Dataset.from_dict(columns)


def with_classes(names, values, column="label"):
    features = datasets.Features({column: datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({column: values}, features)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (table(text=["a"], label=[0]), "label"),
        (table(text=["a"], Target=["x"]), "Target"),
        (with_classes(["a", "b"], [1], "kind"), "kind"),
        (table(text=["a"], score=[0.5]), None),
    ],
)
def test_the_label_column_is_found_by_name_or_type(data, expected):
    assert choose_label_column(data) == expected


def test_labels_that_are_not_clear_are_refused_listing_the_columns():
    with pytest.raises(
        DataError, match=r"could be the labels: label, target.*text \(string\), label \(int64\)"
    ):
        choose_label_column(table(text=["a"], label=[0], target=[0]))
    two = (
        with_classes(["a"], [0], "coarse").add_column("fine", [0]).cast_column("fine", datasets.ClassLabel(1))
    )
    with pytest.raises(DataError, match="could be the labels: coarse, fine"):
        choose_label_column(two)
    assert choose_label_column(two, "fine") == "fine"
    with pytest.raises(DataError, match=r"no column 'fone' \(--label-column\)\. Did you mean: fine\?"):
        choose_label_column(two, "fone")


def test_images_are_found_by_type_or_by_their_layout():
    assert choose_image_column(table(picture=[IMAGE], label=[0])) == "picture"
    assert choose_image_column(table(picture=[IMAGE]).cast_column("picture", datasets.Image())) == "picture"
    both = table(left=[IMAGE], right=[IMAGE])
    with pytest.raises(DataError, match="Several columns hold images: left, right"):
        choose_image_column(both)
    assert choose_image_column(both, "right") == "right"
    with pytest.raises(DataError, match=r"No column holds images.*text \(string\)"):
        choose_image_column(table(text=["a"]))
    with pytest.raises(DataError, match="'text' holds no images"):
        choose_image_column(table(text=["a"]), "text")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["text", "id"], ["text"]),
        (["body_text", "n"], ["body_text"]),
        (["Sentence", "id"], ["Sentence"]),
        (["premise", "hypothesis", "id"], ["premise", "hypothesis"]),
        (["question", "sentence"], ["question", "sentence"]),
        (["question", "label"], ["question"]),
    ],
)
def test_the_text_is_found_by_name_or_as_the_only_string(columns, expected):
    data = table(**{name: [1] if name == "n" else ["words"] for name in columns})
    assert choose_texts(data).columns == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["text", "sentence"], "Several could be the text: text, sentence"),
        (["one", "two"], r"Several could be the text: one, two.*--text-column"),
        (["label"], "no column is text"),
    ],
)
def test_texts_that_are_not_clear_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        choose_texts(table(**{name: ["words"] for name in columns}))


def test_texts_by_choice():
    data = table(a=["A"], b=["B"], c=["C"], n=[3], label=[0])
    row = data[0]
    assert choose_texts(data, text_column="b").text.fill(row) == "B"
    for pair in ("a,c", ["a", "c"]):
        texts = choose_texts(data, text_column=pair)
        assert (texts.text.fill(row), texts.pair.fill(row)) == ("A", "C")
    texts = choose_texts(data.remove_columns("c"), prompt="a")  # what is left is the text
    assert (texts.prompt.fill(row), texts.text.fill(row)) == ("A", "B")
    texts = choose_texts(data, template="{b}{{{n}}}", prompt="Q: {a}\n")
    assert (texts.prompt.fill(row), texts.text.fill(row)) == ("Q: A\n", "B{3}")
    assert texts.columns == ["b", "n", "a"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"text_column": "premisse"}, r"no column 'premisse' \(--text-column\)\. Did you mean: premise\?"),
        ({"text_column": "n"}, r"'n' \(--text-column\) is no text.*n \(int64\)"),
        ({"text_column": "premise,n,id"}, "one column or a pair, got 3"),
        ({"template": "{premis} x"}, r"no column 'premis' \(--template\)\. Did you mean: premise\?"),
        ({"template": "{premise"}, "can't be read: expected '}'"),
        ({"template": "{premise!r:>3}"}, "has a field with a format"),
        ({"template": "always the same"}, "names no column"),
        ({"template": "{many}"}, r"field 'many' \(--template\) is neither text nor a number"),
        ({"template": "{premise}", "text_column": "id"}, "a text column or a template, not both"),
        ({"text_column": "id", "prompt": "premisse"}, r"no column 'premisse' \(--prompt-column\)"),
        ({"text_column": "id", "prompt": "Q {premisse}"}, r"no column 'premisse' \(--prompt-column\)"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choice, message):
    data = table(premise=["words"], id=["x"], n=[1], many=[[1, 2]])
    with pytest.raises(DataError, match=message):
        choose_texts(data, **choice)


def test_a_template_gives_names_of_classes_and_nothing_where_a_value_is_missing():
    data = with_classes(["no", "yes"], [1]).add_column("text", ["so"])
    template = Template.parse("{text}: {label}", data)
    assert template.fill({"text": "so", "label": 1}) == "so: yes"
    for row in ({"text": None, "label": 1}, {"text": " ", "label": 1}, {"text": "so", "label": -1}):
        assert template.fill(row) is None
    number = Template.parse("{n}", table(n=[1.5]))
    assert number.fill({"n": 1.5}) == "1.5" and number.fill({"n": float("nan")}) is None


def ids(data, **options):
    return read_labels(data, "label", **options).ids.tolist()


@pytest.mark.parametrize("values", [[2, 0, 1], [2.0, 0.0, 1.0]])
def test_numbers_are_class_numbers(values):
    labels = read_labels(table(label=values), "label", classes=3)
    assert (labels.ids.tolist(), labels.names, labels.notes) == ([2, 0, 1], None, ())
    assert ids(table(label=[True, False])) == [1, 0]


def test_names_are_numbered_in_sorted_order_and_said():
    labels = read_labels(table(label=["spam", "ham", "spam"]), "label", classes=3)
    assert labels.ids.tolist() == [1, 0, 1] and labels.names == ("ham", "spam")
    assert "numbered by sorted name: ham = 0, spam = 1" in labels.notes[0]
    assert "the data name 2 classes and the model has 3" in labels.notes[1]


@pytest.mark.parametrize("kind", ["strings", "classes"])
def test_the_model_s_own_numbers_win_over_the_data_s(kind):
    names = ["contradiction", "entailment", "neutral"]
    data = table(label=names) if kind == "strings" else with_classes(names, [0, 1, 2])
    labels = read_labels(
        data, "label", classes=3, label2id={"ENTAILMENT": 0, "NEUTRAL": 1, "CONTRADICTION": 2}
    )
    assert labels.ids.tolist() == [2, 0, 1] and labels.names == ("entailment", "neutral", "contradiction")
    assert "as the model numbers them" in labels.notes[0]
    assert ids(data, label2id={"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}) == [0, 1, 2]  # names of nothing
    with pytest.raises(
        DataError, match="has the classes 'neutral', which the model does not know.*'entailment'"
    ):
        ids(data, label2id={"entailment": 0, "contradiction": 1})


def test_a_class_that_does_not_occur_need_not_be_known():
    data = with_classes(["a", "b", "unused"], [0, 1])
    labels = read_labels(data, "label", classes=2, label2id={"b": 0, "a": 1})
    assert labels.ids.tolist() == [1, 0] and labels.names == ("b", "a")


@pytest.mark.parametrize(
    ("values", "row"),
    [([0, 1, None], 2), ([0.0, float("nan"), 1.0], 1), (["a", None], 1)],
)
def test_a_missing_label_is_an_error_with_its_row(values, row):
    data = table(label=values, text=[f"text {i}" for i in range(len(values))])
    message = rf"no label in row {row} \('text {row}'\), and in 1 of {len(values)}"
    with pytest.raises(DataError, match=message):
        ids(data)


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([0, 1, 3], 3, r"has 3 in row 2, but the model knows the classes 0 to 2 \(1 of 3 rows"),
        ([0, -2], None, "has -2 in row 1, but classes start at 0"),
        ([-1, -1], 2, "labels are hidden: choose another split"),
        ([0.5, 1.0], None, "has 0.5 in row 0, which is no class number"),
        ([[0], [1]], None, "holds no classes"),
        (["a", "b", "c"], 2, r"has 2 \(c\) in row 2, but the model knows the classes 0 to 1"),
    ],
)
def test_labels_out_of_range_are_refused(values, classes, message):
    with pytest.raises(DataError, match=message):
        ids(table(label=values), classes=classes)


def test_hidden_labels_of_named_classes_are_refused():
    with pytest.raises(DataError, match="has -1 in row 1.*labels are hidden"):
        ids(with_classes(["a", "b"], [0, -1]), label2id={"a": 1, "b": 0})


def test_one_class_only_is_said():
    (note,) = read_labels(table(label=[1, 1]), "label").notes
    assert "all 2 rows have the label 1: accuracy says little" in note
    assert "the label 0 (spam)" in read_labels(table(label=["spam"]), "label").notes[-1]
