"""``mergescope measure`` on what people have, against slow computations with transformers alone."""

import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given_models import encoded, labels, make, mixed, save, save_rows, texts
from given_runs import assert_alike, loads, loss_and_accuracy, losses, options, run, said
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mergescope.errors import CheckpointError, DataError, LayerError, MergescopeError, MismatchError
from mergescope.protocols.measure import HeldOut
from mergescope.studies import networks
from mergescope.studies.given import prepare
from mergescope.studies.measured import to_dict
from mergescope.studies.protocol_runs import Opened

# -- classifiers -----------------------------------------------------------------------------------


def test_models_with_equal_heads_are_what_transformers_makes_of_them(classifiers, reviews):
    found = run(classifiers["base"], [classifiers["a"], classifiers["b"]], [reviews], alphas=(0.25, 0.5))
    lines, wanted = texts(), labels(10, 2)
    networks_ = {name: loads(folder) for name, folder in classifiers.items()}
    states = {name: network.state_dict() for name, network in networks_.items()}
    for name, network in networks_.items():
        assert losses(found, name, "reviews") == pytest.approx(
            loss_and_accuracy(network, lines, wanted), abs=1e-5
        )
    pair = found.pairs[0]
    seen = {}
    for alpha, state in (
        (0.25, mixed(states["a"], states["b"], 0.25)),
        (0.5, mixed(states["a"], states["b"], 0.5)),
    ):
        merged = make("BertForSequenceClassification").eval()
        merged.load_state_dict(state)
        loss, accuracy = loss_and_accuracy(merged, lines, wanted)
        at = pair.barrier.alphas.tolist().index(alpha)
        assert pair.barrier.loss[at] == pytest.approx(loss, abs=1e-5)
        assert pair.barrier.error[at] == pytest.approx(1 - accuracy)
        seen[alpha] = merged
    assert losses(found, "a + b, merged", "reviews") == pytest.approx((loss, accuracy), abs=1e-5)
    for layer in range(3):
        cosines = []
        for line in lines:
            m, f, g = (
                network(input_ids=encoded(line), output_hidden_states=True).hidden_states[layer + 1].flatten()
                for network in (seen[0.5], networks_["a"], networks_["b"])
            )
            cosines.append(F.cosine_similarity(m, (f + g) / 2, dim=0).item())
        cos = pair.middle[f"bert.encoder.layer.{layer}"].measures["cos"]
        assert (cos.mean, cos.n) == (pytest.approx(np.mean(cosines), abs=1e-5), 10)
    assert found.notes == [] and found.base == "base" and found.models == ("a", "b")


HEADS = {"two": 2, "three": 3, "five": 5}


@pytest.fixture(scope="module", params=["BertForMaskedLM", "BertModel", "BertForSequenceClassification"])
def tasks(request, tmp_path_factory):
    """A base of a class, fine-tunes with other heads than it has, and the data of their tasks."""
    folder = tmp_path_factory.mktemp(request.param)
    start = make(request.param, **({"num_labels": 4} if "Sequence" in request.param else {}))
    save(start, folder / "base")
    data = []
    for seed, (name, classes) in enumerate(HEADS.items(), 1):
        tuned = make("BertForSequenceClassification", seed, start, num_labels=classes)
        save(tuned, folder / name, tokenizer=False)  # as people do
        rows = save_rows(folder / f"rows-{name}.csv", texts(9, seed), label=labels(9, classes, seed))
        data.append(f"{name}={rows}")
    return folder, data


def body_with_head(folder, head, states):
    """The network of a task whose body is that of other weights, where they have one."""
    network = loads(folder / head)
    own = network.state_dict()
    for key, value in states.items():
        name = key if key.startswith("bert.") else f"bert.{key}"
        if name in own and not key.startswith("classifier"):
            own[name] = value
    network.load_state_dict(own)
    return network


