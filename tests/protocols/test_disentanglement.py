"""Weight disentanglement error: against slow loops, costs, choices, summaries, errors."""

import itertools
import re

import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from support import family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import DataError, LayerError, MergescopeError
from mergescope.models.heads import linear_head
from mergescope.models.with_head import WithHead
from mergescope.protocols.disentanglement import DisentanglementSettings, disentanglement, plan, task_pairs
from mergescope.protocols.error_grids import coefficients, inside, preset_grid, summarised
from mergescope.protocols.linear_model import linearized_in_place
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.subset import Subset, subset
from mergescope.readings import Batch
from mergescope.readings.disagreement import Disagreement
from mergescope.weights import Point

NAMES = ("a", "b", "c")


def settings(**more):
    return DisentanglementSettings(**{"points": 4, "reach": 1.5, "progress": False} | more)


def given(kind="mlp", scale=0.4):
    """A network, a base, three fine-tunes and held-out data of three tasks."""
    net = make_net(kind)
    base, *models = family(net, scale=scale)
    test = {n: HeldOut(n, labelled_batches(9, 4, seed=i), net, n) for i, n in enumerate(NAMES)}
    return net, base, dict(zip(NAMES, models, strict=True)), test


def state_at(base, terms):
    """``th_0 + sum_k a_k tau_k``, one key after another."""
    start = {key: value.double() for key, value in base.state_dict().items()}
    return {
        key: (value + sum(float(a) * (m.state_dict()[key].double() - value) for a, m in terms)).float()
        for key, value in start.items()
    }


def logits_at(net, state, held, layer=None):
    """Outputs, or flattened features of a layer, of all samples, in one batch."""
    old = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    kept = []
    place = net if layer is None else net.get_submodule(layer)
    handle = place.register_forward_hook(lambda module, args, output: kept.append(output.flatten(1)))
    with torch.no_grad():
        net(torch.cat([batch[0] for batch in held.batches]))
    handle.remove()
    net.load_state_dict(old)
    return kept[0].double()


def far(first, second, distance):
    """The mean distance of two outputs, straight from its definition."""
    if distance == "predictions":
        return float((first.argmax(1) != second.argmax(1)).double().mean())
    p, q = first.softmax(1), second.softmax(1)
    return float((0.5 * (p * (p / q).log()).sum(1) + 0.5 * (q * (q / p).log()).sum(1)).mean())


def slow_error(net, base, models, test, grid, distance, layer=None):
    """``xi(a1, a2)`` of the first two tasks, four evaluations a cell."""
    (one, tau_1), (other, tau_2) = itertools.islice(models.items(), 2)
    error = np.zeros((len(grid), len(grid)))
    for (i, a1), (j, a2) in itertools.product(enumerate(grid), repeat=2):
        both = state_at(base, [(a1, tau_1), (a2, tau_2)])
        for task, single in ((one, [(a1, tau_1)]), (other, [(a2, tau_2)])):
            values = (logits_at(net, state, test[task], layer) for state in (state_at(base, single), both))
            error[i, j] += far(*values, distance)
    return error


@pytest.mark.parametrize("kind", ["mlp", "vit", "convnet"])
@pytest.mark.parametrize(("distance", "layer"), [("predictions", None), ("kl", None), ("kl", "blocks.1")])
def test_errors_are_those_of_a_slow_loop(kind, distance, layer):
    net, base, models, test = given(kind, scale=0.1 if kind == "convnet" else 0.4)
    s = settings(distance=distance, layer=layer, points=3, reach=1, pairs=(("a", "b"),))
    found = disentanglement(base, models, test, s)["a", "b"]
    assert found.samples == (9, 9) and found.coefficients == (-1.0, 0.0, 1.0)
    expected = slow_error(net, base, models, test, found.coefficients, distance, layer)
    np.testing.assert_allclose(found.error, expected, rtol=1e-3, atol=2e-5)
    assert found.error.max() > 0.01


