"""Second derivatives of features along task vectors: against differences, autograd and closed forms."""

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import batches_for, tiny
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import mergescope as ms
from mergescope.errors import CheckpointError, DataError, LayerError, MergescopeError, PointError
from mergescope.models.features import Features
from mergescope.models.heads import linear_head
from mergescope.models.with_head import WithHead
from mergescope.readings import InnerProducts
from mergescope.readings.logits import Logits
from mergescope.tracing import derivatives, explicit
from mergescope.tracing.derivatives import Derivatives
from mergescope.tracing.second_order import ORIGIN, second_order, taylor_weights, terms_of
from mergescope.training import linearized_network
from mergescope.weights import task_vector

SMOOTH = ("vit", "packed vit", "bert", "gpt2", "hf vit", "clip")
ROUNDED = ("llama", "mistral")  # their norms are in float32, whatever the weights: too coarse for differences
KINKED = ("mlp", "t5")


class Keeping:
    """A reading that keeps what it is given."""

    needs_features = True

    def start(self, points, layers):
        self.points, self.layers = list(points), list(layers)
        self.kept = []

    def update(self, batch):
        self.kept.append(batch)

    def merge(self, other):
        self.kept += other.kept

    def of(self, point, layer):
        return torch.cat([batch.features[layer][self.points.index(point)] for batch in self.kept])


def double(batch):
    if not isinstance(batch, dict):
        return batch[0].double(), batch[1]
    return {key: value.double() if key == "pixel_values" else value for key, value in batch.items()}


def set_up(kind, scale=0.1):
    """A network, a base, two task vectors and data, in float64."""
    net = (make_net(kind) if kind in NETS else tiny(kind.removeprefix("hf "))).double()
    data = labelled_batches() if kind in NETS else batches_for(kind.removeprefix("hf "))
    entries = net.state_dict(keep_vars=True)
    last = {
        id(entry): key for key, entry in entries.items()
    }  # copies of a tied tensor are equal in real checkpoints
    base, a, b, _ = (
        ms.Checkpoint({key: model.tensor(last[id(entry)]) for key, entry in entries.items()}, name=model.name)
        for model in family(net, scale=scale)
    )
    return (
        net,
        base,
        {"a": task_vector(a, base), "b": task_vector(b, base)},
        [double(batch) for batch in data],
    )


def kept(*args, **more):
    reading = Keeping()
    found = second_order(*args, readings=[reading], progress=False, **more)
    return found, reading


def assert_close(one, two, tolerance):
    scale = float(two.abs().max())
    assert scale > 0
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * scale)


# -- against slow references ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMOOTH)
def test_both_ways_to_take_derivatives_agree_at_every_layer(kind):
    net, base, vectors, data = set_up(kind)
    features = "mean" if kind == "bert" else "auto"  # batches are padded to different lengths
    found, exact = kept(base, vectors, data, net, features=features)
    _, near = kept(base, vectors, data, net, features=features, method="differences", step=5e-5)
    assert found.terms == tuple(terms_of(["a", "b"])) and len(found.trace.layers) >= 3
    for layer in found.trace.layers:
        for term in found.terms:
            if len(term) == 2 and layer in found.trace.trivial:
                continue
            assert_close(exact.of(term, layer), near.of(term, layer), 2e-4)