def test_tasks_are_measured_through_their_own_heads(tasks):
    folder, data = tasks
    found = run(folder / "base", [folder / name for name in HEADS], data)
    states = {name: loads(folder / name).state_dict() for name in ("base", *HEADS)}
    pooled = any("pooler" in key for key in states["base"])
    for seed, (name, classes) in enumerate(HEADS.items(), 1):
        lines, wanted = texts(9, seed), labels(9, classes, seed)
        for model in ("base", *HEADS):
            body = {key: value for key, value in states[model].items() if pooled or "pooler" not in key}
            slow = loss_and_accuracy(body_with_head(folder, name, body), lines, wanted)
            assert losses(found, model, name) == pytest.approx(slow, abs=1e-5), (model, name)
        for other in HEADS:
            merged = found.losses.get((f"{name} + {other}, merged", name))
            if merged is None:
                continue
            shared = states[name].keys() & states[other].keys()
            body = {key: (states[name][key] + states[other][key]) / 2 for key in shared
                    if "classifier" not in key and (pooled or "pooler" not in key)}  # fmt: skip
            slow = loss_and_accuracy(body_with_head(folder, name, body), lines, wanted)
            assert (merged["loss"].mean, merged["accuracy"].mean) == pytest.approx(slow, abs=1e-5)
    kinds = Counter(pair.kind for pair in found.pairs)
    assert kinds == {"FT–FT": 3, "PT–FT": 3} and all(pair.barrier is not None for pair in found.pairs)
    assert "each data set runs through its own model's head" in found.notes[0]
    assert any(note.endswith("two, three, five") and "classifier.bias" in note for note in found.notes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("owned", [True, False])
def test_streamed_and_resident_are_the_same_whatever_the_heads(tasks, reviews, owned, dtype):
    folder, data = tasks
    one, two = (
        run(folder / "base", [folder / "two", folder / "three"], data[:2] if owned else [reviews], dtype,
            executor=executor)
        for executor in ("resident", "streamed")
    )  # fmt: skip
    assert two.traces["two" if owned else "reviews"].executor == "streamed"
    assert_alike(said(one), said(two))


def test_data_of_nobody_are_measured_on_the_body_alone(tasks, reviews):
    folder, _ = tasks
    found = run(folder / "base", [folder / name for name in HEADS], [reviews])
    assert not found.losses and all(not pair.agreement and pair.barrier is None for pair in found.pairs)
    headless = type(loads(folder / "base")).__name__ == "BertModel"
    assert ("output" in found.traces["reviews"].layers) == headless
    assert "name data like the models" in found.notes[0] and "--data NAME=" in found.notes[0]
    first = found.pairs[0].middle.layers[0].measures["cos"]
    tuned = [folder / name for name in HEADS]
    again = run(None, tuned, [reviews], rows={"processor": folder / "base"}).pairs[0].middle.layers[0]
    assert first.mean == pytest.approx(again.measures["cos"].mean, abs=1e-6)


def test_labels_of_other_heads_are_no_mistake_where_outputs_are_not_compared(tasks):
    folder, data = tasks
    rows = data[2].partition("=")[2]  # five classes, and the first model has two
    found = run(
        None, [folder / "two", folder / "three"], [f"rows={rows}"], rows={"processor": folder / "base"}
    )
    assert found.pairs[0].middle.samples == 9 and not found.losses


def test_all_data_are_for_the_only_fine_tune(tasks, reviews):
    folder, data = tasks
    rows = data[0].partition("=")[2]
    found = run(folder / "base", [folder / "two"], [f"first={rows}", f"second={rows}"])
    assert losses(found, "two", "first") == losses(found, "two", "second")
    slow = loss_and_accuracy(loads(folder / "two"), texts(9, 1), labels(9, 2, 1))
    assert losses(found, "two", "first") == pytest.approx(slow, abs=1e-5)


def test_data_of_the_only_fine_tune_are_its_task_or_keep_their_names():
    def names(*data):
        held = [HeldOut(name, [], None, "org/a") for name in data]
        return list(Opened(SimpleNamespace(held=held)).data)

    assert names("x") == ["org/a"]
    assert names("x", "y") == ["x", "y"]
    assert names("a", "control") == ["org/a", "control"]


def test_statistics_are_re_estimated_on_a_share_of_each_data_set(classifiers, tmp_path):
    data = [save_rows(tmp_path / name / "test.csv", texts(seed=seed)) for seed, name in enumerate("xy")]
    models = [classifiers["a"], classifiers["b"]]
    specs = [f"{path.parent.name}={path}" for path in data]
    given = prepare(options(classifiers["base"], models, specs), calibrate=True)
    taken = [batch["input_ids"].tolist() for batch in given.settings.calibration]
    every = {name: [batch["input_ids"].tolist() for batch in given.batches[name]] for name in "xy"}
    assert [len(each) for each in every.values()] == [3, 3]
    assert taken == [*every["x"][::2], *every["y"][::2]]
    prints = [one.fingerprint for one in given.batches.values()]
    assert all(said in given.settings.calibration.fingerprint for said in prints)


def test_heads_of_several_layers_are_not_merged_in_part(tmp_path):
    start = make("RobertaForSequenceClassification")
    data = []
    for seed, classes in ((1, 2), (2, 3)):
        save(
            make("RobertaForSequenceClassification", seed, start, num_labels=classes),
            tmp_path / f"m{classes}",
        )
        data.append(
            f"m{classes}={save_rows(tmp_path / f'{classes}.csv', texts(6), label=labels(6, classes))}"
        )
    found = run(None, [tmp_path / "m2", tmp_path / "m3"], data)
    one, two = (loads(tmp_path / name) for name in ("m2", "m3"))
    body = mixed(one.roberta.state_dict(), two.roberta.state_dict(), 0.5)
    one.roberta.load_state_dict(body)
    slow = loss_and_accuracy(one, texts(6), labels(6, 2))
    assert losses(found, "m2 + m3, merged", "m2") == pytest.approx(slow, abs=1e-5)


@pytest.mark.parametrize("lacking", ["base", "tuned"])
def test_a_pooler_that_one_model_lacks_is_left_out(tmp_path, reviews, lacking):
    start = make("BertModel")
    for seed, name in enumerate(("base", "tuned", "other")):
        save(start if not seed else make("BertModel", seed, start), tmp_path / name)
    file = tmp_path / lacking / "model.safetensors"
    save_file(
        {key: value for key, value in load_file(file).items() if "pooler" not in key}, file, {"format": "pt"}
    )
    found = run(tmp_path / "base", [tmp_path / "tuned", tmp_path / "other"], [reviews])
    assert found.traces["reviews"].layers == tuple(f"encoder.layer.{n}" for n in range(3))
    assert any("pooler.dense.weight" in note for note in found.notes)
    whole = run(tmp_path / ("tuned" if lacking == "base" else "base"), [tmp_path / "other"], [reviews])
    name = f"{'tuned + other' if lacking == 'base' else 'base + other'}"
    pair = next(pair for pair in found.pairs if pair.name == name)
    for layer in found.traces["reviews"].layers:
        here, there = (p.middle[layer].measures["cos"].mean for p in (pair, whole.pairs[0]))
        assert here == pytest.approx(there, abs=1e-6)


def test_tables_of_indices_are_not_worth_a_note(tmp_path, classifiers, reviews):
    state = load_file(classifiers["a"] / "model.safetensors")
    save(loads(classifiers["a"]), tmp_path / "a")
    state["bert.embeddings.position_ids"] = torch.arange(32).unsqueeze(0)
    save_file(state, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    old, new = (
        run(classifiers["base"], [a, classifiers["b"]], [reviews]) for a in (tmp_path / "a", classifiers["a"])
    )
    assert old.notes == [] and said(old)["pairs"] == said(new)["pairs"]


def test_classes_of_other_libraries_share_a_body_without_outputs(tmp_path, reviews):
    start = make("BertModel")
    save(start, tmp_path / "base")
    save(make("BertModel", 1, start), tmp_path / "embedder")
    save(make("BertForSequenceClassification", 2, start), tmp_path / "classifier")
    data = [f"embedder={reviews}", f"classifier={reviews}"]
    found = run(tmp_path / "base", [tmp_path / "embedder", tmp_path / "classifier"], data)
    assert (
        "their own heads are not used: the layers of the models' networks have different names"
        in found.notes[0]
    )
    assert found.traces["classifier"].layers[0] == "encoder.layer.0" and len(found.pairs) == 3


# -- plans, costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alphas": (0, 0.25, 0.5, 0.5, 1)},
        {"local": False},
        {"centred": True, "features": "mean"},
        {"layers": "output"},
        {"executor": "streamed"},
        {"executor": "batched"},
        {"executor": "batched", "centred": True, "features": "mean"},
    ],
)
def test_a_plan_costs_what_it_says(classifiers, reviews, settings):
    same = [classifiers["a"], f"again={classifiers['a']}"]  # equal points run once
    for base, models in ((classifiers["base"], same), (None, [classifiers["a"], classifiers["b"]])):
        if base is None and settings.get("centred"):
            continue
        given = prepare(options(base, models, [reviews], **settings))
        plan, found = given.plan(), given.run()
        cost = to_dict(found)["cost"]
        assert {name: plan[name] for name in ("points", "forward_passes", "local_passes")} == {
            name: cost[name] for name in ("points", "forward_passes", "local_passes")
        }
        assert plan["samples"] == {"reviews": 10} and plan["pairs"] == len(found.pairs)
        assert plan["layers"] == len(found.traces["reviews"].layers)


