"""Stitching: against hooks that replace a block's output, costs, choices, errors."""

import itertools

import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from support import NETS, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import CheckpointError, DataError, LayerError, MergescopeError, PointError
from mergescope.models.heads import linear_head
from mergescope.models.with_head import WithHead
from mergescope.protocols.linear_model import linearized_in_place
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.stitching import (
    ADDITION_GRID,
    StitchingSettings,
    plan,
    stitch_addition,
    stitch_negation,
)
from mergescope.tracing.rest import blocks_of
from mergescope.tracing.stitched import Mixture, stitch
from mergescope.weights import Point

NAMES = ("a", "b", "c")
KINDS = [*NETS, *(f"tiny {kind}" for kind in tiny.MAKERS if kind != "clip")]


def settings(**more):
    return StitchingSettings(**{"lams": (0.25, 0.5), "progress": False} | more)


def given(kind="vit", scale=0.3, tasks=NAMES):
    """A network, a base, fine-tunes and held-out data of their tasks."""
    if kind.startswith("tiny "):
        net = tiny.tiny(kind[5:])
        batches = {name: tiny.batches_for(kind[5:], size=2 + i) for i, name in enumerate(tasks)}
        if kind == "tiny t5":  # the first token that it should write
            for batch in itertools.chain(*batches.values()):
                batch["labels"] = torch.arange(len(batch["input_ids"])) + 5
    else:
        net = make_net(kind)
        batches = {name: labelled_batches(9, 4, seed=i) for i, name in enumerate(tasks)}
    base, *models = family(net, scale=scale)
    test = {name: HeldOut(name, some, net, name) for name, some in batches.items()}
    return net, base, dict(zip(tasks, models, strict=False)), test


def arguments(batch):
    """Inputs of a batch, and labels or None."""
    if isinstance(batch, tuple):
        return {"x": batch[0]}, batch[1]
    return {key: value for key, value in batch.items() if key != "labels"}, batch.get("labels")


def run(net, batch):
    """One plain call."""
    inputs, _ = arguments(batch)
    if getattr(net.config, "is_encoder_decoder", False) if hasattr(net, "config") else False:
        inputs["decoder_input_ids"] = torch.zeros(len(inputs["input_ids"]), 1).long()
    with torch.no_grad():
        found = net(**inputs)
    return getattr(found, "logits", found)


def slow_outputs(net, base, mixture, layer, batches):
    """What the base says if a hook replaces what a block returns, batch by batch."""
    module, said = net.get_submodule(layer), []
    for batch in batches:
        total = 0.0
        for model, share in mixture:
            ms.load_weights(net, model)
            kept = []
            handle = module.register_forward_hook(
                lambda module, args, output, kept=kept: kept.append(
                    (output if isinstance(output, torch.Tensor) else output[0]).double()
                )
            )
            run(net, batch)
            handle.remove()
            total = total + share * kept[0]
        ms.load_weights(net, base)
        handle = module.register_forward_hook(
            lambda module, args, output, total=total: (
                total.float() if isinstance(output, torch.Tensor) else (total.float(), *output[1:])
            )
        )
        said.append(run(net, batch))
        handle.remove()
    return said


def slow_losses(kind, said, batches):
    """Cross-entropy of each sample, text by text for language models."""
    losses = []
    for logits, batch in zip(said, batches, strict=True):
        inputs, labels = arguments(batch)
        if kind[5:] in tiny.DECODERS:
            for row, ids, mask in zip(logits, inputs["input_ids"], inputs["attention_mask"], strict=True):
                text, row = ids[mask.bool()], row[mask.bool()]
                loss = nn.functional.cross_entropy(row[:-1], text[1:]) if len(text) > 1 else np.nan
                losses.append(float(loss))
        else:
            logits = logits[:, 0] if kind == "tiny t5" else logits
            losses += nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
    return np.array(losses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["addition", "negation"])