@pytest.mark.parametrize("kind", [*SMOOTH, *ROUNDED, *KINKED])
def test_outputs_have_the_derivatives_of_the_reverse_mode(kind):
    net, base, vectors, data = set_up(kind)
    inputs = data[0][0] if isinstance(data[0], tuple) else {k: v for k, v in data[0].items() if k != "labels"}
    _, exact = kept(base, vectors, [inputs], net)
    features = Features.of(net)
    moving = {key: value.clone() for key, value in base.state_dict().items() if value.is_floating_point()}
    tied = {id(entry): key for key, entry in net.state_dict(keep_vars=True).items() if key in moving}
    names = list(tied.values())  # of tied weights, the last one fills them
    # Each place once: where one module has several names (T5 in transformers 4), functional_call would put the
    # replaced tensor back in place of the network's own, and leave the network with weights that are tied no more.
    places = {
        f"{path}.{leaf}".lstrip("."): list(tied).index(id(entry))
        for path, module in net.named_modules()
        for leaf, entry in {**module._parameters, **module._buffers}.items()
        if id(entry) in tied
    }
    probe = torch.randn(exact.of((), "output").shape, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels can't be differentiated twice

        def probed(*weights):
            def call(*args, **kwargs):
                given = {name: weights[place] for name, place in places.items()}
                return functional_call(net, given, args, kwargs, tie_weights=False)

            return (features.output_rows(features.call(call, inputs), inputs) * probe).sum()

        at = tuple(moving[name] for name in names)
        along = {k: tuple(vector.tensor(name) for name in names) for k, vector in vectors.items()}
        for one, other in (("a", "a"), ("a", "b"), ("b", "b")):
            _, product = torch.autograd.functional.vhp(probed, at, along[one])
            wanted = sum((p * v).sum() for p, v in zip(product, along[other], strict=True))
            second = exact.of((one, other), "output") * probe
            assert float(second.abs().sum()) > 0
            assert float(second.sum()) == pytest.approx(float(wanted), abs=1e-5 * float(second.abs().sum()))


@pytest.mark.parametrize("track", [True, False])
def test_statistics_of_batchnorm_move_along_task_vectors(track):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=track)
    net = (
        nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double().eval()
    )
    base, a, _, _ = family(net)
    vectors, data = {"a": task_vector(a, base)}, [double(batch) for batch in labelled_batches()]
    found, exact = kept(base, vectors, data, net, layers=["1", "output"])
    _, near = kept(base, vectors, data, net, layers=["1", "output"], method="differences", step=1e-3)
    for layer in ("1", "output"):
        for term in found.terms:
            assert_close(exact.of(term, layer), near.of(term, layer), 1e-4)