def test_a_plan_of_tasks_costs_what_it_says(tasks):
    folder, data = tasks
    given = prepare(options(folder / "base", [folder / name for name in HEADS], data))
    plan, cost = given.plan(), to_dict(given.run())["cost"]
    for name in ("points", "forward_passes", "local_passes"):
        assert plan[name] == cost[name]
    assert plan["samples"] == {"two": 9, "three": 9, "five": 9}


def test_every_network_is_built_once(tasks, classifiers, reviews, monkeypatch):
    folder, data = tasks
    built = []
    load = networks.load_model
    monkeypatch.setattr(
        networks, "load_model", lambda source, **how: built.append(source.name) or load(source, **how)
    )
    given = prepare(options(folder / "base", [folder / name for name in HEADS], data))
    assert built == list(HEADS)
    one, *others = (held.model.state_dict() for held in given.held)
    body = [name for name in one if name not in given.held[0].fixed]
    assert all(one[name].data_ptr() == other[name].data_ptr() for other in others for name in body)
    assert all(
        one[name].data_ptr() != other[name].data_ptr() for other in others for name in given.held[0].fixed
    )
    built.clear()
    prepare(options(classifiers["base"], [classifiers["a"]], [f"x={reviews}", f"y={reviews}"]))
    assert built == ["base"]
    built.clear()
    prepare(options(folder / "base", [folder / "two"], [f"x={reviews}", f"y={reviews}"]))
    assert built == ["two"]


