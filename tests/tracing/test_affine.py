"""The affine executor: what the resident one gives of a linearised network, for fewer passes."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import VOCABULARY, batches_for, padded, texts, tiny, transformers
from torch import nn
from torch.nn import functional as F

import mergescope as ms
from mergescope.errors import CheckpointError, MergescopeError, PointError
from mergescope.models.heads import linear_head
from mergescope.models.loading import load_weights
from mergescope.models.with_head import WithHead
from mergescope.readings import InnerProducts, NextTokenLoss, Outputs
from mergescope.tracing.affine import Mixtures, affine_part
from mergescope.training import linearize, linearized_network
from mergescope.weights import Point

TRANSFORMERS = ("bert", "clip", "llama", "gpt2", "t5")


def double(batch):
    if not isinstance(batch, dict):
        return batch[0].double(), batch[1]
    return {key: value.double() if key == "pixel_values" else value for key, value in batch.items()}


def widened(kind, scale=0.5):
    """A network, a base and fine-tunes far from it, and data, in float64."""
    net = (make_net(kind) if kind in NETS else tiny(kind)).double()
    data = labelled_batches() if kind in NETS else batches_for(kind)
    return net, family(net, scale=scale), [double(batch) for batch in data]


def some_points(base, a, b, c):
    tau = a - base
    return [base, a, b, c, (a + b) / 2, ms.mean([a, b, c]), base + 0.4 * (tau + (b - base)), base - 1.5 * tau]


def both(points, data, model, readings, **more):
    """The same pass by both executors, with readings of their own."""
    one = ms.trace(points, data, model, executor="resident", readings=readings(), progress=False, **more)
    two = ms.trace(points, data, model, readings=readings(), progress=False, **more)
    assert (one.executor, two.executor) == ("resident", "affine") and one.affine and two.affine
    assert one.points == two.points and one.layers == two.layers and one.samples == two.samples
    return one, two


def assert_same_features(one, two, tolerance=1e-8):
    points = one.points
    for layer in one.layers:
        wanted, got = (traced.reading(InnerProducts).gram(layer, points) for traced in (one, two))
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


def assert_same_predictions(one, two, tolerance=1e-8):
    for point in one.points:
        for measure in ("losses", "correct"):
            wanted, got = (getattr(traced.readings[-1], measure)(point) for traced in (one, two))
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


# -- equal to the resident executor ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [*NETS, *TRANSFORMERS])
def test_features_and_outputs_are_those_of_the_resident_executor(kind):
    net, models, data = widened(kind)
    points, model = some_points(*models), linearized_network(net, models[0])
    if kind in ("llama", "gpt2"):
        predictions = [NextTokenLoss]
    else:
        predictions = [] if kind in ("clip", "t5") else [Outputs]
    one, two = both(points, data, model, lambda: [InnerProducts(), *(kind() for kind in predictions)])
    # Llama and T5 normalise in float32 whatever they are given.
    tolerance = 1e-4 if kind in ("llama", "t5") else 1e-8
    assert_same_features(one, two, tolerance)
    if predictions:
        assert_same_predictions(one, two, tolerance)
    assert one.forward_passes == len(points) * len(data) and two.forward_passes == 4 * len(data)


@pytest.mark.parametrize("choice", ["all", "mean", "last", "cls", "each"])
def test_every_choice_of_a_feature_is_affine(choice):
    net, models, _ = widened("bert")
    data = [padded(texts()[:3], "left"), padded(texts()[3:], longer=2)]
    model = linearized_network(net, models[0])
    one, two = both(some_points(*models), data, model, lambda: [InnerProducts()], features=choice)
    assert_same_features(one, two)
    test = ms.ctl(models[1], models[2])
    ns = [ms.linearity(traced, test)[one.layers[0]].measures["cos"].n for traced in (one, two)]
    assert ns[0] == ns[1]


def test_features_about_a_centre():
    net, models, data = widened("vit")
    points, model = some_points(*models), linearized_network(net, models[0])
    for centre in (models[0], (models[1] + models[2]) / 2):
        one, two = both(points, data, model, lambda: [InnerProducts()], centre=centre)
        assert_same_features(one, two)
        assert two.forward_passes == (4 + 1) * len(data)


def test_the_loss_is_that_of_combined_logits_and_not_a_mean_of_losses():
    net, (base, a, b, _), data = widened("llama")
    middle, model = (a + b) / 2, linearized_network(net, base)
    traced = ms.trace([a, b, middle], data, model, readings=[NextTokenLoss()], progress=False)
    loss = {point: traced.readings[0].losses(point) for point in traced.points}
    batch = data[0]
    logits = []
    for point in (a, b):
        load_weights(model, point)
        with torch.no_grad():
            logits.append(model(**batch).logits.double())
    mixed = (logits[0] + logits[1]) / 2
    for row in range(2):
        length = int(batch["attention_mask"][row].sum())
        wanted = F.cross_entropy(mixed[row, : length - 1], batch["input_ids"][row, 1:length]).item()
        assert loss[Point.of(middle)][row] == pytest.approx(wanted, rel=1e-5)
        mean = (loss[Point.of(a)][row] + loss[Point.of(b)][row]) / 2
        assert abs(wanted - mean) > 1e-3


def test_single_precision_is_as_exact_as_the_resident_executor():
    exact, models, wide = widened("vit", scale=0.1)
    net, data = copy.deepcopy(exact).float(), [(x.float(), y) for x, y in wide]
    narrow = [ms.Checkpoint({k: v.float() for k, v in m.state_dict().items()}, name=m.name) for m in models]
    right = ms.trace(some_points(*models), wide, linearized_network(exact, models[0]), progress=False)
    one, two = both(some_points(*narrow), data, linearized_network(net, narrow[0]), lambda: [InnerProducts()])
    for layer in right.layers:
        wanted = right.readings[0].gram(layer, right.points)
        errors = [np.abs(t.reading(InnerProducts).gram(layer, t.points) - wanted).max() for t in (one, two)]
        assert errors[1] < max(2 * errors[0], 1e-6 * np.abs(wanted).max())


# -- heads -----------------------------------------------------------------------------------------

PLAIN = linear_head(16, ["a", "b", "c"], seed=3)
COSINE = dataclasses.replace(PLAIN, policy="zero-shot", bias=None, normalise=True, weight=PLAIN.weight * 20)


def headed(head):
    body = tiny("vit").vit
    checkpoints = family(body.double(), scale=0.5)
    net = WithHead(body, head).double()
    views = [net.view(checkpoint) for checkpoint in checkpoints]
    return linearized_network(net, views[0], net.head_entries), views


@pytest.mark.parametrize("head", [PLAIN, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("layers", ["blocks", ["backbone.layernorm", "head", "output"]])
def test_heads_are_applied_to_combined_embeddings(head, layers):
    model, views = headed(head)
    points = some_points(*map(Point.of, views))
    data = [double(batch) for batch in batches_for("vit")]
    one, two = both(
        points, data, model, lambda: [InnerProducts(), Outputs()], layers=layers, fixed=model.head_entries
    )
    assert ("head" in two.layers) == (layers != "blocks")
    assert_same_features(one, two)
    assert_same_predictions(one, two)
    assert two.forward_passes == 4 * len(data)
    gap = ms.linearity(two, ms.ctl(views[1], views[2]))["output"].measures["gap"].mean
    assert (gap < 1e-6) == (head is PLAIN)


def test_a_head_that_points_fill_moves_with_them():
    model, views = headed(PLAIN)
    states = [view.source.state_dict() for view in views]
    checkpoints = []
    for number, state in enumerate(states):
        body = {f"backbone.{key}": value for key, value in state.items()}
        own = {
            "head.weight": PLAIN.weight.double() * (1 + number),
            "head.bias": torch.full((3,), 0.1 * number).double(),
        }
        checkpoints.append(ms.Checkpoint(body | own, name=f"with head {number}"))
    data = [double(batch) for batch in batches_for("vit")]
    one, two = both(some_points(*checkpoints), data, model, lambda: [InnerProducts(), Outputs()])
    assert_same_features(one, two)
    assert_same_predictions(one, two)
    assert ms.linearity(two, ms.ctl(*checkpoints[1:3]))["output"].measures["gap"].mean > 1e-3


def test_which_part_of_a_network_is_affine():
    body = nn.Linear(5, 4)
    net = WithHead(body, linear_head(4, ["a", "b"], seed=0))
    assert affine_part(net) is None and affine_part(body) is None
    linearize(net)
    assert affine_part(net) is net.backbone and affine_part(net.backbone) is net.backbone


# -- which points get a pass -----------------------------------------------------------------------


def test_a_checkpoint_is_passed_although_it_is_no_point_where_that_saves_passes():
    net, (base, a, b, _), data = widened("mlp")
    model = linearized_network(net, base)
    grid = [base + x * (a - base) + y * (b - base) for x in (-0.5, 0.5, 1.5) for y in (-0.5, 0.5, 1.5)]
    one, two = both(grid, data, model, lambda: [InnerProducts(), Outputs()])
    assert_same_features(one, two)
    assert_same_predictions(one, two)
    assert (one.forward_passes, two.forward_passes) == (9 * len(data), 3 * len(data))
    assert all(point not in two.points for point in map(Point.of, (base, a, b)))
    alone = ms.trace([(a + b) / 2], data, model, readings=[InnerProducts()], progress=False)
    assert alone.forward_passes == len(data)


def test_plans_of_passes():
    a, b, c = (
        ms.Checkpoint({"w": torch.full((2,), v)}, name=n) for n, v in (("a", 1.0), ("b", 2.0), ("c", 4.0))
    )
    middle = (a + b) / 2
    only = Mixtures.of(map(Point.of, (a, b)))
    assert only.runs == (0, 1) and not only.mixed
    few = Mixtures.of([Point.of(a), middle])  # b would take a pass as well
    assert few.runs == (0, 1) and not few.mixed and len(few.points) == 2
    many = Mixtures.of([middle, 2 * a - b, Point.of(a), b + 0.5 * (c - b)])
    assert many.runs == (2, 4, 5) and set(many.points[4:]) == {Point.of(b), Point.of(c)}
    more = Mixtures.of([middle, 2 * a - b, Point.of(a)])
    assert more.runs == (2, 3) and more.points[3] == Point.of(b)
    assert more.mixed == {0: {2: 0.5, 3: 0.5}, 1: {2: 2.0, 3: -1.0}}


def test_what_is_rounded_when_it_is_merged_gets_a_pass_of_its_own():
    net = make_net("mlp")
    base, a, b, _ = (
        ms.Checkpoint({k: v.bfloat16() for k, v in m.state_dict().items()}, name=m.name) for m in family(net)
    )
    one, two = both(
        [base, a, b, (a + b) / 2],
        labelled_batches(),
        linearized_network(net, base),
        lambda: [InnerProducts()],
    )
    assert one.forward_passes == two.forward_passes
    for layer in one.layers:
        grams = [traced.readings[0].gram(layer, one.points) for traced in (one, two)]
        np.testing.assert_array_equal(*grams)


def test_tables_of_integers_must_agree_as_in_any_combination():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(6, 6)])
            self.register_buffer("places", torch.arange(6))

        def forward(self, x):
            return self.blocks[0](x.tanh()[:, self.places % 6])

    net, data = Shifted(), [torch.randn(3, 6)]
    base, a, b, _ = family(net)  # whose integers differ
    model = linearized_network(net, base)
    for executor in ("resident", "affine"):
        with pytest.raises(PointError, match=r"integer tensor 'places'.*differs between (a, b|b, a)"):
            ms.trace([a, b, (a + b) / 2], data, model, executor=executor, progress=False)


# -- what goes with it, and what does not ----------------------------------------------------------


def test_the_class_inside_says_how_a_network_is_called():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, num_labels=3,
        decoder_start_token_id=0, eos_token_id=VOCABULARY - 1,
    )  # fmt: skip
    net = transformers.T5ForSequenceClassification(config).eval()
    ends = torch.full((1,), VOCABULARY - 1)
    data = [padded([torch.cat([text.clamp(max=VOCABULARY - 2), ends]) for text in texts()[:2]])]
    base = ms.Checkpoint(net.state_dict(), name="base")
    plain = ms.trace([base], data, copy.deepcopy(net), readings=[InnerProducts()], progress=False)
    linear = ms.trace([base], data, linearized_network(net, base), readings=[InnerProducts()], progress=False)
    assert linear.features == plain.features and linear.layers == plain.layers
    for layer in plain.layers:
        np.testing.assert_allclose(
            *(t.readings[0].gram(layer, plain.points) for t in (linear, plain)), rtol=1e-4
        )


def test_weights_are_put_back_and_an_ordinary_trace_is_not_affine():
    net, (base, a, b, _), data = widened("convnet")
    assert not ms.trace([a, b], data, net, progress=False).affine
    model = linearized_network(net, base)
    ms.trace([a, b, (a + b) / 2], data, model, progress=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, base.tensor(name)), name


def test_what_a_linearised_network_can_not_do_is_refused():
    net, (base, a, _, _), data = widened("mlp")
    with pytest.raises(MergescopeError, match="MLP is not. Linearise it: linearized_network"):
        ms.trace([base, a], data, net, executor="affine")
    model = linearized_network(net, base)
    for executor in ("batched", "streamed"):
        with pytest.raises(MergescopeError, match=f"The {executor} executor can't run a linearised network"):
            ms.trace([base, a], data, model, executor=executor)
    with pytest.raises(MergescopeError, match="affine in its weights whatever they are fed.*Leave local out"):
        ms.trace([base, a], data, model, local=base)
    with pytest.raises(MergescopeError, match=r"no memory for the affine executor. Use load_model\(\)"):
        ms.trace([base, a], data, model.to("meta"))


def test_statistics_can_not_be_re_estimated():
    net, (base, a, b, _), data = widened("convnet")
    with pytest.raises(MergescopeError, match="BatchNorm statistics are those of th_0"):
        ms.trace([(a + b) / 2], data, linearized_network(net, base), calibration=data)


def test_exploded_outputs_of_a_combination_are_named():
    net, (base, a, b, _), data = widened("mlp")
    far = base + 1e200 * (a - base) + 1e200 * (b - base)
    points = [base, a, b, far, base + 1e308 * (a - base)]
    with pytest.raises(CheckpointError, match="NaN or infinite outputs at Point"):
        ms.trace(points, data, linearized_network(net, base), readings=[Outputs()], progress=False)