@pytest.mark.parametrize(("distance", "layer"), [("predictions", None), ("kl", None), ("kl", "blocks.0")])
def test_a_linearised_grid_of_three_passes_is_the_slow_grid(distance, layer):
    net, base, models, test = given("vit")
    s = settings(distance=distance, layer=layer, points=5, pairs=(("a", "b"),), linearized=True)
    quick = disentanglement(base, models, test, s)
    slow = disentanglement(base, models, test, DisentanglementSettings(**vars(s) | {"executor": "resident"}))
    batches = sum(len(test[name].batches) for name in "ab")
    assert quick.linearized and quick.forward_passes == 3 * batches and slow.forward_passes == 25 * batches
    np.testing.assert_allclose(quick["a", "b"].error, slow["a", "b"].error, rtol=1e-3, atol=1e-5)
    # And both are those of the linearised network itself.
    grid = quick["a", "b"].coefficients
    with linearized_in_place(net, Point.of(base)) as linear:
        error = 0.0
        for task, single in (("a", (grid[0], 0.0)), ("b", (0.0, grid[4]))):
            values = []
            for one, other in (single, (grid[0], grid[4])):
                point = base + one * (models["a"] - base) + other * (models["b"] - base)
                traced = ms.trace([point], test[task].batches, linear, layers="output" if layer is None else layer,
                                  readings=[kept := Kept(layer)], executor="resident", progress=False)  # fmt: skip
                assert traced.forward_passes == len(test[task].batches)
                values.append(torch.cat(kept.values).double())
            error += far(*values, distance)
    np.testing.assert_allclose(quick["a", "b"].error[0, 4], error, rtol=1e-3)


class Kept:
    """A reading that keeps everything."""

    def __init__(self, layer):
        self.layer, self.needs_features, self.values = layer, layer is not None, []

    def start(self, points, layers):
        pass

    def update(self, batch):
        self.values.append((batch.outputs if self.layer is None else batch.features[self.layer])[0].clone())


def test_a_pair_costs_n_squared_evaluations_on_each_task_and_n_more():
    net, base, models, test = given()
    calls = []
    net.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    pair = settings(points=4, pairs=(("a", "b"),))
    found = disentanglement(base, models, test, pair)
    batches = len(test["a"].batches)
    assert found.forward_passes == (2 * 4**2 + 2 * 4) * batches
    # Besides: the few calls that look whether the network is deterministic and which layers it has.
    assert 0 <= len(calls) - found.forward_passes <= 8
    assert plan(base, models, test, pair) == {
        "pairs": ["a:b"], "linearized": False, "points": {"a": 20, "b": 20}, "passes_a_batch": {"a": 20, "b": 20},
    }  # fmt: skip
    every = disentanglement(base, models, test, settings(points=4))
    assert every.forward_passes == 3 * (2 * 4**2 + 4) * batches  # singles are shared by a task's pairs
    np.testing.assert_array_equal(every["a", "b"].error, found["a", "b"].error)
    for s in (settings(points=5), settings(linearized=True), settings(layer="blocks.0", distance="kl")):
        planned = plan(base, models, test, s)["passes_a_batch"]
        assert disentanglement(base, models, test, s).forward_passes == batches * sum(planned.values())


def test_zero_is_a_point_of_an_odd_grid_so_singles_are_cells():
    _, base, models, test = given()
    planned = plan(base, models, test, settings(points=5, pairs=(("a", "b"),)))
    assert planned["points"] == {"a": 25, "b": 25}
    assert coefficients(15, 2.0)[7] == 0 and 0 not in coefficients(20, 3)


def test_the_subset_is_fixed_random_and_counted():
    _, base, models, test = given()
    s = settings(samples=5, pairs=(("a", "b"),))
    one, same = (disentanglement(base, models, test, s)["a", "b"] for _ in range(2))
    other = disentanglement(base, models, test, DisentanglementSettings(**vars(s) | {"seed": 3}))["a", "b"]
    assert one.samples == (5, 5)
    np.testing.assert_array_equal(one.error, same.error)
    assert (one.error != other.error).any()
    # Errors are means over the samples that are used: multiples of a fifth.
    np.testing.assert_allclose(one.parts * 5, np.round(one.parts * 5), atol=1e-6)