# -- what else people ask for ----------------------------------------------------------------------


def test_two_models_without_a_base(classifiers, reviews):
    found = run(None, [classifiers["a"], classifiers["b"]], [reviews])
    (pair,) = found.pairs
    assert found.base is None and pair.name == "a + b" and not pair.local
    assert set(pair.middle.layers[0].measures) == {"cos", "coef", "gap", "gap_between", "baseline"}


def test_a_single_sample_has_a_verdict(classifiers, reviews):
    found = run(classifiers["base"], [classifiers["a"]], [reviews], rows={"limit": 1})
    cos = found.pairs[0].middle.layers[0].measures["cos"]
    assert (cos.n, cos.low, cos.high) == (1, pytest.approx(cos.mean), pytest.approx(cos.mean))
    assert found.pairs[0].word in ("CTL holds", "LLFC only", "not linear")


def test_data_without_labels_have_no_loss(tmp_path, classifiers):
    (tmp_path / "plain.txt").write_text("\n".join(texts()))
    found = run(classifiers["base"], [classifiers["a"]], [tmp_path / "plain.txt"])
    assert not found.losses and found.pairs[0].barrier is None and found.pairs[0].agreement
    assert "plain: no column holds labels, so accuracy and loss can't be measured" in found.notes


def test_limit_none_takes_all_rows(tmp_path, classifiers):
    rows = save_rows(tmp_path / "many.csv", ["w1 w2"] * 600, label=[0, 1] * 300)
    for limit, count in ((512, 512), (None, 600)):
        given = prepare(options(classifiers["base"], [classifiers["a"]], [rows], rows={"limit": limit}))
        assert given.batches["many"].samples == count


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_tokens_as_samples_and_centred_features(classifiers, reviews, executor):
    given = (classifiers["base"], [classifiers["a"]], [reviews])
    tokens = sum(encoded(line).shape[1] for line in texts())
    each = run(*given, features="each", executor=executor)
    assert each.pairs[0].middle.layers[0].measures["cos"].n == tokens and each.pairs[0].middle.samples == 10
    plain, centred = (run(*given, features="mean", centred=flag, executor=executor) for flag in (False, True))
    network = {name: loads(classifiers[name]) for name in ("base", "a")}
    states = {name: one.state_dict() for name, one in network.items()}
    network["mid"] = make("BertForSequenceClassification")
    network["mid"].load_state_dict(mixed(states["base"], states["a"], 0.5))
    features = {
        name: torch.stack([
            one(input_ids=encoded(line), output_hidden_states=True).hidden_states[2][0].mean(0) for line in texts()
        ]) for name, one in network.items()
    }  # fmt: skip
    for found, centre in ((plain, 0), (centred, features["base"].mean(0))):
        mix = (features["base"] + features["a"]) / 2 - centre
        cos = F.cosine_similarity(features["mid"] - centre, mix).mean().item()
        assert found.pairs[0].middle["bert.encoder.layer.1"].measures["cos"].mean == pytest.approx(
            cos, abs=1e-5
        )
    with pytest.raises(LayerError, match="Choose features mean, last, cls or each"):
        run(*given, features="all", centred=True, executor=executor)