class Squares(nn.Module):
    """(x w)^2 + x v + u, a quadratic in the weights whose derivatives are known."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))
        self.u = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return (x @ self.w) ** 2 + x @ self.v + self.u


@pytest.mark.parametrize("method", derivatives.METHODS)
def test_a_quadratic_network_has_the_derivatives_of_a_quadratic(method):
    net = Squares().double()
    base, a, b, _ = family(net)
    vectors = {"a": task_vector(a, base), "b": task_vector(b, base)}
    x = torch.randn(5, 3, dtype=torch.float64)
    _, got = kept(base, vectors, [x], net, layers="output", method=method)
    w = base.tensor("w")
    taus = {k: {key: v.tensor(key) for key in "wvu"} for k, v in vectors.items()}
    torch.testing.assert_close(got.of((), "output"), net(x).detach())
    for k, tau in taus.items():
        slope = 2 * (x @ w) * (x @ tau["w"]) + x @ tau["v"] + tau["u"]
        torch.testing.assert_close(got.of((k,), "output"), slope)
    for one, other in (("a", "a"), ("a", "b"), ("b", "b")):
        torch.testing.assert_close(
            got.of((one, other), "output"), 2 * (x @ taus[one]["w"]) * (x @ taus[other]["w"])
        )


def test_points_of_the_same_pass_are_those_of_a_trace():
    net, base, vectors, data = set_up("vit")
    middle = base + 0.5 * vectors["a"]
    _, got = kept(base, vectors, data, net, points=[middle, base])
    other = Keeping()
    ms.trace([middle], data, net, readings=[other], progress=False)
    for layer in other.layers:
        torch.testing.assert_close(got.of(middle, layer) + got.of((), layer), other.of(middle, layer))
        assert got.of(ms.Point.of(base), layer).abs().max() < 1e-12
        assert not got.of(ORIGIN, layer).any()


# -- properties ------------------------------------------------------------------------------------


def test_layers_that_are_linear_in_the_weights_have_no_second_derivatives():
    net, base, vectors, data = set_up("vit")
    found, got = kept(base, vectors, data, net, layers=["patch_embed"])
    assert found.trace.trivial == {"patch_embed"}
    assert got.of(("a",), "patch_embed").abs().max() > 0
    for pair in (("a", "a"), ("a", "b"), ("b", "b")):
        assert not got.of(pair, "patch_embed").any()


def test_the_order_of_task_vectors_makes_no_difference():
    net, base, vectors, data = set_up("vit")
    _, one = kept(base, vectors, data, net)
    _, two = kept(base, dict(reversed(vectors.items())), data, net)
    for layer in one.layers:
        assert_close(one.of(("a", "b"), layer), two.of(("b", "a"), layer), 1e-10)


def test_batches_make_no_difference():
    net, base, vectors, data = set_up("vit")
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    _, one = kept(base, vectors, data, net)
    _, two = kept(base, vectors, whole, net)
    for layer in one.layers:
        for term in terms_of(["a", "b"]):
            assert_close(one.of(term, layer), two.of(term, layer), 1e-10)


@pytest.mark.parametrize("method", derivatives.METHODS)
def test_along_a_task_vector_that_is_zero_nothing_changes(method):
    net, base, vectors, data = set_up("vit")
    with_zero = {"a": vectors["a"], "none": task_vector(base, base), "b": vectors["b"]}
    _, got = kept(base, with_zero, data, net, method=method)
    _, without = kept(base, vectors, data, net, method=method)
    for term in terms_of(list(with_zero)):
        if "none" in term:
            assert not got.of(term, "output").any()
        else:
            assert_close(got.of(term, "output"), without.of(term, "output"), 1e-10)


def test_directions_are_mapped_over_or_taken_one_by_one(monkeypatch):
    net, base, vectors, data = set_up("vit")
    _, mapped = kept(base, vectors, data, net)
    monkeypatch.setattr(derivatives, "MAPPED", 1)
    _, single = kept(base, vectors, data, net)
    for term in terms_of(["a", "b"]):
        assert_close(mapped.of(term, "output"), single.of(term, "output"), 1e-10)


@pytest.mark.parametrize(("first", "mapped"), [(1, 1), (2, 2), (2, 4), (3, 2), (8, 8)])
def test_blocks_of_any_shape_have_the_derivatives_of_pairs_one_by_one(monkeypatch, first, mapped):
    net = make_net("vit").double()
    base, *tuned = family(net, names=("base", "a", "b", "c", "d", "e"))
    vectors = {model.name: task_vector(model, base) for model in tuned}
    # Others move other weights: of one, nothing; of one, the head only.
    vectors["c"] = base - base
    head = {
        key: tuned[3].state_dict()[key] if "head" in key else value
        for key, value in base.state_dict().items()
    }
    vectors["d"] = task_vector(ms.Checkpoint(head, name="head"), base)
    keys, layers = {key: key for key in net.state_dict()}, ["blocks.0", "blocks.1"]
    inputs = labelled_batches(4, 4)[0][0].double()
    net.load_state_dict(base.state_dict())
    monkeypatch.setattr(derivatives, "FIRST", first)
    monkeypatch.setattr(derivatives, "MAPPED", mapped)
    made = Derivatives(net, keys, layers, Features.of(net), vectors)
    found = made.of(inputs)
    assert list(found) == terms_of(list(vectors)) and made.derivatives == 10  # of four that move
    for one, other in (term for term in found if len(term) == 2):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            if "c" in (one, other):
                assert all(not rows.any() for rows in found[one, other].values())
                continue
            slope, curvature = made.twice(inputs, made.direction(one), made.direction(other))
        for at in (*layers, "output"):
            torch.testing.assert_close(found[one, other][at], curvature[at], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found[other,][at], slope[at], rtol=1e-9, atol=1e-12)
    assert found["a", "b"]["output"].abs().max() > 1e-3


class Asking(nn.Linear):
    """A layer that looks at its values, which can't be mapped over."""

    def forward(self, x):
        value = super().forward(x)
        return torch.tanh(value) if value.sum().item() < 1e9 else value