def test_a_subset_makes_full_batches_of_few_samples():
    batches = [{"x": torch.arange(4 * i, 4 * i + 4).view(4, 1), "labels": torch.arange(4)} for i in range(10)]
    few = Subset(batches, 11, seed=1)
    parts = list(few)
    taken = torch.cat([part["x"] for part in parts]).flatten()
    assert len(few) == len(parts) < 6 and few.samples == 11 == len(set(taken.tolist()))
    assert torch.equal(taken, taken.sort().values) and (taken.diff() > 1).any()
    assert torch.equal(torch.cat([part["labels"] for part in parts]), taken % 4)
    assert all(torch.equal(one["x"], other["x"]) for one, other in zip(parts, few, strict=True))
    everything = Subset(batches, 40)
    assert [len(part["x"]) for part in everything] == [4] * 10
    assert subset(few, 11) is few and subset(few, 10).samples == 10
    # Texts that are padded to other lengths can't be one batch.
    ragged = [torch.ones(3, length) for length in (2, 5, 5)]
    assert {tuple(part.shape[1:]) for part in Subset(ragged, 4, seed=0)} <= {(2,), (5,)}
    assert sum(len(part) for part in Subset(ragged, 4, seed=0)) == 4


def test_batch_sizes_change_nothing():
    _, base, models, test = given()
    s = settings(distance="kl", pairs=(("a", "b"),), samples=7)
    bigger = {
        name: HeldOut(name, labelled_batches(9, 9, seed=i), held.model, name)
        for i, (name, held) in enumerate(test.items())
    }
    one, other = (disentanglement(base, models, data, s)["a", "b"] for data in (test, bigger))
    np.testing.assert_allclose(one.error, other.error, rtol=1e-4)


def test_only_the_tasks_classes_count():
    net, base, models, test = given()
    masked = {n: HeldOut(n, held.batches, net, n, classes=(0, 2)) for n, held in test.items()}
    s = settings(points=3, reach=1, distance="kl", pairs=(("a", "b"),))
    found = disentanglement(base, models, masked, s)["a", "b"]
    state = [state_at(base, [(1, models["a"])]), state_at(base, [(1, models["a"]), (1, models["b"])])]
    expected = far(*(logits_at(net, one, test["a"])[:, [0, 2]] for one in state), "kl")
    np.testing.assert_allclose(found.parts[0, 2, 2], expected, rtol=1e-4)


def test_tasks_with_heads_of_their_own_and_the_embedding_under_them():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5))
    base, a, b, _ = family(body, scale=0.5)
    test, classes = {}, {"a": ["x", "y"], "b": ["u", "v", "w"]}
    for i, (name, some) in enumerate(classes.items()):
        network = WithHead(body, linear_head(5, some, seed=i)).eval()
        test[name] = HeldOut(
            name, labelled_batches(9, 4, len(some)), network, name, network.head_entries, logits=True
        )
    views = {name: test["a"].model.view(model) for name, model in (("base", base), ("a", a), ("b", b))}
    models = {name: views[name] for name in "ab"}
    outputs = disentanglement(views["base"], models, test, settings(distance="kl"))["a", "b"]
    under = disentanglement(views["base"], models, test, settings(distance="kl", layer="backbone"))["a", "b"]
    grid = outputs.coefficients
    states = [state_at(base, [(grid[3], a)]), state_at(base, [(grid[3], a), (grid[1], b)])]
    embeddings = [logits_at(body, one, test["a"]) for one in states]
    np.testing.assert_allclose(under.parts[0, 3, 1], far(*embeddings, "kl"), rtol=1e-3)
    head = test["a"].model.head
    logits = [nn.functional.linear(x.float(), head.weight, head.bias).double().detach() for x in embeddings]
    np.testing.assert_allclose(outputs.parts[0, 3, 1], far(*logits, "kl"), rtol=1e-3)