def test_names_are_given_or_made_distinct(tmp_path, classifiers, reviews):
    for name in ("a", "b"):
        save(loads(classifiers[name]), tmp_path / name / "model", tokenizer=False)
    folders = [tmp_path / name / "model" for name in "ab"]
    assert run(None, folders, [reviews], rows={"processor": classifiers["base"]}).models == (
        "model",
        str(folders[1]),
    )
    named = [f"first={folders[0]}", f"second={folders[1]}"]
    rows = {"processor": classifiers["base"]}
    assert run(None, named, [reviews], rows=rows).models == ("first", "second")
    assert run(None, [folders[0], named[1]], [reviews], rows=rows).models == ("model", "second")
    assert run(None, [named[0], folders[1]], [reviews], rows=rows).models == ("first", str(folders[1]))
    with pytest.raises(
        MergescopeError, match="Two models are called model. Give each a name of its own: NAME=path"
    ):
        run(None, [folders[0], f"model={folders[1]}"], [reviews], rows=rows)


def test_models_of_the_hub_are_called_by_the_last_part_of_their_id(classifiers, reviews):
    import huggingface_hub

    for name in ("base", "a", "b"):
        place = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--tiny--{name}"
        shutil.copytree(classifiers[name], place / "snapshots" / "0123")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0123")
    given = prepare(options("tiny/base", ["tiny/a", "tiny/b"], [f"a={reviews}", f"b={reviews}"]))
    assert [held.owner for held in given.held] == ["tiny/a", "tiny/b"]
    assert {name: model["commit"] for name, model in given.provenance()["models"].items()} == dict.fromkeys(
        ("tiny/base", "tiny/a", "tiny/b"), "0123"
    )
    assert given.run().pairs[0].data == ("a", "b")
    with pytest.raises(DataError, match=r"There are no data for tiny/b. Give --data b=\.\.\. as well"):
        run("tiny/base", ["tiny/a", "tiny/b"], [f"a={reviews}"])


# -- mistakes --------------------------------------------------------------------------------------


def test_too_few_models(classifiers, reviews):
    for base, models in ((None, [classifiers["a"]]), (classifiers["base"], [])):
        with pytest.raises(
            MergescopeError, match="two models: --base and one of --models, or two of --models"
        ):
            run(base, models, [reviews])


def test_data_that_are_named_like_some_models_only(classifiers, reviews):
    models = [classifiers["a"], classifiers["b"]]
    with pytest.raises(DataError, match=r"named like models \(a\) and some are not \(reviews\)"):
        run(classifiers["base"], models, [f"a={reviews}", reviews])
    with pytest.raises(DataError, match=r"There are no data for b. Give --data b="):
        run(classifiers["base"], models, [f"a={reviews}"])
    with pytest.raises(DataError, match="Two data sets are called 'reviews'"):
        run(classifiers["base"], models, [reviews, reviews])
    with pytest.raises(DataError, match="There are no data to measure on"):
        run(classifiers["base"], models, [])


def test_data_that_are_not_there(tmp_path, classifiers, reviews):
    with pytest.raises(DataError, match=r"no file or directory .*Did you mean: .*reviews.csv"):
        run(classifiers["base"], [classifiers["a"]], [reviews.parent / "review.csv"])