def test_what_can_not_be_mapped_over_is_taken_one_by_one():
    net = nn.Sequential(Asking(4, 3), nn.Linear(3, 2)).double()
    base, a, b, _ = family(net)
    vectors, x = (
        {"a": task_vector(a, base), "b": task_vector(b, base)},
        torch.randn(5, 4, dtype=torch.float64),
    )
    smooth = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    _, got = kept(base, vectors, [x], net, layers="output")
    keys = {"0": "0", "1": "2"}
    renamed = [
        ms.Checkpoint({keys[k[0]] + k[1:]: v for k, v in it.state_dict().items()}, name=it.name)
        for it in (base, a, b)
    ]
    start, one, other = renamed
    again = {"a": task_vector(one, start), "b": task_vector(other, start)}
    _, wanted = kept(start, again, [x], smooth, layers="output")
    for term in terms_of(["a", "b"]):
        assert_close(got.of(term, "output"), wanted.of(term, "output"), 1e-10)


def test_task_vectors_that_are_too_large_are_read_for_each_use():
    net, base, vectors, data = set_up("vit")
    names = {key: key for key in net.state_dict()}
    one, two = (Derivatives(net, names, [], Features(), vectors, held=held) for held in (0, 2**30))
    for rows, others in zip(one.of(data[0][0]).values(), two.of(data[0][0]).values(), strict=True):
        torch.testing.assert_close(rows["output"], others["output"])
    assert not one._kept and set(two._kept) == {"a", "b"}


def test_weights_and_modes_are_put_back_and_layers_can_run_in_place():
    net, base, vectors, data = set_up("convnet")
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    kept(base, vectors, data, net, points=[base + vectors["a"]])
    assert net.training and net.blocks[0][1].training
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_tokens_are_samples_of_their_own_if_asked_for():
    net, base, vectors, data = set_up("bert")
    found, got = kept(base, vectors, data, net, features="each")
    tokens = sum(int(batch["attention_mask"].sum()) for batch in data)
    layer = found.trace.layers[0]
    assert got.of(("a", "b"), layer).shape == (tokens, 16)
    units = np.concatenate([batch.units[layer] for batch in got.kept])
    assert sorted(set(units.tolist())) == [0, 1, 2, 3, 4]


def test_a_tasks_own_head_stays():
    body = make_net("vit").double()
    body.head = nn.Identity()
    base, a, _, _ = family(body)
    net = WithHead(body, linear_head(16, ["x", "y"], seed=0)).double().eval()
    fixed = frozenset(name for name in net.state_dict() if name.startswith("head."))
    source, tuned = (
        ms.Checkpoint({f"backbone.{key}": value for key, value in it.state_dict().items()}, name=it.name)
        for it in (base, a)
    )
    tau = task_vector(tuned, source)
    _, exact = kept(
        source, {"a": tau}, [double(b) for b in labelled_batches()], net, fixed=fixed, layers="output"
    )
    head = net.head(net.backbone(labelled_batches()[0][0].double()))
    assert_close(exact.of((), "output")[:4], head.detach(), 1e-10)
    _, near = kept(
        source, {"a": tau}, [double(b) for b in labelled_batches()], net, fixed=fixed, layers="output",
        method="differences", step=1e-3,
    )  # fmt: skip
    assert_close(exact.of(("a", "a"), "output"), near.of(("a", "a"), "output"), 1e-4)


def test_the_usual_readings_take_terms_for_points():
    net, base, vectors, data = set_up("vit")
    logits = Logits()
    found = second_order(base, vectors, data, net, readings=[InnerProducts(), logits], progress=False)
    gram = found.trace.reading(InnerProducts).gram("output", found.terms)
    for i, term in enumerate(found.terms):
        values = logits.values(term).double()
        assert_close(torch.from_numpy(gram[:, i, i]), (values**2).sum(1), 1e-5)
    assert found.trace.samples == 10 and found.derivatives == 9 and found.trace.forward_passes == 3


