"""Measuring given models: pairs, points, verdicts and the reasons for them."""

import copy

import numpy as np
import pytest
import torch
from given_models import make
from slow_reference import cosine, feature_maps, loss_and_hit
from support import family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import LayerError, MergescopeError
from mergescope.protocols.measure import HeldOut, Settings, measure, passes
from mergescope.readings import NextTokenLoss, Outputs

QUIET = {"progress": False}


def mlp_family(scale=0.1):
    net = make_net("mlp")
    base, a, b, _ = family(net, scale=scale)
    return net, base, {"a": a, "b": b}


class Chain(nn.Module):
    """Blocks on tanh(x), so that none is fed the network's input itself."""

    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        x = x.tanh()
        for block in self.blocks:
            x = block(x)
        return x


class Product(nn.Module):
    """Two matrices one after the other: not linear in its weights."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x):
        return self.second(self.first(x))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.first * self.second


def between(net, change, size=1.0, base=True, **settings):
    """A pair whose models differ in the weights that ``change`` accepts, by as much as they are large."""
    generator = torch.Generator().manual_seed(4)
    states = []
    for sign in (0, 1, -1) if base else (1, -1):
        state = {key: value.clone() for key, value in net.state_dict().items()}
        for key in filter(change, state):
            noise = torch.randn(state[key].shape, generator=generator)
            state[key] += size * sign * state[key].std().nan_to_num(1.0) * noise
        states.append(ms.Checkpoint(state, name="ba"[len(states) % 2]))
    start = ms.Checkpoint(states[0].state_dict(), name="base") if base else None
    models = dict(zip("ab", states[-2:], strict=True))
    held = HeldOut("noise", [torch.randn(40, 6, generator=generator)], net, logits=False)
    return measure(start, models, [held], Settings(**QUIET, **settings)).pairs[0]


# -- what is measured ------------------------------------------------------------------------------


def test_every_pair_has_the_numbers_of_a_slow_computation():
    net, base, models = mlp_family(0.3)
    batches = labelled_batches(10, 4)
    found = measure(base, models, [HeldOut("digits", batches, net)], Settings((0.25, 0.5), **QUIET))
    ends = {"base": base, **models}
    layers = ["blocks.0", "blocks.1", "output"]
    labels = torch.cat([y for _, y in batches]).tolist()
    for pair in found.pairs:
        for alpha, result in pair.propagated.items():
            mixed = ms.lerp(ends[pair.b], ends[pair.a], alpha).state_dict()
            states = (mixed, ends[pair.a].state_dict(), ends[pair.b].state_dict())
            (m, said), (f, _), (g, _) = (feature_maps(net, state, batches, layers) for state in states)
            for layer in layers:
                mix = alpha * f[layer] + (1 - alpha) * g[layer]
                cos = np.mean([cosine(*both) for both in zip(m[layer], mix, strict=True)])
                assert result[layer].measures["cos"].mean == pytest.approx(cos, abs=1e-5)
            losses = np.mean([loss_and_hit(*both)[0] for both in zip(said, labels, strict=True)])
            at = list(pair.barrier.alphas).index(alpha)
            assert pair.barrier.loss[at] == pytest.approx(losses, abs=1e-5)
            if alpha == 0.5 and pair.kind == "FT–FT":
                merged = found.losses["a + b, merged", "digits"]
                assert merged["loss"].mean == pytest.approx(losses, abs=1e-5)


def test_pairs_kinds_and_what_a_base_adds():
    net, base, models = mlp_family()
    held = [HeldOut("digits", labelled_batches(), net)]
    found = measure(base, models, held, Settings(**QUIET))
    kinds = [("a + b", "FT–FT"), ("base + a", "PT–FT"), ("base + b", "PT–FT")]
    assert [(pair.name, pair.kind) for pair in found.pairs] == kinds and found.base == "base"
    assert all(pair.local and "cos_rel" in pair.middle["output"].measures for pair in found.pairs)
    (pair,) = measure(None, models, held, Settings(**QUIET)).pairs
    assert pair.name == "a + b" and not pair.local and "cos_rel" not in pair.middle["output"].measures
    (pair,) = measure(base, {"a": models["a"]}, held, Settings(**QUIET)).pairs
    assert (pair.name, pair.kind) == ("base + a", "PT–FT")
    (pair,) = measure(base, {"a": models["a"]}, held, Settings(local=False, **QUIET)).pairs
    assert not pair.local


def test_every_distinct_point_runs_once_a_batch():
    net, base, models = mlp_family()
    calls = []
    net.register_forward_hook(lambda *args: calls.append(1))
    batches = labelled_batches(10, 4)
    again = ms.Checkpoint(models["a"].state_dict(), name="again")
    found = measure(base, {**models, "again": again}, [HeldOut("digits", batches, net)], Settings(**QUIET))
    traced = found.traces["digits"]
    assert len(traced.points) == 3 + 3  # base, a, b and what lies between each two
    assert traced.forward_passes == 6 * len(batches)
    assert len(calls) == traced.forward_passes + 3  # one that finds trivial layers, two that are compared
    assert len(found.pairs) == 6
    alike = next(pair for pair in found.pairs if pair.name == "a + again")
    assert alike.word == "CTL holds" and alike.agreement["a, b"].mean == 1


def test_plans_name_the_points_that_are_passed():
    net, base, models = mlp_family()
    held = [HeldOut(name, labelled_batches(), net, owner) for name, owner in (("x", "a"), ("y", "b"))]
    settings = Settings((0.0, 0.3, 0.5, 0.3, 1.0), **QUIET)
    found = measure(base, models, held, settings)
    assert {name: traced.points for name, traced in found.traces.items()} == passes(
        base, models, held, settings
    )
    assert len(found.traces["x"].points) == 3 + 2 * 2  # b is there for a + b, and base + b is not


def test_data_of_a_task_are_for_pairs_with_its_model():
    net, base, models = mlp_family(0.3)
    models["c"] = family(net, scale=0.3)[3]
    held = [HeldOut(f"of {name}", labelled_batches(seed=seed), net, name) for seed, name in enumerate("abc")]
    found = measure(base, models, held, Settings(**QUIET))
    data = {pair.name: pair.data for pair in found.pairs}
    assert data["a + c"] == ("of a", "of c") and data["base + b"] == ("of b",)
    assert ("b + c, merged", "of a") not in found.losses and ("b + c, merged", "of b") in found.losses
    pooled = next(pair for pair in found.pairs if pair.name == "a + b").middle
    alone = [measure(None, {n: models[n] for n in "ab"}, [one], Settings(**QUIET)).pairs[0].middle
             for one in (HeldOut("x", held[0].batches, net), HeldOut("y", held[1].batches, net))]  # fmt: skip
    assert pooled.samples == sum(one.samples for one in alone)
    mean = np.mean([one["output"].measures["cos"].mean for one in alone])
    assert pooled["output"].measures["cos"].mean == pytest.approx(mean, abs=1e-9)


def test_the_ends_of_the_line_are_no_tests_but_are_on_it():
    net, base, models = mlp_family()
    found = measure(
        base, models, [HeldOut("digits", labelled_batches(), net)], Settings((0, 0.25, 1), **QUIET)
    )
    pair = found.pairs[0]
    assert list(pair.propagated) == list(pair.local) == [0.25] and pair.alpha == 0.25
    assert pair.barrier.alphas.tolist() == [0, 0.25, 1]


def test_the_verdict_is_read_off_the_alpha_nearest_to_a_half():
    net, base, models = mlp_family()
    for alphas, nearest in (((0.1, 0.4, 0.9), 0.4), ((0.3, 0.7), 0.7), ((0.9, 0.1), 0.9)):
        (pair, *_) = measure(
            base, models, [HeldOut("x", labelled_batches(), net)], Settings(alphas, **QUIET)
        ).pairs
        assert pair.alpha == nearest and pair.middle is pair.propagated[nearest]


def test_without_labels_there_are_predictions_but_no_losses():
    net, base, models = mlp_family(0.3)
    batches = [x for x, _ in labelled_batches(12, 5)]
    found = measure(base, models, [HeldOut("digits", batches, net)], Settings(**QUIET))
    assert not found.losses and all(pair.barrier is None for pair in found.pairs)
    a, b = (feature_maps(net, models[name].state_dict(), [(x,) for x in batches], [])[1] for name in "ab")
    assert found.pairs[0].agreement["a, b"].mean == np.mean(a.argmax(1) == b.argmax(1))
    silent = measure(base, models, [HeldOut("digits", batches, net, logits=False)], Settings(**QUIET))
    assert all(not pair.agreement for pair in silent.pairs)
    assert silent.pairs[0].middle["output"].measures["cos"] == found.pairs[0].middle["output"].measures["cos"]


def test_the_output_alone_has_no_layer_to_feed():
    net, base, models = mlp_family()
    held = [HeldOut("digits", labelled_batches(), net)]
    found = measure(base, models, held, Settings(layers="output", **QUIET))
    assert all(not pair.local for pair in found.pairs) and found.traces["digits"].local_passes == 0
    hidden = measure(base, models, held, Settings(output=False, **QUIET))
    assert hidden.traces["digits"].layers == ("blocks.0", "blocks.1") and hidden.losses


@pytest.mark.parametrize("calibrated", [False, True])
def test_batchnorm_statistics_are_averaged_or_estimated_again(calibrated):
    net, batches = make_net("convnet"), labelled_batches(12, 6)
    base, a, b, _ = family(net, scale=0.3)
    calibration = [x for x, _ in batches] if calibrated else None
    held = [HeldOut("digits", batches, net)]
    pair = measure(base, {"a": a, "b": b}, held, Settings(calibration=calibration, **QUIET)).pairs[0]
    mixed = copy.deepcopy(net)
    ms.load_weights(mixed, ms.lerp(a, b, 0.5))
    if calibrated:
        ms.reestimate_batchnorm(mixed, calibration)
    layers = ["blocks.0", "blocks.1", "output"]
    m, f, g = (feature_maps(net, state, batches, layers)[0] for state in
               (mixed.state_dict(), a.state_dict(), b.state_dict()))  # fmt: skip
    for layer in layers:
        right = (f[layer] + g[layer]) / 2
        coef = np.mean([x @ y / (y @ y) for x, y in zip(m[layer], right, strict=True)])
        assert pair.middle[layer].measures["coef"].mean == pytest.approx(coef, abs=1e-5)


# -- what it says ----------------------------------------------------------------------------------


def test_a_network_that_is_linear_in_its_weights_is_linear():
    pair = between(Chain(nn.Linear(6, 5)), lambda key: True, layers=["blocks.0"], base=False)
    assert pair.word == "CTL holds"
    assert pair.middle["blocks.0"].measures["gap"].mean < 1e-6
    assert "cos 1.000" in pair.reason and "first" not in pair.reason


def test_two_initialisations_are_not_linear():
    one, two = (ms.Checkpoint(_initialised(seed).state_dict(), name=name) for seed, name in enumerate("ab"))
    held = HeldOut("digits", labelled_batches(30, 10), _initialised(0))
    (pair,) = measure(None, {"a": one, "b": two}, [held], Settings(**QUIET)).pairs
    assert pair.word == "not linear"
    assert "The first layer whose cos is below 0.95 is blocks.0." in pair.reason  # no base, so nothing is fed


def _initialised(seed):
    torch.manual_seed(seed)
    return ms.MLP((64, 30, 30, 3)).eval()


def test_the_layer_that_breaks_by_itself_is_named():
    torch.manual_seed(1)
    net = Chain(*(Product(6) if place == 1 else nn.Linear(6, 6, bias=False) for place in range(4)))
    pair = between(net, lambda key: key.startswith("blocks.1."), 1.5, layers="blocks.*")
    cosines = {entry.layer: entry.measures["cos"].mean for entry in pair.middle.layers}
    assert cosines["blocks.0"] == pytest.approx(1) and max(list(cosines.values())[1:]) < 0.95
    alone = {entry.layer: entry.measures["cos"].mean for entry in pair.local[0.5].layers}
    assert [layer for layer, cos in alone.items() if cos < 0.95] == ["blocks.1"]
    assert pair.word == "not linear"
    assert (
        f"The first layer whose cos is below 0.95 is blocks.1, and it breaks by itself: fed the base's input, its cos "
        f"is {alone['blocks.1']:.3f}." in pair.reason
    )


def test_what_layers_add_up_to_is_not_blamed_on_the_one_where_it_shows():
    torch.manual_seed(1)
    net = Chain(*(nn.Linear(6, 6, bias=False) for _ in range(6)))
    pair = between(net, lambda key: True, 0.6, layers="blocks.*")
    cosines = [entry.measures["cos"].mean for entry in pair.middle.layers]
    broken = next(place for place, cos in enumerate(cosines) if cos < 0.95)
    assert broken > 1 and all(entry.measures["cos"].mean > 0.999 for entry in pair.local[0.5].layers)
    assert f"below 0.95 is blocks.{broken}, though by itself it is linear enough" in pair.reason
    assert "its cos is 1.000" in pair.reason and "adds up" in pair.reason


def test_lengths_alone_are_blamed_by_coef():
    net = Chain(Scale(), Scale())
    states = {name: {key: torch.full((1,), value) for key in net.state_dict()}
              for name, value in (("base", 1.0), ("a", 1.5), ("b", 0.5))}  # fmt: skip
    models = {name: ms.Checkpoint(state, name=name) for name, state in states.items()}
    held = HeldOut("x", [torch.randn(9, 6)], net, logits=False)
    pair = measure(models.pop("base"), models, [held], Settings(layers="blocks.*", **QUIET)).pairs[0]
    assert pair.word == "LLFC only"
    assert pair.middle["blocks.0"].measures["coef"].mean == pytest.approx(1 / 1.25, abs=1e-5)
    assert (
        "The first layer whose coef is more than 0.1 from 1 is blocks.0, and it breaks by itself"
        in pair.reason
    )
    assert "its coef is 0.800" in pair.reason


def test_a_cos_that_is_no_higher_than_the_models_own_is_told():
    net, base, _ = mlp_family()
    found = measure(base, {"same": ms.Checkpoint(base.state_dict(), name="same")},
                    [HeldOut("x", labelled_batches(), net)], Settings(**QUIET))  # fmt: skip
    assert "cos is not clearly above the baseline" in found.pairs[0].reason
    near = between(Chain(nn.Linear(6, 5)), lambda key: True, layers=["blocks.0"], base=False)
    assert "clearly above" not in near.reason


def test_an_output_that_breaks_alone_is_told():
    torch.manual_seed(1)
    net = Chain(nn.Linear(6, 6), Product(6))
    settings = {"layers": ["blocks.0", "output"], "base": False}
    pair = between(net, lambda key: key.startswith("blocks.1."), 1.5, **settings)
    assert (
        pair.middle["output"].measures["cos"].mean < 0.95
        and "Only the output's cos is below 0.95." in pair.reason
    )


def test_layers_without_evidence_give_no_verdict():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    states = [{"0.weight": torch.zeros(4, 6), "0.bias": torch.full((4,), value)} for value in (-1.0, -2.0)]
    models = {name: ms.Checkpoint(state, name=name) for name, state in zip("ab", states, strict=True)}
    held = HeldOut("x", [torch.randn(5, 6)], net, logits=False)
    (pair,) = measure(None, models, [held], Settings(layers=["0", "1"], **QUIET)).pairs
    assert pair.reason == "There is no layer with live, non-trivial features."
    assert pair.word == "no verdict"


def test_guessed_layers_are_told():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU())
    base, a, b, _ = family(net)
    held = HeldOut("x", [torch.randn(5, 6)], net, logits=False)
    notes = measure(base, {"a": a, "b": b}, [held], Settings(**QUIET)).notes
    assert len(notes) == 1 and "the layers of Sequential are a guess" in notes[0]
    assert not measure(base, {"a": a, "b": b}, [held], Settings(layers="0", **QUIET)).notes


# -- predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("BertForSequenceClassification", {"num_labels": 3}, Outputs),
        ("BertForSequenceClassification", {"num_labels": 1}, None),
        ("BertForSequenceClassification", {"problem_type": "multi_label_classification"}, None),
        ("BertForMaskedLM", {}, None),
        ("BertForTokenClassification", {}, None),
        ("BertModel", {}, None),
        ("GPT2LMHeadModel", {}, NextTokenLoss),
        ("LlamaForCausalLM", {}, NextTokenLoss),
        ("GPT2ForSequenceClassification", {}, Outputs),
        ("GPT2Model", {}, None),
        ("T5ForConditionalGeneration", {}, Outputs),
        ("T5EncoderModel", {}, None),
        ("ViTForImageClassification", {}, Outputs),
        ("CLIPVisionModel", {}, None),
    ],
)
def test_only_logits_of_classes_and_of_next_tokens_are_predictions(name, settings, kind):
    held = HeldOut("x", [], make(name, **settings))
    assert (type(held.reading()) if held.predicts else None) is kind


def test_the_user_may_say_what_the_output_is():
    assert not HeldOut("x", [], make_net("mlp"), logits=False).predicts
    assert isinstance(HeldOut("x", [], make("BertModel"), logits=True).reading(), Outputs)
    assert isinstance(HeldOut("x", [], make("GPT2LMHeadModel"), logits=True).reading(), NextTokenLoss)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alphas": (0.0, 1.0)}, "0, 1. Give numbers from 0 to 1, at least one of them strictly between"),
        ({"alphas": (-0.5, 0.5)}, "alphas) are -0.5, 0.5"),
        ({"alphas": (0.5, 1.5)}, "alphas) are 0.5, 1.5"),
        ({"alphas": (float("nan"), 0.5)}, "alphas) are nan, 0.5"),
        ({"alphas": ()}, "alphas) are none"),
        ({"executor": "resdent"}, "Did you mean: resident"),
    ],
)
def test_wrong_settings_are_told(settings, said):
    net, base, models = mlp_family()
    with pytest.raises(MergescopeError) as told:
        measure(base, models, [HeldOut("x", labelled_batches(), net)], Settings(**settings, **QUIET))
    assert said in str(told.value)


@pytest.mark.parametrize("settings", [{"layers": "block.*"}, {"features": "men"}])
def test_typing_errors_get_a_near_match(settings):
    net, base, models = mlp_family()
    with pytest.raises(LayerError, match=r"Did you mean: (blocks\.\*|mean)"):
        measure(base, models, [HeldOut("x", labelled_batches(), net)], Settings(**settings, **QUIET))


def test_wrong_models_and_data_are_told():
    net, base, models = mlp_family()
    held = HeldOut("x", labelled_batches(), net)
    cases = [
        (base, {}, [held], {}, "takes two models"),
        (None, {"a": models["a"]}, [held], {}, "takes two models"),
        (base, {"base": models["a"]}, [held], {}, "both called 'base'"),
        (base, models, [], {}, "no data for a + b"),
        (base, models, [HeldOut("x", labelled_batches(), net, "a")], {}, "no data for base + b"),
        (base, models, [held, HeldOut("x", labelled_batches(), net)], {}, "Several data sets are called x"),
        (None, models, [held], {"centred": True}, "give a base"),
    ]
    for start, given, data, settings, said in cases:
        with pytest.raises(MergescopeError) as told:
            measure(start, given, data, Settings(**settings, **QUIET))
        assert said in str(told.value)