def test_data_that_do_not_fit_are_named_with_the_model(tmp_path, classifiers):
    rows = save_rows(tmp_path / "three.csv", texts(6), label=[0, 1, 2] * 2)
    with pytest.raises(
        DataError, match=r"^three, for the network of base: The label column 'label' has 2 in row"
    ):
        run(classifiers["base"], [classifiers["a"], classifiers["b"]], [rows])


def test_models_that_are_not_there_are_all_named(tmp_path, classifiers, reviews):
    with pytest.raises(CheckpointError) as told:
        run(classifiers["base"], [f"x={tmp_path / 'x'}", tmp_path / "y"], [reviews])
    assert all(f"{tmp_path / name} can't be opened" in str(told.value) for name in "xy")


def test_no_tokenizer_says_what_to_do(tmp_path, classifiers, reviews):
    for name in ("base", "a"):
        save(loads(classifiers[name]), tmp_path / name, tokenizer=False)
    with pytest.raises(DataError, match=r"no tokenizer in .*--tokenizer DIR, for example that of the base"):
        run(tmp_path / "base", [tmp_path / "a"], [reviews])
    found = run(tmp_path / "base", [tmp_path / "a"], [reviews], rows={"processor": classifiers["base"]})
    assert_alike(said(found), said(run(classifiers["base"], [classifiers["a"]], [reviews])), 0)


@pytest.mark.parametrize("owned", [True, False])
def test_a_resized_vocabulary_under_another_head_is_told(tmp_path, classifiers, reviews, owned):
    start = loads(classifiers["base"])
    save(make("BertForSequenceClassification", 1, start, vocab_size=44, num_labels=3), tmp_path / "big")
    data = [f"big={reviews}", f"a={reviews}"] if owned else [reviews]
    with pytest.raises(MismatchError) as told:
        run(classifiers["base"], [tmp_path / "big", classifiers["a"]], data)
    assert "[44, 16] in big" in str(told.value) or "[40, 16] in base" in str(told.value)
    assert "word_embeddings" in str(told.value) and "same vocabulary" in str(told.value)


def test_unrelated_architectures_are_told(tmp_path, classifiers, reviews):
    save(make("GPT2LMHeadModel"), tmp_path / "gpt")
    with pytest.raises(MismatchError) as told:
        run(classifiers["base"], [classifiers["a"], tmp_path / "gpt"], [reviews])
    (problem,) = told.value.problems
    assert problem.startswith("gpt shares no tensor with the network: it has ")
    save(make("BertForSequenceClassification", num_hidden_layers=2), tmp_path / "shallow")
    with pytest.raises(
        MismatchError, match=r"bert\.encoder\.layer\.2\.\S+: .*\[16\] in base, not in the network"
    ):
        run(classifiers["base"], [tmp_path / "shallow"], [reviews])


def test_an_unknown_dtype_and_executor(classifiers, reviews):
    given = (classifiers["base"], [classifiers["a"]], [reviews])
    with pytest.raises(MergescopeError, match="no dtype 'bfloat'.*Did you mean: bfloat16"):
        run(*given, "bfloat")
    with pytest.raises(MergescopeError, match="no executor 'streamd'. Did you mean: streamed"):
        run(*given, executor="streamd")
    with pytest.raises(MergescopeError, match="device='gpu' can't be used"):
        run(*given, device="gpu")


def test_the_output_of_other_heads_is_nothing_to_measure(tasks, reviews):
    folder, _ = tasks
    given = (folder / "base", [folder / "two", folder / "three"], [reviews])
    if type(loads(folder / "base")).__name__ == "BertModel":  # its output is no head's
        assert run(*given, layers="output").traces["reviews"].layers == ("output",)
        return
    with pytest.raises(MergescopeError, match="There is nothing to compare: only the output was asked for"):
        run(*given, layers="output")


def test_weights_that_are_nan_are_refused(tmp_path, classifiers, reviews):
    network = loads(classifiers["a"])
    with torch.no_grad():
        network.classifier.bias[0] = math.nan
    save(network, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"a .*has NaN or infinite weights in classifier.bias"):
        run(classifiers["base"], [tmp_path / "a"], [reviews])