def test_the_price_of_differences():
    net, base, vectors, data = set_up("vit")
    found, _ = kept(base, vectors, data, net, method="differences")
    assert found.derivatives == 0 and found.trace.forward_passes == 3 * (1 + 2 + 4)


# -- what must not pass ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.LayerNorm(6), (4, 6)), (nn.InstanceNorm1d(6, affine=True), (4, 6, 5)),
     (nn.BatchNorm1d(6, track_running_stats=False), (4, 6)), (nn.BatchNorm1d(6), (4, 6))],
)  # fmt: skip
def test_written_out_normalisations_are_those_of_torch(module, shape):
    module = module.double().eval()
    for entry in module.state_dict().values():
        if entry.is_floating_point():
            entry.copy_(torch.rand_like(entry) + 0.5)
    x = torch.randn(shape, dtype=torch.float64)
    with explicit.ExplicitOperations():
        mine = module(x)
    torch.testing.assert_close(mine, module(x))
    half = module.to(torch.bfloat16)
    with explicit.ExplicitOperations():
        mine = half(x.bfloat16())
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, half(x.bfloat16()), rtol=0.02, atol=0.02)


def test_functions_of_torch_itself_are_written_out_as_well():
    x, ones = torch.randn(4, 6, 5), torch.rand(6) + 1
    for call in (
        lambda: torch.layer_norm(x, (5,), None, None, 1e-5),
        lambda: torch.batch_norm(x, ones, ones, ones, ones, False, 0.1, 1e-5, False),
        lambda: torch.instance_norm(x, ones, ones, None, None, True, 0.1, 1e-5, False),
        lambda: F.instance_norm(x, ones, ones, use_input_stats=False),
    ):
        with explicit.ExplicitOperations():
            mine = call()
        torch.testing.assert_close(mine, call())


@pytest.mark.parametrize("name", ["silu", "mish", "glu", "hardsigmoid"])
def test_written_out_activations_are_those_of_torch_and_have_second_derivatives(name):
    call, x, v = getattr(F, name), torch.randn(3, 8).double(), torch.randn(3, 8).double()

    def slope(x):
        return torch.func.jvp(call, (x,), (v,))[1]

    with torch.no_grad(), pytest.raises(RuntimeError, match="forward AD"):
        torch.func.jvp(slope, (x,), (v,))
    with torch.no_grad(), explicit.ExplicitOperations():
        curvature = torch.func.jvp(slope, (x,), (v,))[1]
        near = (slope(x + 1e-5 * v) - slope(x - 1e-5 * v)) / 2e-5
        mine = [call(x), call(x.bfloat16())]
    torch.testing.assert_close(curvature, near, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine, [call(x), call(x.bfloat16())])


def test_wrong_second_derivatives_are_refused(monkeypatch):
    net, base, vectors, data = set_up("vit")
    # torch's own layer_norm is wrong when it is differentiated forward twice, without any error.
    monkeypatch.setattr(explicit, "EXPLICIT", {})
    with pytest.raises(MergescopeError, match="second derivatives of ViT come out wrong.*differences"):
        kept(base, vectors, data, net)


class _Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_operations_without_a_derivative_are_refused_with_what_to_do(monkeypatch):
    net, base, vectors, data = set_up("mlp")
    forward = type(net).forward
    monkeypatch.setattr(type(net), "forward", lambda self, x: _Doubling.apply(forward(self, x)))
    with pytest.raises(MergescopeError, match="no forward-mode derivative: .*--method differences"):
        kept(base, vectors, data, net)
    found, _ = kept(base, vectors, data, net, method="differences")
    assert found.method == "differences"