def test_stitched_networks_are_those_of_hooks_that_replace_an_output(kind, protocol):
    net, base, models, test = given(kind, tasks=("a", "b"))
    if protocol == "addition":
        found = stitch_addition(base, models, test, settings(lams=(0.4,)))
        far = {name: base + 0.8 * (model - base) for name, model in models.items()}
        wanted = {
            ("mixed", "a + b"): [(far["a"], 0.5), (far["b"], 0.5)],
            **{("single", name): [(point, 1.0)] for name, point in far.items()},
        }
    else:
        found = stitch_negation(base, models, test, settings(lams=(0.4,)))
        tau = models["a"] - base
        wanted = {
            ("mixed", "- a"): [(base, 2.0), (base + 0.4 * tau, -1.0)],
            ("single", "- a"): [(base - 0.4 * tau, 1.0)],
        }
    for (how, points), data in itertools.product(wanted, "ab"):
        batches, layers = test[data].batches, found.layers[data]
        for layer in (layers[0], layers[-1]):
            said = slow_outputs(net, base, wanted[how, points], layer, batches)
            losses = slow_losses(kind, said, batches)
            (score,) = found.select(kind=how, points=points, data=data, layer=layer)
            np.testing.assert_allclose(score.loss.mean, np.nanmean(losses), rtol=2e-4)
            assert score.loss.n == np.isfinite(losses).sum() and score.accuracy.n == score.loss.n
    whole = wanted["single", "a" if protocol == "addition" else "- a"][0][0]
    ms.load_weights(net, whole)
    losses = slow_losses(kind, [run(net, batch) for batch in test["b"].batches], test["b"].batches)
    (score,) = found.select(kind="whole", points="a" if protocol == "addition" else "- a", data="b")
    np.testing.assert_allclose(score.loss.mean, np.nanmean(losses), rtol=2e-4)


def test_accuracy_is_the_share_of_right_predictions():
    net, base, models, test = given("mlp", scale=1.0)
    found = stitch_addition(base, models, test, settings(lams=(0.5,)))
    mixture = [(models["a"], 0.5), (models["c"], 0.5)]
    said = torch.cat(slow_outputs(net, base, mixture, "blocks.0", test["c"].batches))
    right = said.argmax(1) == torch.cat([y for _, y in test["c"].batches])
    (score,) = found.select(kind="mixed", points="a + c", data="c", layer="blocks.0")
    assert score.accuracy.mean == pytest.approx(float(right.double().mean())) and score.accuracy.n == 9


# -- cost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [stitch_addition, stitch_negation])
def test_every_point_runs_once_whatever_the_number_of_layers_and_coefficients(protocol):
    net, base, models, test = given("vit")
    batches = len(test["a"].batches)
    counts = {"blocks.0": [], "blocks.1": []}
    for name, calls in counts.items():
        net.get_submodule(name).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
    lams = (0.0, 0.25, 0.5)
    found = protocol(base, models, test, settings(lams=lams))
    name = "addition" if protocol is stitch_addition else "negation"
    planned = plan(name, base, models, test, settings(lams=lams))
    # Addition: 3 models at 2 coefficients that are not 0. Negation: to either side.
    points = 1 + 3 * 2 * (1 if name == "addition" else 2)
    assert planned["points"] == dict.fromkeys(NAMES, points)
    assert found.forward_passes == 3 * points * batches
    mixtures = 2 * (2 + 3) if name == "addition" else 2 * 3 * 2
    assert planned["rest_passes_a_batch"] == dict.fromkeys(NAMES, mixtures * 2)
    assert found.rest_passes == 3 * mixtures * 2 * batches
    equivalent = planned["equivalent_passes_a_batch"]["a"]
    assert (
        equivalent == points + mixtures / 2
    )  # after the first of two blocks one is left, after the last none
    # Stand-ins are called as modules, so that only passes through points and looks at a batch run blocks.
    ran = [len(calls) - found.rest_passes for calls in counts.values()]
    assert all(found.forward_passes <= some <= found.forward_passes + 3 * 4 for some in ran)


def test_blocks_before_the_stitch_do_not_run_again():
    net, base, models, test = given("vit")
    inside = []
    net.get_submodule("blocks.0.norm1").register_forward_hook(lambda *_: inside.append(1))
    found = stitch_addition(base, models, test, settings())
    assert found.rest_passes > found.forward_passes > 0
    assert found.forward_passes <= len(inside) <= found.forward_passes + 3 * 4


def test_points_of_several_groups_are_passed_once_and_equal_mixtures_stitched_once():
    net, base, models, _ = given("mlp")
    data = labelled_batches(8, 4)
    a, b = (Mixture.of([(models[name], 1)]) for name in "ab")
    mixed = Mixture.of([(models["a"], 0.5), (models["b"], 0.5)])
    found = stitch(base, [[a, b], [mixed], [a, mixed]], data, net, ms.Outputs(), progress=False)
    assert found.forward_passes == 3 * 2 and found.rest_passes == 3 * 2 * 2
    together = stitch(base, [[a, b, mixed]], data, net, ms.Outputs(), progress=False)
    for layer in found.layers:
        np.testing.assert_array_equal(
            found.reading.losses(found.key(mixed, layer)), together.reading.losses(found.key(mixed, layer))
        )
    assert found.samples == 8 and found.network == "MLP" and found.points[0] == Point.of(base)