def test_language_models_are_compared_by_the_tokens_they_guess():
    net = tiny.tiny("llama")
    base, a, b, _ = family(net, scale=0.3)
    test = {n: HeldOut(n, tiny.batches_for("llama"), net, n) for n in "ab"}
    found = disentanglement(base, {"a": a, "b": b}, test, settings(points=3, reach=1))["a", "b"]
    # A text of one token has no next one: it is no sample.
    assert found.samples == (5, 5) and found.summaries["mean error of the square"].dead == 2
    assert found.summaries["mean error of the square"].n == 8 and 0 < found.error[2, 2] <= 2
    state = {
        point: net_guesses(net, point)
        for point in (base + (a - base), base + (a - base) + (b - base))
    }  # fmt: skip
    one, other = state.values()
    shares = [float((x != y).float().mean()) for x, y in zip(one, other, strict=True) if len(x)]
    np.testing.assert_allclose(found.parts[0, 2, 2], np.mean(shares), rtol=1e-5)
    with pytest.raises(DataError, match="as wide as its vocabulary"):
        disentanglement(base, {"a": a, "b": b}, test, settings(points=2, distance="kl"))
    features = settings(points=2, distance="kl", layer="layers.1", features="each")
    with pytest.raises(DataError, match="one a token"):
        disentanglement(base, {"a": a, "b": b}, test, features)


def net_guesses(net, point):
    """The next tokens of each text alone, without padding."""
    ms.load_weights(net, point)
    with torch.no_grad():
        return [net(text[None]).logits[0, :-1].argmax(-1) for text in tiny.texts()]


# -- summaries ---------------------------------------------------------------------------------------


def test_summaries_are_means_and_shares_of_the_square_and_of_the_box():
    rng = np.random.default_rng(0)
    values = rng.random((3, 3, 40)) * 0.1, rng.random((3, 3, 60)) * 0.3
    cells = inside((-1.0, 0.0, 1.0), (0.0, 1.0))
    error = values[0].mean(2) + values[1].mean(2)
    found = summarised(values, cells, 0.2)
    expected = {
        "mean error of the square": error.mean(),
        "share below of the square": (error < 0.2).mean(),
        "mean error of the box": error[1:, 1:].mean(),
        "share below of the box": (error[1:, 1:] < 0.2).mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].mean, value)
        assert found[name].low <= value <= found[name].high and found[name].n == 100
    # The interval of a mean of independent samples is about two standard errors wide to either side.
    per_sample = [part.mean((0, 1)) for part in values]
    width = 2 * 1.96 * np.sqrt(sum(part.var() / len(part) for part in per_sample))
    square = found["mean error of the square"]
    np.testing.assert_allclose(square.high - square.low, width, rtol=0.15)


def test_a_box_without_a_cell_has_no_summary_and_says_so():
    _, base, models, test = given()
    found = disentanglement(base, models, test, settings(points=2, reach=3, pairs=(("a", "b"),)))
    box = found["a", "b"].summaries["mean error of the box"]
    assert np.isnan(box.mean) and box.n == 0 and "nan" in str(found)


def test_results_print_as_a_table_and_give_rows():
    _, base, models, test = given()
    found = disentanglement(base, models, test, settings())
    head, columns, *lines = str(found).splitlines()
    assert "4 x 4 on [-1.5, 1.5]^2; box [0, 1]^2" in head and "mean error, box" in columns
    assert [line.split("  ")[0] for line in lines] == ["a + b", "a + c", "b + c"]
    rows = found.rows()
    assert len(rows) == 3 * 4 and {row["kind"] for row in rows} == {"disentanglement"}
    assert {row["parameter"] for row in rows if row["measure"].startswith("share")} == {0.1}
    cells = found["b", "c"].cells()
    assert len(cells) == 16 and cells[1]["error"] == found["b", "c"].error[0, 1]
    assert (cells[1]["alpha 1"], cells[1]["alpha 2"]) == (-1.5, -0.5)
    assert cells[1]["term 1"] + cells[1]["term 2"] == pytest.approx(cells[1]["error"])


# -- readings ----------------------------------------------------------------------------------------