def test_what_can_not_be_expanded_is_refused():
    net, base, vectors, data = set_up("mlp")
    with pytest.raises(PointError, match="a is no direction.*model - base"):
        second_order(base, {"a": ms.Point.of(base)}, data, net)
    with pytest.raises(PointError, match="There are no task vectors"):
        second_order(base, {}, data, net)
    with pytest.raises(PointError, match="is no model"):
        second_order(vectors["a"], vectors, data, net)
    with pytest.raises(MergescopeError, match="no way 'jpv'.*Did you mean: jvp"):
        second_order(base, vectors, data, net, method="jpv")
    with pytest.raises(MergescopeError, match="step of differences is 0"):
        second_order(base, vectors, data, net, method="differences", step=0)
    with pytest.raises(DataError, match="is empty"):
        second_order(base, vectors, [], net, check=False)
    with pytest.raises(LayerError):
        second_order(base, vectors, data, net, layers="nothing")
    with pytest.raises(MergescopeError, match="linearised MLP has no second derivatives"):
        second_order(base, vectors, data, linearized_network(net, base))
    with pytest.raises(MergescopeError, match="An empty MLP has no memory"):
        second_order(base, vectors, data, make_net("mlp").to("meta"))


def test_derivatives_that_are_not_finite_are_refused():
    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x).abs().sqrt()

    net = Root(2, 2, bias=False).double()
    base = ms.Checkpoint({"weight": torch.zeros(2, 2, dtype=torch.float64)}, name="base")
    a = ms.Checkpoint({"weight": torch.ones(2, 2, dtype=torch.float64)}, name="a")
    with pytest.raises(CheckpointError, match="derivative along a is NaN or infinite"):
        second_order(
            base, {"a": task_vector(a, base)}, [torch.ones(3, 2, dtype=torch.float64)], net, layers="output",
            progress=False, check=False,
        )  # fmt: skip


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Linear(3, 3)

    def forward(self, x):
        return self.block(torch.tanh(self.block(x)))


def test_a_layer_that_runs_twice_has_no_single_feature():
    net = Twice()
    base, a, _, _ = family(net)
    with pytest.raises(LayerError, match="'block' runs more than once"):
        second_order(
            base, {"a": task_vector(a, base)}, [torch.ones(2, 3)], net, layers=["block"], progress=False
        )


def test_weights_of_terms():
    terms = terms_of(["a", "b", "c"])
    assert len(terms) == 1 + 3 + 6
    np.testing.assert_allclose(taylor_weights(terms, {}), [1] + 9 * [0])
    weights = dict(zip(terms, taylor_weights(terms, {"a": 0.5, "c": -1}), strict=True))
    assert weights["a", "a"] == 0.125 and weights["a", "c"] == -0.5 and weights["c", "c"] == 0.5
    with pytest.raises(PointError, match="no derivatives along d"):
        taylor_weights(terms, {"d": 1.0})


def test_networks_too_large_for_blocks_are_differentiated_one_direction_at_a_time(monkeypatch):
    from mergescope.models.features import Features
    from mergescope.tracing.derivatives import Derivatives

    net = ms.MLP((4, 6, 5, 2)).eval()
    base = ms.Checkpoint(net.state_dict(), name="base")
    vectors = {
        name: ms.random_neighbour(base, base * 1.3, seed=seed) - base for seed, name in enumerate("abc")
    }
    mapping = {key: key for key in net.state_dict()}
    inputs = torch.randn(7, 4)
    whole = Derivatives(net, mapping, ["blocks.1"], Features(), vectors).of(inputs)
    single = Derivatives(net, mapping, ["blocks.1"], Features(), vectors, held=0)

    def never(*arguments):
        raise AssertionError("mapped")

    monkeypatch.setattr(single, "_mapped", never)
    found = single.of(inputs)
    assert found.keys() == whole.keys()
    for term, rows in whole.items():
        for layer, value in rows.items():
            torch.testing.assert_close(found[term][layer], value, atol=1e-6, rtol=1e-5)
