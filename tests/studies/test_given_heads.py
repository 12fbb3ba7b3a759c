"""``mergescope measure`` on fine-tunes with a head beside them, and in the linearised model."""

import json

import pytest
import torch
from given_models import encoded, labels, make, mixed, save, save_rows, texts
from given_runs import loads, losses, options, run
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from typer.testing import CliRunner

import mergescope as ms
from mergescope.cli import app
from mergescope.errors import MergescopeError, MismatchError
from mergescope.models.heads import Head, linear_head, save_head
from mergescope.models.with_head import WithHead
from mergescope.studies.given import prepare
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows
from mergescope.training import Linearized

CLASSES = {"spam": ("ham", "spam"), "mood": ("bad", "fair", "good")}
COUNT = 8


def words_of(name, seed):
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(CLASSES[name]), (COUNT,), generator=generator).tolist()
    return [CLASSES[name][place] for place in places]


def head_of(name, seed):
    head = linear_head(16, CLASSES[name], seed)
    if name == "spam":
        return head
    return Head("zero-shot", 5 * head.weight, head.classes, normalise=True)


def put_header(folder, **metadata):
    file = folder / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt", **metadata})
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base without a head, two fine-tunes of it with heads of their own beside them, and their data."""
    folder = tmp_path_factory.mktemp("heads")
    start = make("BertModel")
    save(start, folder / "base")
    data = {}
    for seed, name in enumerate(CLASSES, 1):
        save(make("BertModel", seed, start, 0.3), folder / name)
        save_head(folder / name, head_of(name, seed))
        rows = save_rows(folder / f"{name}.csv", texts(COUNT, seed), label=words_of(name, seed))
        data[name] = f"{name}={rows}"
    return folder, list(data.values())


def loss_and_accuracy(network, name, seed):
    """Of a network with a head, one text at a time."""
    with torch.no_grad():
        logits = torch.cat([network(input_ids=encoded(line)).logits for line in texts(COUNT, seed)])
    wanted = torch.tensor([CLASSES[name].index(word) for word in words_of(name, seed)])
    return F.cross_entropy(logits, wanted).item(), (logits.argmax(1) == wanted).double().mean().item()


def given(folder):
    return folder / "base", [folder / name for name in CLASSES]


def slow_losses(folder, linearized):
    """Every model under every head: model and data to loss and accuracy."""
    states = {name: loads(folder / name).state_dict() for name in ("base", *CLASSES)}
    states["spam + mood, merged"] = mixed(states["spam"], states["mood"], 0.5)
    slow = {}
    for seed, task in enumerate(CLASSES, 1):
        for model, state in states.items():
            body = loads(folder / "base")
            if linearized:
                body = Linearized(body)
            body.load_state_dict(state)
            network = WithHead(body, head_of(task, seed)).eval()
            slow[model, task] = loss_and_accuracy(network, task, seed)
    return slow


@pytest.mark.parametrize("linearized", [False, True])
@pytest.mark.parametrize("executor", ["auto", "resident"])
def test_losses_are_those_of_the_backbone_under_the_tasks_head(family, linearized, executor):
    folder, data = family
    found = run(*given(folder), data, linearized=linearized, executor=executor)
    slow = slow_losses(folder, linearized)
    assert set(found.losses) == set(slow)
    for key in found.losses:
        assert losses(found, *key) == pytest.approx(slow[key], abs=2e-5), key
    pair = found.pairs[0]
    assert pair.data == tuple(CLASSES) and found.linearized == pair.linearized == linearized
    assert pair.barrier is not None and len(pair.agreement) == 3
    assert any("linearised" in note for note in found.notes) == linearized
    for layer in pair.middle.layers:
        cosine = layer.layer == "output"  # of which one head normalises, so that its logits are not affine
        assert (layer.measures["gap"].mean < 1e-3) == (linearized and not cosine), layer.layer


def test_heads_are_not_part_of_what_is_combined(family):
    folder, data = family
    prepared = prepare(options(*given(folder), data))
    assert {held.name: sorted(held.fixed) for held in prepared.held} == {
        "spam": ["head.bias", "head.weight"], "mood": ["head.weight"],
    }  # fmt: skip
    assert all(isinstance(held.model, WithHead) and held.predicts for held in prepared.held)
    first, second = (held.model for held in prepared.held)
    assert first.backbone is second.backbone  # one in memory
    assert prepared.homes == {name: name for name in CLASSES}
    own = {name: value.clone() for name, value in first.state_dict().items()}
    prepared.run()
    assert all(torch.equal(value, own[name]) for name, value in first.state_dict().items())


def test_a_head_that_one_fine_tune_lacks_means_that_bodies_are_measured(tmp_path, family):
    folder, data = family
    bare = save(loads(folder / "mood"), tmp_path / "mood")
    found = run(folder / "base", [folder / "spam", bare], data)
    assert not found.losses and all(pair.barrier is None for pair in found.pairs)


def test_a_head_for_other_embeddings_is_an_error(tmp_path, family):
    folder, data = family
    odd = save(loads(folder / "mood"), tmp_path / "mood")
    save_head(odd, linear_head(12, CLASSES["mood"], 0))
    with pytest.raises(MismatchError, match="takes embeddings of length 12, the backbone gives 16"):
        run(folder / "base", [folder / "spam", odd], data)


# -- the linearised model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear(tmp_path_factory, classifiers, reviews):
    """The classifiers, as the linearised regime writes them."""
    folder = tmp_path_factory.mktemp("linear")
    digest = ms.Checkpoint(classifiers["base"]).digest
    for name in ("a", "b"):
        save(loads(classifiers[name]), folder / name)
        put_header(folder / name, linearized="true", base_digest=digest, regime="linearized")
    return classifiers["base"], [folder / "a", folder / "b"], [reviews]


def test_models_of_the_regime_are_measured_in_the_linearised_model(linear):
    base, models, data = linear
    found = run(base, models, data)
    traced = found.traces["reviews"]
    assert found.linearized and traced.affine and traced.executor == "affine"
    assert (
        found.notes[0].startswith("all figures are of the network linearised around base")
        and len(found.notes) == 1
    )
    assert all(pair.word == "CTL holds" and not pair.local for pair in found.pairs)
    assert all(pair.reason.startswith("By construction") for pair in found.pairs)
    assert max(layer.measures["gap"].mean for pair in found.pairs for layer in pair.middle.layers) < 1e-3
    again = run(base, models, data, linearized=True)
    assert again.losses == found.losses and again.notes == found.notes
    network = loads(base)
    body = Linearized(network)
    body.load_state_dict(loads(models[0]).state_dict())
    with torch.no_grad():
        logits = torch.cat([body(input_ids=encoded(line)).logits for line in texts()])
    wanted = torch.tensor(labels(10, 2))
    assert losses(found, "a", "reviews")[0] == pytest.approx(F.cross_entropy(logits, wanted).item(), abs=1e-5)


def test_the_ordinary_network_is_measured_where_that_is_asked_for(linear, classifiers):
    base, models, data = linear
    found = run(base, models, data, linearized=False)
    plain = run(base, [classifiers["a"], classifiers["b"]], data)
    assert found.losses == plain.losses and not found.linearized and found.notes == plain.notes == []
    assert not found.traces["reviews"].affine and all(pair.local for pair in found.pairs)


def test_any_fine_tunes_are_measured_in_it_where_that_is_asked_for(classifiers, linear):
    base, models, data = linear
    found = run(base, [classifiers["a"], classifiers["b"]], data, linearized=True)
    assert found.losses == run(base, models, data).losses
    assert found.notes[1].startswith(
        "a, b were not trained in the linearised regime: their task vectors are put into"
    )


def test_what_was_trained_so_only_in_part_is_measured_in_the_ordinary_network(tmp_path, classifiers, linear):
    base, models, data = linear
    found = run(base, [models[0], classifiers["b"]], data)
    assert not found.linearized
    assert found.notes == [
        "a was trained in the linearised regime, and b was not: measured in the ordinary network"
    ]
    alone = run(None, models, data)
    assert not alone.linearized and "there is no base to linearise around" in alone.notes[0]


def test_another_base_than_the_one_trained_around(classifiers, linear):
    _, models, data = linear
    other = f"other={classifiers['a']}"
    found = run(other, models[1:], data)
    assert not found.linearized and "around another base than other" in found.notes[0]
    with pytest.raises(MismatchError, match="b: linearised around [0-9a-f]+\nGive the base"):
        run(other, models[1:], data, linearized=True)


def test_a_base_in_half_precision_is_still_the_origin(tmp_path, linear):
    base, models, data = linear
    half = save(loads(base).to(torch.bfloat16), tmp_path / "half")
    digest = ms.Checkpoint(half).digest
    own = []
    for model in models:
        own.append(save(loads(model), tmp_path / model.name))
        put_header(own[-1], linearized="true", base_digest=digest)
    found = run(f"base={half}", own, data)  # read as float32, for that is what the fine-tunes are
    assert found.linearized and any("read as float32" in note for note in found.notes)


def test_what_the_linearised_model_can_not_do(tmp_path, linear):
    base, models, data = linear
    with pytest.raises(MergescopeError, match="linearised around the base. Give a base"):
        run(None, models, data, linearized=True)
    for executor in ("streamed", "batched"):
        for wanted in (True, None):
            with pytest.raises(
                MergescopeError, match=f"The {executor} executor can't run a linearised network"
            ):
                run(base, models, data, linearized=wanted, executor=executor)
    packed = tmp_path / "model.gguf"
    packed.write_bytes(b"GGUF")
    with pytest.raises(MergescopeError, match=r"model.gguf: the weights of a GGUF file are rounded"):
        run(base, [packed], data, linearized=True)


@pytest.mark.parametrize("executor", ["auto", "resident"])
def test_a_plan_costs_what_it_says(linear, executor):
    prepared = prepare(options(*linear, executor=executor, alphas=(0.25, 0.5)))
    plan = prepared.plan()
    found = prepared.run()
    traced = found.traces["reviews"]
    assert plan["forward_passes"] == traced.forward_passes == (3 if executor == "auto" else 9) * 3
    assert plan["local_passes"] == traced.local_passes == 0 and plan["points"] == 9


def test_a_narrower_type_has_no_error_to_tell(linear):
    base, models, data = linear
    found = run(base, models, data, "bfloat16")
    assert found.linearized and not any("computed in" in note for note in found.notes)


def test_the_command_writes_that_figures_are_of_the_linearised_model(tmp_path, linear, classifiers):
    base, models, data = linear
    common = ["measure", "--base", base, "--data", *data, "--out"]

    def typed(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    said = typed(*common, tmp_path / "one", "--models", *models)
    assert "linearised around base" in " ".join(said.split())
    about = RunDirectory(tmp_path / "one").read_run()
    assert any("linearised" in note for note in about["provenance"]["notes"])
    assert all("By construction" in told["reason"] for told in about["provenance"]["verdicts"])
    assert "linearised around base" in (tmp_path / "one" / "report.html").read_text()
    typed(*common, tmp_path / "two", "--linearized", "--models", classifiers["a"], classifiers["b"])
    accuracies = [
        [
            (row.points, row.measure, row.mean)
            for row in read_rows(tmp_path / name / RESULTS)
            if row.kind == "accuracy"
        ]
        for name in ("one", "two")
    ]
    assert accuracies[0] == accuracies[1]
    plain = json.loads(typed(*common[:-1], "--no-linearized", "--json", "--models", *models))
    assert plain["notes"] == []
    assert RunDirectory(tmp_path / "two").read_run()["config"]["settings"]["linearized"] is True
