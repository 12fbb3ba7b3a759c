"""Family directories: one description, every model, nothing overwritten."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from given_models import WORDS as VOCABULARY
from given_models import make, save, save_rows, save_tokenizer, texts
from small_families import (
    FAST,
    Killed,
    contents,
    described,
    killing,
    make_inputs,
    save_task,
    weights_of,
)

from mergescope.errors import DataError, MergescopeError, MismatchError, StudyError
from mergescope.models.heads import linear_head, save_head
from mergescope.studies import family_run
from mergescope.studies.families import FILE, Base, FamilyDirectory, Member, read_family, training_seconds
from mergescope.studies.family_config import PRESET_OF, located, located_model, task_source
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.finetuned import workplace
from mergescope.studies.opened_families import OwnFamily, family_models, family_recipe, find_family
from mergescope.tracing.engines import LocalEngine
from mergescope.training import preset
from mergescope.weights.files import atomic_file


def planned(description, out):
    return plan_family(read_family_config(description), out)


def run(description, out, **more):
    return planned(description, out).run(progress=False, device="cpu", **more)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    """A family that tests only read."""
    out = tmp_path_factory.mktemp("made") / "family"
    return run(described(inputs), out)


@pytest.fixture
def family(made, tmp_path):
    """A copy that tests may change."""
    shutil.copytree(made.path, tmp_path / "family")
    return tmp_path / "family"


def test_every_task_is_trained_in_every_regime(made):
    assert [(m.regime, m.task) for m in made.members] == [
        ("full", "left"), ("full", "right"), ("attention-1", "left"), ("attention-1", "right"),
    ]  # fmt: skip
    again = read_family(made.path)
    assert again == made and again.regimes == ("full", "attention-1")
    assert again.tasks["left"].classes == ("maybe", "no", "yes") and again.base.kind == "encoder"
    for member in again.members:
        folder = again.folder(member.regime, member.task)
        record = yaml.safe_load((folder / "finetune.yaml").read_text())
        assert record["key"] == member.key and record["results"] == member.results
        assert member.steps == 3 and 0 <= member.results["test"]["accuracy"] <= 1
        assert (folder / "head.safetensors").is_file() and (folder / "training.parquet").is_file()
    full, attention = again.members[0], again.members[2]
    assert attention.trained_parameters == 4 * 3 * 16 * 16 + 3 * 16 + 3 < full.trained_parameters


def test_a_second_run_reads_and_writes_nothing(inputs, family):
    before = contents(family)
    plan = planned(described(inputs), family)
    assert all(model.finished for model in plan.models)
    assert plan.run(device="cpu", on_log=killing(1)).path == family
    assert contents(family) == before


def test_tasks_and_regimes_are_added(inputs, family):
    before = contents(family)
    save_task(inputs / "third", 2)
    tasks = {"third": str(inputs / "third"), "left": str(inputs / "left")}
    grown = run(
        described(inputs, tasks=tasks, regimes={"wide": {"regime": "lora", "options": {"rank": 2}}}), family
    )
    after = contents(family)
    assert grown.regimes == ("full", "attention-1", "wide") and set(grown.tasks) == {"left", "right", "third"}
    assert all(after[path] == value for path, value in before.items() if path not in (FILE, ".lock"))
    assert {m.task for m in grown.choose("wide")} == {"third", "left"} and grown.members[-1].kind == "lora"
    assert (family / "wide" / "third" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_killed_run_goes_on_to_the_same_bytes(inputs, tmp_path, keep):
    recipe = FAST | {"epochs": 2, "save_every": 2, "evaluate_every": 1}
    wanted = described(inputs, regimes=["full", "lora"], recipe=recipe, keep=keep)
    whole = run(wanted, tmp_path / "whole")
    for steps in (3, 7, 7):  # in the first model, after the rest of it in the second, then in the third
        with pytest.raises(Killed):
            run(wanted, tmp_path / "broken", on_log=killing(steps))
    assert workplace(tmp_path / "broken" / "full" / "right").is_dir()
    statuses = [model.status.found for model in planned(wanted, tmp_path / "broken").models]
    assert statuses == ["finished", "finished", "interrupted", "new"]
    done = run(wanted, tmp_path / "broken")
    assert weights_of(done.path) == weights_of(whole.path) and len(weights_of(done.path)) == 4 * 2 + 2
    assert [(m.key, m.digest, m.results) for m in done.members] == [
        (m.key, m.digest, m.results) for m in whole.members
    ]
    assert not list(done.path.rglob("*.training"))


def test_planning_writes_nothing(inputs, tmp_path):
    plan = planned(described(inputs, regimes=["lora", "linearized"]), tmp_path / "family")
    assert not (tmp_path / "family").exists()
    told = plan.to_dict()
    assert [(m["regime"], m["task"], m["status"], m["steps"], m["classes"]) for m in told["models"]] == [
        (label, task, "new", 3, 3) for task in ("left", "right") for label in ("lora", "linearized")
    ]
    assert told["models"][0]["samples"] == {"train": 22, "validation": 2, "test": 9}
    assert told["trains"]["linearized"][-1]["trained"] == told["trains"]["linearized"][-1]["parameters"]
    assert told["trains"]["lora"][-1]["trained"] == 4 * 3 * 2 * 16 * 16 + 3 * 16 + 3


def test_a_changed_configuration_is_told_and_nothing_is_touched(inputs, family):
    before = contents(family)
    with pytest.raises(StudyError) as caught:
        planned(described(inputs, recipe=FAST | {"lr": 0.5}, seed=3), family)
    told = str(caught.value)
    assert "recipe.lr: 0.001, now 0.5 (full/left, attention-1/left, full/right, attention-1/right)" in told
    assert "seed: 0, now 3" in told and "Nothing was overwritten" in told
    with pytest.raises(StudyError, match="the task left is another one there: max_length None, now 3"):
        planned(described(inputs, max_length=3), family)
    assert contents(family) == before
    # What changes no sample and no result is no change.
    assert all(model.finished for model in planned(described(inputs, max_length=30), family).models)
    assert all(
        model.finished for model in planned(described(inputs, recipe=FAST | {"save_every": 9}), family).models
    )


def test_an_interrupted_run_of_another_configuration_is_kept(inputs, tmp_path):
    recipe = FAST | {"save_every": 1}
    with pytest.raises(Killed):
        run(described(inputs, recipe=recipe), tmp_path / "family", on_log=killing(3))
    before = contents(tmp_path)
    with pytest.raises(StudyError, match=r"recipe.lr: 0.001, now 0.1 \(full/.left.training\)"):
        planned(described(inputs, recipe=recipe | {"lr": 0.1}), tmp_path / "family")
    assert contents(tmp_path) == before


def test_a_run_that_broke_off_before_its_first_state_is_no_obstacle(inputs, tmp_path):
    with pytest.raises(Killed):
        run(described(inputs), tmp_path / "family", on_log=killing(1))
    assert {model.status.found for model in planned(described(inputs, recipe=FAST | {"lr": 0.1}),
                                                    tmp_path / "family").models} == {"new"}  # fmt: skip


def test_another_base_is_refused(inputs, family, tmp_path):
    save(make("BertModel", seed=5), tmp_path / "other")
    before = contents(family)
    with pytest.raises(MismatchError, match="other is not the base of the family"):
        planned(described(inputs, base=str(tmp_path / "other")), family)
    with pytest.raises(MismatchError, match="digest .* of its weights"):
        find_family(str(family), "full", base=str(tmp_path / "other"))
    assert contents(family) == before
    shutil.copytree(inputs / "base", tmp_path / "moved")
    assert find_family(str(family), "full", base=str(tmp_path / "moved")).place == str(tmp_path / "moved")


def test_directories_of_others_are_left_alone(inputs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(StudyError, match=r"holds other files \(thesis.txt\) and no family"):
        planned(described(inputs), tmp_path / "mine")
    with pytest.raises(StudyError, match="is a file"):
        planned(described(inputs), tmp_path / "file")
    assert contents(tmp_path) == before


def test_what_a_killed_run_left_of_its_first_file_is_no_file_of_others(inputs, tmp_path, monkeypatch):
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Path, "unlink", lambda *given, **how: None)
        with atomic_file(tmp_path / "family.yaml"):
            raise KeyboardInterrupt
    assert len(contents(tmp_path)) == 1
    assert planned(described(inputs), tmp_path)


def bad_head(folder, inputs):
    save_head(folder / "head", linear_head(16, ["a", "b"], 0, "frozen-random"))
    return described(inputs, head=str(folder / "head")), MismatchError, "2 classes in the head, 3 in"


def bad_labels(folder, inputs):
    for split in ("train", "test"):
        save_rows(folder / "task" / f"{split}.csv", texts(12), label=[-1, 0, 1] * 4)
    return (
        described(inputs, tasks={"left": str(folder / "task")}),
        DataError,
        "the label -1|-1 in row 0|has -1",
    )


def empty_class(folder, inputs):
    save_task(folder / "task")
    save_rows(folder / "task" / "train.csv", texts(12), label=["yes", "no"] * 6)
    return (
        described(inputs, tasks={"left": str(folder / "task")}),
        DataError,
        "no sample of 1 of its 3 classes: 'maybe'",
    )


def bad_tokenizer(folder, inputs):
    save(make("BertModel", vocab_size=len(VOCABULARY) - 20), folder / "small", tokenizer=False)
    save_tokenizer(folder / "small")
    return described(inputs, base=str(folder / "small")), DataError, "vocabulary|token"


@pytest.mark.parametrize("bad", [bad_head, bad_labels, empty_class, bad_tokenizer])
def test_bad_input_is_told_before_anything_is_written(inputs, tmp_path, bad):
    description, kind, said = bad(tmp_path, inputs)
    before = contents(tmp_path)
    with pytest.raises(MergescopeError, match=said) as caught:
        planned(description, tmp_path / "family")
    assert isinstance(caught.value, (kind, StudyError))
    assert contents(tmp_path) == before and not (tmp_path / "family").exists()


def test_problems_of_all_tasks_are_told_at_once(inputs, tmp_path):
    _, _, _ = empty_class(tmp_path, inputs)
    tasks = {"left": str(tmp_path / "task"), "right": str(tmp_path / "absent")}
    with pytest.raises(StudyError) as caught:
        planned(described(inputs, tasks=tasks), tmp_path / "family")
    told = str(caught.value)
    assert "2 tasks can't be trained" in told and "'maybe'" in told and "absent" in told
    assert "\n  - left: " in told and "\n  - right: " in told


def test_the_task_that_can_not_be_trained_is_named(inputs, tmp_path):
    empty_class(tmp_path, inputs)
    tasks = {"left": str(inputs / "left"), "mine": str(tmp_path / "task")}
    with pytest.raises(DataError, match=r"^The task mine can't be trained: The training split of"):
        planned(described(inputs, tasks=tasks), tmp_path / "family")


@pytest.mark.parametrize("workers", [None, 1])
def test_fp16_on_a_cpu_is_refused_before_anything_is_written(inputs, tmp_path, workers):
    plan = planned(described(inputs, recipe=FAST | {"precision": "fp16"}), tmp_path / "family")
    engine = None if workers is None else LocalEngine(workers)
    with pytest.raises(MergescopeError, match="no training in fp16 on a CPU. Choose precision bf16 or no"):
        plan.run(progress=False, device="cpu", engine=engine)
    assert not (tmp_path / "family").exists()


def test_all_problems_of_a_description_are_told_at_once(tmp_path):
    path = tmp_path / "family.yaml"
    path.write_text(
        "base: org/base\ntasks: {left: {data: a, templat: x}, ../up: b}\nregimes: {full: , lora: {options: {rnk: 2}}}\n"
        "recipe: {lr: -1, epoch: 3}\npreset: clp\nkeep: bets\nseeds: 3\n"
    )
    with pytest.raises(StudyError) as caught:
        read_family_config(path)
    told = str(caught.value)
    for part in (
        "family.yaml has 6 problems", "unknown key 'templat' in tasks.left. Did you mean: template?",
        "unknown key 'epoch' in recipe. Did you mean: epochs?", "unknown key 'seeds'. Did you mean: seed",
        "there is no preset 'clp'. Did you mean: clip?",
        "keep can't be 'bets'. Did you mean: best? Choose one of last, best.",
        "the regime lora has no option 'rnk'. Did you mean: rank?".capitalize(),
    ):  # fmt: skip
        assert part.lower() in told.lower(), (part, told)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["a=x", "a=y"]}, "two tasks are called"),
        ({"tasks": {"..": "x"}}, "can't be the name of a directory"),
        ({"tasks": {"One": "x", "one": "y"}}, "one directory on some systems"),
        ({"regimes": ["family.yaml=full"]}, "can't be the name of a directory"),
        ({"recipe": {"lr": -1}}, "lr=-1.0"),
        ({"regimes": {"full": {"options": {"frozen": ["x"]}}}}, "frozen is decided by the head and the base"),
        ({"regimes": ["attention=attention-9"]}, "no regime 'attention-9'"),
        (
            {"regimes": {"attention": {"recipe": {"lr": 1}}, "attention-1": {}}},
            "two regimes are called 'attention-1'",
        ),
        ({"tasks": {}}, "at least 1"),
    ],
)
def test_descriptions_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(StudyError, match=said):
        read_family_config({"base": "org/base", "tasks": ["x"], "regimes": ["full"]} | changes)


def test_files_that_describe_nothing_are_refused(tmp_path):
    with pytest.raises(StudyError, match="no file"):
        read_family_config(tmp_path / "absent.yaml")
    for text, said in (("a: [", "not valid YAML"), ("- a", "describes no family")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(StudyError, match=said):
            read_family_config(tmp_path / "bad.yaml")


def test_recipes_are_the_presets_with_what_regimes_and_tasks_change():
    config = read_family_config({
        "base": "org/base", "tasks": {"a": "x", "b": {"data": "y", "limit": 5, "recipe": {"epochs": 1}}},
        "regimes": {"full": None, "attention": {"options": {"paradigm": 2}, "recipe": {"lr": "1e-4"}}, "lora": {}},
        "recipe": {"batch": 16, "clip": None}, "seed": 4, "limit": 9,
    })  # fmt: skip
    tunes = config.fine_tunes("image")
    clip = preset("clip")
    assert set(tunes) == {(label, task) for label in ("full", "attention-2", "lora") for task in "ab"}
    assert (tunes["full", "a"].recipe.lr, tunes["attention-2", "a"].recipe.lr) == (clip.lr, 1e-4)
    assert tunes["full", "a"].recipe.steps == clip.steps and tunes["full", "a"].recipe.clip is None
    assert tunes["full", "b"].recipe.steps is None and tunes["full", "b"].recipe.epochs == 1
    assert {tune.recipe.batch for tune in tunes.values()} == {16}
    assert (tunes["full", "a"].limit, tunes["full", "b"].limit) == (9, 5)
    assert tunes["lora", "a"].options == {"seed": 4} and tunes["attention-2", "a"].regime == "attention-2"
    for kind, name in PRESET_OF.items():
        whole = read_family_config({"base": "b", "tasks": ["x"], "regimes": ["full"]})
        assert whole.fine_tunes(kind)["full", "x"].recipe == preset(name)


def test_local_paths_are_kept_in_full_and_known_tasks_by_name(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert located("mnist") == str(tmp_path / "mnist") and located("org/base") == "org/base"
    assert task_source("mnist", "mnist") == f"mnist={tmp_path / 'mnist'}"
    assert task_source("digits", "mnist") == str(tmp_path / "mnist") and task_source("dtd", "dtd") == "dtd"


def test_a_base_with_an_adapter_is_kept_with_both_paths_in_full(tmp_path, monkeypatch):
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for base, full in (
        ("base+adapter", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"),
        ("org/base@v1+adapter", f"org/base@v1+{tmp_path / 'adapter'}"),
    ):
        config = read_family_config({"base": base, "tasks": ["x"], "regimes": ["full"]})
        assert located_model(base) == config.fine_tunes("encoder")["full", "x"].base == full


def test_families_are_found_with_their_models(made):
    with pytest.raises(StudyError, match=r"several regimes: full \(left, right\); attention-1 .*--regime"):
        find_family(str(made.path))
    with pytest.raises(StudyError, match="no regime 'ful'. Did you mean: full"):
        find_family(str(made.path), "ful")
    found = find_family(str(made.path), "full")
    assert isinstance(found, OwnFamily) and list(found.models) == ["left", "right"]
    base, models = family_models(str(made.path), "full")
    assert [model.name for model in models] == ["left", "right"]
    for model in models:
        assert not torch.equal(*(m.tensor("encoder.layer.0.output.dense.weight") for m in (base, model)))


def test_families_that_are_not_there_or_damaged_are_refused(made, family, tmp_path):
    with pytest.raises(StudyError, match="no family 'clp8'. Did you mean: clip8"):
        find_family("clp8")
    with pytest.raises(StudyError, match="no directory 'nowhere'"):
        find_family("clip8=nowhere")
    with pytest.raises(StudyError, match="--regime has no meaning"):
        find_family("clip8", "full")
    with pytest.raises(StudyError, match="is no family"):
        read_family(tmp_path)
    shutil.rmtree(family / "full" / "left")
    with pytest.raises(StudyError, match="lacks .*left. Run the mergescope finetune"):
        find_family(str(family), "full")
    text = (family / FILE).read_text()
    for changed, said in (("family: 9\n" + text.partition("\n")[2], "newer"), ("tasks: [", "can't be read"),
                          ("family: 1\n", "can't be read"), ("[]", "can't be read")):  # fmt: skip
        (family / FILE).write_text(changed)
        with pytest.raises(StudyError, match=said):
            read_family(family)


def test_a_removed_model_is_made_again(inputs, made, family):
    shutil.rmtree(family / "full" / "left")
    again = run(described(inputs), family)
    assert weights_of(again.path) == weights_of(made.path)


def test_recipes_of_merges_name_all_models(made):
    recipe, opened = family_recipe(str(made.path), "full", "task_arithmetic", {})
    assert opened == {}
    assert recipe["base_model"] == made.base.reference and recipe["parameters"] == {"weight": 0.5}
    assert [each["model"] for each in recipe["models"]] == [
        str(made.path / "full" / t) for t in ("left", "right")
    ]
    assert "base_model" in family_recipe(str(made.path), "full", "ties", {"density": 0.5})[0]
    with pytest.raises(MergescopeError, match="no merge method 'tis'.*Did you mean: ties"):
        family_recipe(str(made.path), "full", "tis", {})
    with pytest.raises(MergescopeError, match="--method"):
        family_recipe(str(made.path), "full", None, {})


def test_models_are_the_same_however_many_are_trained_at_a_time(inputs, tmp_path):
    made = []
    for workers in (1, 2):
        with LocalEngine(workers) as engine:
            made.append(run(described(inputs), tmp_path / str(workers), engine=engine))
    one, two = made
    assert [(m.regime, m.task, m.key, m.digest, m.results) for m in one.members] == [
        (m.regime, m.task, m.key, m.digest, m.results) for m in two.members
    ]
    assert len(two.members) == 4 and read_family(two.path) == two
    assert all(model.finished for model in planned(described(inputs), two.path).models)


def test_a_worker_opens_the_data_of_a_task_once(inputs, tmp_path, monkeypatch):
    opened, really = [], family_run.open_task

    def counted(tune, *others):
        opened.append(tune.name)
        return really(tune, *others)

    monkeypatch.setattr(family_run, "open_task", counted)
    plan = planned(described(inputs), tmp_path / "family")
    opened.clear()
    with LocalEngine(1) as engine:
        assert len(plan.run(device="cpu", engine=engine).members) == 4
    assert sorted(opened) == ["left", "right"] and not family_run._OPENED


def test_a_worker_trains_on_other_samples_when_the_data_changed(inputs, tmp_path):
    shutil.copytree(inputs, tmp_path / "inputs")
    description = described(tmp_path / "inputs", regimes=["full"])
    with LocalEngine(2) as engine:
        first = run(description, tmp_path / "first", engine=engine)
        save_task(tmp_path / "inputs" / "left", 2)
        second = run(description, tmp_path / "second", engine=engine)
    assert all(model.finished for model in planned(description, second.path).models)
    same = [one.digest == two.digest for one, two in zip(first.members, second.members, strict=True)]
    assert [member.task for member in first.members] == ["left", "right"] and same == [False, True]


def test_errors_of_other_processes_come_through_and_what_is_done_stays(inputs, tmp_path):
    family = tmp_path / "family"
    plan = planned(described(inputs), family)
    (workplace(family / "attention-1" / "right")).mkdir(parents=True)
    (workplace(family / "attention-1" / "right") / "state.pt").write_text("no state")
    with LocalEngine(2) as engine, pytest.raises(MergescopeError, match="right"):
        plan.run(device="cpu", engine=engine)
    shutil.rmtree(workplace(family / "attention-1" / "right"))
    with LocalEngine(2) as engine:
        assert len(run(described(inputs), family, engine=engine).members) == 4


def test_steps_of_several_processes_are_not_logged(inputs, tmp_path):
    with LocalEngine(2) as engine, pytest.raises(StudyError, match="Leave the workers or the logs out"):
        run(described(inputs), tmp_path / "family", engine=engine, on_log=killing(1))


def test_a_base_that_families_share_is_paid_for_once(tmp_path):
    def write(name, base, *members):
        FamilyDirectory(tmp_path / name, Base(str(base), "digest"), {}, members).write()
        return tmp_path / name

    pretrained = write(
        "pretrained", "org/start", Member("full", "pretraining", "full", "k", "d", seconds=100)
    )
    wanted = {
        write(
            name,
            pretrained / "full" / "pretraining",
            Member("full", "a", "full", "k", "d", seconds=10),
            Member("lora", "a", "lora", "k", "d", seconds=1),
        ): ["full"]
        for name in ("first", "second")
    }
    assert training_seconds(wanted) == 120
    assert training_seconds(dict.fromkeys(wanted, ["full", "lora"])) == 122
    published = write("third", "org/base", Member("full", "a", "full", "k", "d", seconds=10))
    assert training_seconds({published: ["full"]}) == 10