def test_parts_of_a_pass_are_put_together():
    pairs = [("a", "b"), ("b", "b")]
    batches = [Batch({}, list(torch.randn(2, 3, 4)), None) for _ in range(3)]
    whole, first, second = (Disagreement(pairs, "kl") for _ in range(3))
    for reading in (whole, first, second):
        reading.start(["a", "b"], [])
    for batch in batches:
        whole.update(batch)
    first.update(batches[0])
    second.update(batches[1])
    second.update(batches[2])
    first.merge(second)
    np.testing.assert_array_equal(first.distances(), whole.distances())
    assert whole.distances().shape == (2, 9) and (whole.distances()[1] == 0).all()
    other = Disagreement(pairs)
    other.start(["a", "b"], [])
    with pytest.raises(MergescopeError, match="same pairs, distance"):
        first.merge(other)


def test_what_a_reading_refuses():
    with pytest.raises(MergescopeError, match=r"no distance 'prediction'. Did you mean: predictions"):
        Disagreement([], "prediction")
    with pytest.raises(MergescopeError, match="blocks.0 predict nothing"):
        Disagreement([], "predictions", "blocks.0")
    reading = Disagreement([("a", "b")], "kl", "blocks.1")
    with pytest.raises(MergescopeError, match="no points of this trace"):
        reading.start(["a"], [])
    with pytest.raises(MergescopeError, match=r"'blocks.1' is no layer.*blocks.0"):
        reading.start(["a", "b"], ["blocks.0"])
    reading.start(["a", "b"], ["blocks.1"])
    with pytest.raises(MergescopeError, match="belongs to one trace"):
        reading.start(["a", "b"], ["blocks.1"])
    maps = Disagreement([("a", "b")])
    maps.start(["a", "b"], [])
    with pytest.raises(DataError, match=re.escape("[2, 3, 4]")):
        maps.update(Batch({}, [torch.ones(2, 3, 4)] * 2, None))


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"pairs": (("a", "d"),)}, MergescopeError, "no task 'd'.*Tasks: a, b, c"),
        ({"pairs": (("a", "a"),)}, MergescopeError, "no pair of tasks"),
        ({"points": 1}, MergescopeError, "at least 2 points"),
        ({"reach": 0.0}, MergescopeError, "reach above 0"),
        ({"distance": "kls"}, MergescopeError, "Did you mean: kl"),
        ({"distance": "kl", "layer": "blocks.*"}, MergescopeError, "is 2 modules"),
        ({"distance": "kl", "layer": "block.1"}, LayerError, "matches no module"),
        ({"linearized": True, "executor": "streamed"}, MergescopeError, "can't run a linearised network"),
    ],
)
def test_wrong_settings_are_told(more, error, message):
    _, base, models, test = given()
    with pytest.raises(error, match=message):
        disentanglement(base, models, test, settings(**more))


def test_tasks_without_data_or_predictions_are_named():
    net, base, models, test = given()
    with pytest.raises(MergescopeError, match="no data for c"):
        disentanglement(base, models, {n: test[n] for n in "ab"}, settings())
    with pytest.raises(MergescopeError, match="two fine-tuned models"):
        disentanglement(base, {"a": models["a"]}, test, settings())
    embeddings = {n: HeldOut(n, held.batches, net, n, logits=False) for n, held in test.items()}
    with pytest.raises(
        MergescopeError, match="a, b, c predict no classes. Compare their outputs: distance kl"
    ):
        disentanglement(base, models, embeddings, settings())
    assert disentanglement(base, models, embeddings, settings(distance="kl", points=2)).grids
    with pytest.raises(MergescopeError, match=r"b:a was not measured. Measured: a:b"):
        disentanglement(base, models, test, settings(points=2))["b", "a"]
    with pytest.raises(MergescopeError, match="no preset 'tangents'. Did you mean: tangent"):
        preset_grid("tangents")


def test_pairs_are_measured_once():
    assert task_pairs([("a", "b"), ("b", "a"), ("a", "c")], "abc") == (("a", "b"), ("a", "c"))
