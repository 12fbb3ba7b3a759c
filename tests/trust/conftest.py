"""A base, two models, a task and a recipe, for commands that are disturbed."""

import pytest
import yaml
from commands import Commands
from given_models import labels, make, save, save_rows, texts


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    start = make("BertForSequenceClassification")
    save(start, folder / "start")
    for seed, name in enumerate("ab", 1):
        save(make("BertForSequenceClassification", seed, start), folder / name)
    for split, count in (("train", 16), ("test", 6)):
        save_rows(folder / "task" / f"{split}.csv", texts(count), label=labels(count, 2))
    models = [{"model": str(folder / name), "parameters": {"weight": 1}} for name in "ab"]
    (folder / "recipe.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()