def test_the_network_is_left_as_it_was():
    net, base, models, test = given("convnet", scale=0.1)
    ms.load_weights(net, models["b"])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    stitch_addition(base, models, test, settings(lams=(0.1,)))
    assert net.training and all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in net.modules())


# -- choices -----------------------------------------------------------------------------------------


def test_tasks_with_heads_of_their_own():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    base, a, b, _ = family(body, scale=0.5)
    test = {}
    for i, (name, classes) in enumerate({"a": ["x", "y"], "b": ["u", "v", "w"]}.items()):
        network = WithHead(body, linear_head(6, classes, seed=i)).eval()
        batches = labelled_batches(9, 4, len(classes))
        test[name] = HeldOut(name, batches, network, name, network.head_entries, logits=True)
    view = test["a"].model.view
    found = stitch_addition(
        view(base),
        {"a": view(a), "b": view(b)},
        test,
        settings(lams=(0.5,), layers=["backbone.2", "backbone.4"]),
    )
    assert found.layers["a"] == ("backbone.2", "backbone.4")
    for data in "ab":
        last = []
        for model in (a, b):
            ms.load_weights(body, model)
            with torch.no_grad():
                last.append(body(torch.cat([x for x, _ in test[data].batches])))
        head = test[data].model.head
        labels = torch.cat([y for _, y in test[data].batches])
        loss = nn.functional.cross_entropy(head(sum(last) / 2).detach(), labels)
        (score,) = found.select(kind="mixed", data=data, layer="backbone.4")
        assert score.loss.mean == pytest.approx(float(loss), rel=1e-4)


def test_controls_are_data_of_no_model_or_else_every_other_task():
    _, base, models, test = given("mlp")
    found = stitch_negation(base, models, test, settings())
    assert {(s.points, s.data) for s in found.scores} == {(f"- {t}", d) for t in "abc" for d in "abc"}
    net = test["a"].model
    more = {**test, "control": HeldOut("control", labelled_batches(9, 4, seed=9), net)}
    found = stitch_negation(base, models, more, settings())
    assert {(s.points, s.data) for s in found.scores} == {
        (f"- {task}", data) for task in "abc" for data in (task, "control")
    }


def test_pairs_lams_and_layers_may_be_chosen():
    _, base, models, test = given("vit")
    s = settings(pairs=(("c", "a"),), lams=(0.3, 0.3), layers="blocks.1")
    found = stitch_addition(base, models, test, s)
    assert {score.points for score in found.select(kind="mixed")} == {"c + a"}
    assert found.lams == (0.3,) and found.layers == {"c": ("blocks.1",), "a": ("blocks.1",)}
    assert stitch_addition(base, models, test, settings(lams=None, layers="blocks.1")).lams == ADDITION_GRID
    assert len(stitch_negation(base, models, test, settings(lams=None, layers="blocks.1")).lams) == 21


def test_results_print_as_a_table_and_give_rows():
    _, base, models, test = given("vit")
    found = stitch_addition(base, models, test, settings(pairs=(("a", "b"),)))
    text = str(found)
    assert text.startswith("Stitched addition, accuracy at lambda 0.5") and "a + b on b" in text
    first = next(line for line in text.splitlines() if "blocks.0" in line)
    (mixed,) = found.select(kind="mixed", data="a", layer="blocks.0", lam=0.5)
    assert first.split()[1] == f"{mixed.accuracy.mean:.3f}"
    rows = found.rows()
    assert {row["kind"] for row in rows} == {
        "accuracy", "stitch-addition", "stitch-addition-single", "stitch-addition-whole",
    }  # fmt: skip
    # Two data sets, two measures: the base, and for two coefficients a mixture, two singles, two wholes.
    assert len(rows) == 2 * 2 * (1 + 2 * (2 * (1 + 2) + 2))
    negated = stitch_negation(base, models, test, settings())
    assert "- a on c" in str(negated) and {r["kind"] for r in negated.rows()} >= {"stitch-negation"}


