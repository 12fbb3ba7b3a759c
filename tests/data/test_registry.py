"""Tasks by name, on local directories in the layout of their hub data sets."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mergescope.data.image_tasks import image_task
from mergescope.data.prompts import ALIASES, TEMPLATES, WORDINGS, Wording, canonical, known_classes
from mergescope.data.registry import FAMILIES, TASKS, TaskSpec, task_spec
from mergescope.data.task_splits import (
    class_words,
    held_out,
    image_column,
    label_column,
    load_split,
    matched_words,
)
from mergescope.errors import DataError

COUNTS = {
    "cars": 196, "dtd": 47, "eurosat": 10, "gtsrb": 43, "mnist": 10, "resisc45": 45, "sun397": 397, "svhn": 10,
    "cifar10": 10, "cifar100": 100, "imdb": 2,
}  # fmt: skip


def picture(value):
    return Image.fromarray(np.full((2, 2, 3), value % 256, np.uint8))


def write_images(root, labels, names, column="image", label="label", splits=("train", "test")):
    """Parquet files as the hub has them: ``data/train-00000-of-00001.parquet``."""
    features = datasets.Features({column: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    for split in splits:
        rows = {column: [picture(value) for value in labels], label: list(labels)}
        table = datasets.Dataset.from_dict(rows, features)
        (root / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
    return root


@pytest.mark.parametrize("name", COUNTS)
def test_class_names_are_complete_and_tell_classes_apart(name):
    names = known_classes()[name]
    assert len(names) == COUNTS[name] == len({canonical(each) for each in names})
    assert all(each == each.strip() and each for each in names)
    assert set(ALIASES.get(name, {}).values()) <= set(names)
    assert not {canonical(other) for other in ALIASES.get(name, {})} & {canonical(each) for each in names}


def test_labels_of_known_data_sets_mean_what_their_publishers_say():
    # Numbers and names as the hub's own pages show them.
    said = {
        ("cars", 0): "AM General Hummer SUV 2000", ("cars", 90): "Dodge Dakota Club Cab 2007",
        ("cars", 193): "Volvo 240 Sedan 1993", ("sun397", 1): "airplane cabin", ("sun397", 396): "youth hostel",
        ("resisc45", 43): "thermal power station", ("dtd", 1): "blotchy", ("eurosat", 9): "lake or sea",
        ("gtsrb", 14): "stop", ("cifar100", 26): "crab", ("cifar10", 9): "truck", ("imdb", 1): "positive",
    }  # fmt: skip
    assert {key: known_classes()[key[0]][key[1]] for key in said} == said


def test_families_and_templates_are_of_known_tasks():
    assert set().union(*FAMILIES.values()) <= set(TASKS) and [len(f) for f in FAMILIES.values()] == [8, 6]
    for name, templates in TEMPLATES.items():
        assert TASKS[name].templates == templates
        assert len(set(templates)) == len(templates) >= 2
        assert all(text.count("{}") == 1 for text in templates)
    assert set(WORDINGS) == set(FAMILIES["t5-six"])


@pytest.mark.parametrize(
    ("written", "name"),
    [("sun397", "sun397"), ("SUN397", "sun397"), ("stanford-cars", "cars"), ("tanganke/stanford_cars", "cars"),
     ("ylecun/mnist", "mnist"), ("MultiNews", "multi_news"), ("SUN-397", "sun397")],
)  # fmt: skip
def test_tasks_are_found_by_any_spelling(written, name):
    assert task_spec(written) is TASKS[name]


def test_revisions_are_pinned_by_the_user():
    assert task_spec("eurosat").revision is None
    assert task_spec("tanganke/eurosat@abc").revision == "abc" == task_spec("eurosat@abc").revision
    assert all(len(spec.revision) == 40 for spec in TASKS.values() if spec.revision)


def test_a_mistyped_task_gets_near_matches():
    with pytest.raises(DataError, match=r"no task 'eurosta'\. Did you mean: eurosat"):
        task_spec("eurosta")
    with pytest.raises(DataError, match="Did you mean: tanganke/resisc45"):
        task_spec("tanganke/resisc54")
    with pytest.raises(DataError, match="empty part"):
        task_spec("eurosat=")
    with pytest.raises(DataError, match="no directory './nowhere' with the data of the task eurosat"):
        task_spec("eurosat=./nowhere")


@pytest.mark.parametrize("name", FAMILIES["clip8"])
def test_a_local_copy_in_the_hubs_layout_is_the_task(tmp_path, name):
    spec = TASKS[name]
    root = tmp_path / name
    home = root / spec.config if spec.config else root
    labels = list(range(COUNTS[name])) * 2
    names = known_classes()[name]
    write_images(home, labels, [each.replace(" ", "_") for each in names])
    found = task_spec(f"{name}={root}")
    assert (found.classes, found.templates, found.revision) == (names, spec.templates, None)
    splits = {split: load_split(found, split) for split in ("train", "validation", "test")}
    count = round(0.1 * len(labels))
    assert [len(table) for table in splits.values()] == [len(labels) - count, count, len(labels)]
    assert class_words(found, splits["test"]) == names
    assert splits["test"]["label"] == labels
    assert splits["test"][3][image_column(found, splits["test"])].getpixel((0, 0))[0] == 3


def test_validation_is_a_tenth_of_train_and_never_its_rest():
    for rows in (2, 9, 10, 3760, 49_999, 73_257):
        train, validation = held_out(rows)
        assert len(validation) == max(1, min(round(rows / 10), 5000))
        assert sorted([*train, *validation]) == list(range(rows))
        again = held_out(rows)
        assert np.array_equal(train, again[0]) and np.array_equal(validation, again[1])
    assert not np.array_equal(held_out(100)[1], np.arange(10)), "files are often sorted by class"
    with pytest.raises(DataError, match="can't be divided"):
        held_out(1)


def test_a_larger_limit_keeps_the_rows_of_a_smaller_one(tmp_path):
    write_images(tmp_path, list(range(10)) * 6, known_classes()["eurosat"])
    spec = task_spec(f"eurosat={tmp_path}")
    values = [
        [row["image"].getpixel((0, 0))[0] for row in load_split(spec, "train", limit=n)] for n in (8, 20)
    ]
    assert len(values[0]) == 8 and len(values[1]) == 20
    remaining = iter(values[1])
    assert all(value in remaining for value in values[0]), "the same rows in the same order"
    with pytest.raises(DataError, match="at least 1 row"):
        load_split(spec, "train", limit=0)
    with pytest.raises(DataError, match="no split 'dev'"):
        load_split(spec, "dev")


def test_names_in_another_order_keep_their_labels_and_get_the_tasks_words(tmp_path):
    folders = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
               "Residential", "River", "SeaLake")  # fmt: skip
    order = list(reversed(folders))
    write_images(tmp_path / "parquet", list(range(10)), order)
    table = load_split(task_spec(f"eurosat={tmp_path / 'parquet'}"), "test")
    assert class_words(TASKS["eurosat"], table) == tuple(reversed(known_classes()["eurosat"]))
    for split in ("train", "test"):
        for folder in folders:
            (tmp_path / "folders" / split / folder).mkdir(parents=True)
            picture(7).save(tmp_path / "folders" / split / folder / "a.png")
            picture(9).save(tmp_path / "folders" / split / folder / "b.png")
    table = load_split(task_spec(f"eurosat={tmp_path / 'folders'}"), "test")
    assert class_words(TASKS["eurosat"], table) == known_classes()["eurosat"]


def test_directories_called_by_number_are_class_numbers():
    names = known_classes()["gtsrb"]
    numbered = sorted(str(n) for n in range(43))
    assert numbered[2] == "10"
    assert matched_words(TASKS["gtsrb"], numbered) == tuple(names[int(number)] for number in numbered)
    assert matched_words(TASKS["gtsrb"], [f"{n:05}" for n in range(43)]) == names
    assert matched_words(TASKS["gtsrb"], None) == names


def test_foreign_classes_are_named(tmp_path):
    names = list(known_classes()["eurosat"])
    with pytest.raises(DataError, match=r"'glacier' \(label 3\).*Not in the data: 'highway or road'"):
        matched_words(TASKS["eurosat"], [*names[:3], "glacier", *names[4:]])
    with pytest.raises(DataError, match="it has 9, the task 10"):
        matched_words(TASKS["eurosat"], names[:9])
    with pytest.raises(DataError, match=r"'x0' \(label 0\), 'x1' \(label 1\), 'x2' \(label 2\) and 7 more"):
        matched_words(TASKS["eurosat"], [f"x{n}" for n in range(10)])
    write_images(tmp_path, list(range(3)), ["a", "b", "c"])
    with pytest.raises(DataError, match="not those of the task eurosat"):
        load_split(task_spec(f"eurosat={tmp_path}"), "test")


def test_an_empty_class_and_labels_out_of_range_are_refused(tmp_path):
    names = known_classes()["eurosat"]
    write_images(tmp_path / "empty", [n for n in range(10) if n != 4], names)
    spec = task_spec(f"eurosat={tmp_path / 'empty'}")
    with pytest.raises(DataError, match=r"no sample of 1 of its 10 classes: 'industrial .*\(label 4\)"):
        load_split(spec, "train")
    assert len(load_split(spec, "test")) == 9, "a test split may lack a class"
    plain = datasets.Dataset.from_dict(
        {"image": [picture(n) for n in range(11)], "label": list(range(11))},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    (tmp_path / "range").mkdir()
    for split in ("train", "test"):
        plain.to_parquet(str(tmp_path / "range" / f"{split}.parquet"))
    with pytest.raises(DataError, match="has 10 in row 10.*out of range"):
        load_split(task_spec(f"eurosat={tmp_path / 'range'}"), "test")
    with pytest.raises(DataError, match="no directory"):
        task_spec(f"eurosat={tmp_path / 'absent'}")


def test_other_image_directories_are_tasks_of_their_own(tmp_path):
    write_images(
        tmp_path / "pets", [0, 1] * 5, ["a_cat", "a_dog"], column="photo", splits=("train", "validation")
    )
    spec = task_spec(tmp_path / "pets")
    assert (spec.name, spec.kind, spec.classes) == ("pets", "image-classification", None)
    assert spec.splits == {"train": "train", "test": "validation"}
    table = load_split(spec, "test")
    assert image_column(spec, table) == "photo" and label_column(spec, table) == "label"
    assert class_words(spec, table) == ("a cat", "a dog")
    assert task_spec(f"mine={tmp_path / 'pets'}").name == "mine"
    assert all("{}" in text for text in spec.templates)


def test_text_directories_are_tasks_whose_splits_number_classes_alike(tmp_path):
    for split, labels in {"train": ["spam", "ham", "eggs"] * 4, "test": ["spam", "ham"]}.items():
        rows = {"text": [f"text {n}" for n in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows).to_csv(str(tmp_path / f"{split}.csv"))
    spec = task_spec(tmp_path)
    assert (spec.kind, spec.columns) == ("text-classification", {"text": "text", "label": "label"})
    test, train = load_split(spec, "test"), load_split(spec, "train")
    assert test.features["label"].names == train.features["label"].names == ["eggs", "ham", "spam"]
    assert test["label"] == [2, 1]


def test_a_directorys_own_validation_split_is_used(tmp_path):
    for split, values in {"train": range(20), "dev": range(20, 24), "test": range(24, 30)}.items():
        write_images(tmp_path, [0, 1] * (len(values) // 2), ["a", "b"], splits=(split,))
    spec = task_spec(tmp_path)
    assert spec.splits == {"train": "train", "test": "test", "validation": "validation"}
    assert [len(load_split(spec, split)) for split in ("train", "validation", "test")] == [20, 4, 6]


def test_where_the_labels_of_the_test_split_are_hidden_validation_is_the_test(tmp_path):
    for split, labels in {"train": [0, 1] * 10, "validation": [0, 1, 1], "test": [-1] * 4}.items():
        rows = {"text": [f"text {n}" for n in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / f"{split}.parquet"))
    spec = task_spec(tmp_path)
    assert spec.splits == {"train": "train", "test": "validation"}
    assert [len(load_split(spec, split)) for split in ("train", "validation", "test")] == [18, 2, 3]
    assert "the labels of the split test are hidden" in spec.notes[0]


def test_a_hub_data_sets_own_validation_split_is_used(tmp_path, monkeypatch):
    files, really = {}, datasets.load_dataset
    for split, count in (("train", 20), ("validation", 4), ("test", 6)):
        files[split] = str(tmp_path / f"{split}.parquet")
        rows = {"text": ["good"] * count, "label": [0, 1] * (count // 2)}
        datasets.Dataset.from_dict(rows).to_parquet(files[split])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda repo, config, revision: really("parquet", data_files=files)
    )
    spec = task_spec("org/reviews")
    assert spec.splits == {"train": "train", "test": "test", "validation": "validation"}
    assert [len(load_split(spec, split)) for split in ("train", "validation", "test")] == [20, 4, 6]


def test_directories_that_are_no_tasks_are_refused(tmp_path):
    for name, rows in {
        "bare": {"text": ["a", "b"]},
        "free": {"text": ["a"] * 20, "label": [f"answer {n}" for n in range(20)]},
    }.items():
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / name / f"{split}.parquet"))
    with pytest.raises(DataError, match="has no labels"):
        task_spec(tmp_path / "bare")
    with pytest.raises(DataError, match="20 different texts in 20 rows"):
        task_spec(tmp_path / "free")
    write_images(tmp_path / "untested", [0, 1], ["a", "b"], splits=("train",))
    with pytest.raises(DataError, match="no test split, only train"):
        task_spec(tmp_path / "untested")


def test_saved_data_sets_are_tasks_too(tmp_path):
    features = datasets.Features({
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["n", "y"]),
    })
    rows = datasets.Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 0, 1]}, features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    spec = task_spec(tmp_path / "saved")
    assert spec.splits["test"] == "test" and len(load_split(spec, "test")) == 4


T5_ROWS = {
    "imdb": ({"text": "Fine.", "label": 1}, ("sentiment: Fine.", "positive")),
    "race": (
        {"article": "Text.", "question": "What?", "options": ["x", "y"], "answer": "B"},
        ("question: What? options: (A) x (B) y context: Text.", "B"),
    ),
    "qasc": (
        {"question": "What?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "fact1": "One.", "fact2": "Two.",
         "answerKey": "A"},
        ("question: What? options: (A) x (B) y context: One. Two.", "A"),
    ),
    "multi_news": ({"document": "Long.", "summary": "Short."}, ("summarize: Long.", "Short.")),
    "squad": (
        {"question": "Who?", "context": "She.", "answers": {"text": ["She", "Her"], "answer_start": [0, 0]}},
        ("question: Who? context: She.", "She"),
    ),
    "common_gen": (
        {"concepts": ["dog", "run"], "target": "A dog runs."},
        ("write a sentence with: dog run", "A dog runs."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", T5_ROWS)
def test_text_to_text_rows_become_questions_and_answers(tmp_path, name):
    row, expected = T5_ROWS[name]
    spec = TASKS[name]
    home = tmp_path / spec.config if spec.config else tmp_path
    home.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict({key: [value] * 20 for key, value in row.items()})
    if name == "imdb":
        table = table.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    for split in set(spec.splits.values()):
        table.to_parquet(str(home / f"{split}.parquet"))
    found = task_spec(f"{name}={tmp_path}")
    for split, rows in (("train", 18), ("validation", 2), ("test", 20)):
        table = load_split(found, split)
        assert table.column_names == ["text", "answer"] and len(table) == rows
        assert (table[0]["text"], table[0]["answer"]) == expected
    with pytest.raises(DataError, match="is text-to-text: it has answers, and no labels"):
        label_column(found, table)


def test_wordings_say_what_is_missing():
    wording = Wording("{question}", "{answers[text]:first}")
    with pytest.raises(DataError, match=r"needs \{question\}.*Did you mean: questions"):
        wording.fill({"questions": "?", "answers": {"text": ["a"]}})
    with pytest.raises(DataError, match="answers may be hidden"):
        wording.fill({"question": "?", "answers": {"text": []}})
    with pytest.raises(DataError, match="The label -1 is no class"):
        Wording("x {label}", "{label:named}").fill({"label": -1}, ["no", "yes"])
    with pytest.raises(DataError, match="no format 'letered'. Did you mean: lettered"):
        Wording("{options:letered}", "x").fill({"options": ["a"]})
    with pytest.raises(DataError, match="has no wording"):
        load_split(TaskSpec("x", "nowhere", "text-to-text"), "test")


def test_class_names_are_those_of_the_column_that_is_asked_for(tmp_path):
    topics = datasets.ClassLabel(names=[f"topic {n}" for n in range(10)])
    features = datasets.Features({
        "text": datasets.Value("string"), "topic": topics, "sort": datasets.ClassLabel(names=["dull", "bright"]),
    })  # fmt: skip
    rows = datasets.Dataset.from_dict({"text": ["t"] * 20, "topic": [7] * 20, "sort": [0, 1] * 10}, features)
    rows.to_parquet(str(tmp_path / "train.parquet"))
    rows.to_parquet(str(tmp_path / "test.parquet"))
    spec = TaskSpec(
        "x", str(tmp_path), "text-to-text", splits={"train": "train", "test": "test"}, columns={"label": "sort"},
        wording=Wording("{text}", "{sort:named}"),
    )  # fmt: skip
    assert load_split(spec, "test")["answer"][:2] == ["dull", "bright"]


@pytest.mark.parametrize("labels", [["neg", "pos"], [0.0, 1.0]])
def test_labels_of_texts_with_answers_may_be_names_or_whole_numbers(tmp_path, labels):
    table = datasets.Dataset.from_dict({"text": ["t"] * 20, "label": labels * 10})
    for split in ("train", "test"):
        table.to_parquet(str(tmp_path / f"{split}.parquet"))
    answers = load_split(task_spec(f"imdb={tmp_path}"), "test")["answer"]
    assert answers[:2] == ["negative", "positive"]


def test_several_labels_a_row_are_refused(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [[0, 3], [1]]})
    for split in ("train", "test"):
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    with pytest.raises(DataError, match="'labels' .* holds no single labels.*one class a row"):
        task_spec(str(tmp_path))


def test_images_without_the_type_are_images(tmp_path):
    write_images(tmp_path, [0, 1, 0, 1], ["a", "b"])
    for split in ("train", "test"):
        path = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        plain = pq.read_table(path).replace_schema_metadata(None)
        pq.write_table(plain, path)
    spec = task_spec(str(tmp_path))
    assert spec.kind == "image-classification" and spec.columns["image"] == "image"
    assert image_task(str(tmp_path)).test.inputs.shape == (4, 3, 2, 2)