def test_models_of_the_linearised_regime_are_stitched_in_the_ordinary_network(tmp_path):
    from safetensors.torch import save_file

    _, base, models, test = given("mlp")
    written = {}
    for name, model in models.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), path, {"linearized": "true", "base_digest": base.digest})
        written[name] = ms.Checkpoint(path)
    found = stitch_addition(base, written, test, settings())
    assert any("stitched in the ordinary network" in note for note in found.notes)
    assert found.scores == stitch_addition(base, models, test, settings()).scores


# -- errors ------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """A block that runs twice, one that never runs, and one that returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.once = (nn.Linear(4, 4) for _ in range(3))
        self.named = Named()

    def forward(self, x):
        return self.once(self.named(self.twice(self.twice(x)))["logits"])


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        class Found(dict):
            logits = self.inner(x)

        return Found(logits=Found.logits)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("twice", "'twice' runs more than once"),
        ("never", "do not run in a forward pass of Nested: never"),
        ("named", "'named' returns a Found"),
        (["named", "named.inner"], "'named.inner' is within 'named'"),
        ("output", "Nothing follows the output"),
        ("once.more", "matches no module"),
    ],
)
def test_layers_that_cannot_be_stitched_after(layers, message):
    net = Nested().eval()
    base, a, *_ = family(net)
    with pytest.raises(LayerError, match=message):
        stitch(base, [[Mixture.of([(a, 1)])]], [torch.ones(2, 4)], net, ms.Outputs(), layers=layers)
    assert all("forward" not in vars(module) and not module._forward_hooks for module in net.modules())


def test_the_output_is_no_block():
    assert blocks_of(make_net("vit")) == ["blocks.0", "blocks.1"]
    assert blocks_of(make_net("vit"), ["output", "blocks.1"]) == ["blocks.1"]


def test_what_cannot_be_stitched_is_told():
    net, base, models, test = given("mlp")
    a = Mixture.of([(models["a"], 1)])
    with pytest.raises(PointError, match="sum to 1.5, not 1"):
        Mixture.of([(base, 1), (models["a"], 0.5)])
    with pytest.raises(PointError, match="is no model"):
        stitch(base, [[Mixture.of([(models["a"] - base, 1)])]], test["a"].batches, net, ms.Outputs())
    with pytest.raises(DataError, match="empty"):
        stitch(base, [[a]], [], net, ms.Outputs())
    with linearized_in_place(net, Point.of(base)) as linear, pytest.raises(MergescopeError, match="ordinary"):
        stitch(base, [[a]], test["a"].batches, linear, ms.Outputs())
    with pytest.raises(MergescopeError, match="load_model"):
        stitch(base, [[a]], test["a"].batches, make_net("mlp").to("meta"), ms.Outputs())
    broken = {key: value * torch.inf for key, value in models["a"].state_dict().items()}
    with pytest.raises(CheckpointError, match="broken"):
        mixture = Mixture.of([(ms.Checkpoint(broken, name="broken"), 1)])
        stitch(base, [[mixture]], test["a"].batches, net, ms.Outputs())
    with pytest.raises(DataError, match="shuffle|passes|batches"):
        shuffled = torch.utils.data.DataLoader(torch.randn(8, 1, 8, 8), batch_size=4, shuffle=True)
        stitch(base, [[a]], shuffled, net, ms.Outputs())


def test_protocols_refuse_what_they_have_no_data_or_labels_for():
    net, base, models, test = given("mlp")
    with pytest.raises(MergescopeError, match="no data for c"):
        stitch_addition(base, models, {n: test[n] for n in "ab"}, settings())
    with pytest.raises(MergescopeError, match="no data for c"):
        stitch_negation(base, models, {n: test[n] for n in "ab"}, settings())
    with pytest.raises(MergescopeError, match="no task 'd'"):
        stitch_addition(base, models, test, settings(pairs=(("a", "d"),)))
    with pytest.raises(MergescopeError, match="one scaling coefficient"):
        stitch_addition(base, models, test, settings(lams=()))
    with pytest.raises(MergescopeError, match="takes fine-tuned models"):
        stitch_negation(base, {}, test, settings())
    with pytest.raises(MergescopeError, match="no stitched 'additon'. Did you mean: addition"):
        plan("additon", base, models, test)
    bare = {n: HeldOut(n, [x for x, _ in held.batches], net, n) for n, held in test.items()}
    with pytest.raises(DataError, match="a: accuracy and loss need labels"):
        stitch_addition(base, models, bare, settings())
    mute = {n: HeldOut(n, held.batches, net, n, logits=False) for n, held in test.items()}
    with pytest.raises(MergescopeError, match="MLP predicts nothing"):
        stitch_negation(base, models, mute, settings())
