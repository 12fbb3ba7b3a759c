import numpy as np
import pytest
import torch
from exact_curvature import (
    differenced_curvature,
    differenced_products,
    double_batches,
    doubled,
    exact_hessian,
)
from support import ConvNet, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import CheckpointError, DataError, MergescopeError, MismatchError, PointError
from mergescope.models.batchnorm import reestimate_batchnorm
from mergescope.models.heads import linear_head
from mergescope.models.with_head import WithHead
from mergescope.protocols.curvature import CurvatureSettings, curvature, eigenvalues, lanczos
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import resumable
from mergescope.training.hessian import Hessian
from mergescope.training.linearized import Linearized

SMALL = {
    "mlp": lambda: ms.MLP((64, 4, 4, 3)),
    "vit": lambda: ms.ViT(image=8, patch=4, width=4, depth=2, heads=2, classes=3),
    "convnet": lambda: ConvNet(width=2),
}


def small(kind, seed=0):
    torch.manual_seed(seed)
    net = SMALL[kind]().eval()
    if kind == "convnet":
        reestimate_batchnorm(net, [x for x, _ in labelled_batches(10, 5, seed=5)])
    return net


def given(kind, **more):
    net, checkpoints = doubled(small(kind), **more)
    return net, checkpoints, double_batches(labelled_batches(10, 4))


QUIET = CurvatureSettings(progress=False)


@pytest.mark.parametrize("kind", SMALL)
def test_products_are_those_of_the_exact_hessian(kind):
    net, (base, a, *_), batches = given(kind)
    where = (base + a) / 2
    found = Hessian(net, batches, where)
    vectors = torch.randn(3, found.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = found.products(vectors)
    differences = differenced_products(net, where, vectors, batches)
    np.testing.assert_allclose(products, differences, rtol=1e-4, atol=1e-5)
    if kind != "vit":
        np.testing.assert_allclose(products, vectors.numpy() @ exact_hessian(net, where, batches), atol=1e-9)
    assert products.abs().max() > 0.1
    assert (found.samples, found.passes, found.shape) == (10, 3, (found.size, found.size))


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_eigenvalues_are_those_of_the_exact_hessian_and_of_scipy(kind):
    scipy = pytest.importorskip("scipy.sparse.linalg")
    net, (base, *_), batches = given(kind)
    every = np.linalg.eigvalsh(exact_hessian(net, base, batches))
    held = HeldOut("data", batches, net)
    for end, wanted in (("largest", every[:-4:-1]), ("smallest", every[:3])):
        s = CurvatureSettings(3, end, tolerance=1e-8, max_steps=len(every), progress=False)
        found = eigenvalues(base, held, s)
        assert found.found.converged and found.samples == 10
        np.testing.assert_allclose(found.found.values, wanted, rtol=1e-6, atol=1e-8 * every[-1])
    by_scipy = scipy.eigsh(Hessian(net, batches, base).operator(), k=1, which="LA", return_eigenvectors=False)
    assert eigenvalues(base, held, QUIET).value == pytest.approx(by_scipy[0], rel=1e-3)


def test_curvature_along_directions_is_that_of_the_exact_hessian():
    net, (base, a, b, _), batches = given("mlp")
    exact = exact_hessian(net, base, batches)
    found = curvature(base, HeldOut("data", batches, net), {"a": a - base, "b": b - base, "0": a - a}, QUIET)
    hessian = Hessian(net, batches, base)
    d = np.stack([hessian.flat(direction).numpy() for direction in (a - base, b - base, a - a)])
    np.testing.assert_allclose(found.matrix, d @ exact @ d.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.inner, d @ d.T, rtol=1e-12)
    assert found["0"] == 0 and found.passes == 3  # one pass of three batches, for all directions
    merge = d[0] - d[1]
    np.testing.assert_allclose(found.along({"a": 1, "b": -1}), (merge @ exact @ merge, merge @ merge))
    said = str(found).splitlines()
    assert said[0] == "Curvature at base on data (10 samples)" and said[-1].split() == ["0", "0", "0", "nan"]
    row = found.rows()[0]
    assert (row["points"], row["measure"], row["mean"]) == ("a at base", "d^T H d", found["a"])


TRANSFORMERS = ["llama", "tied llama", "gpt2", "bert", "vit"]


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_have_the_curvature_of_their_losses(kind):
    from tiny_transformers import batches_for, tiny

    net, (base, a, *_) = doubled(tiny(kind), scale=0.02)
    state = a.state_dict()
    entries = net.state_dict(keep_vars=True)
    for name, entry in net.named_parameters():  # the other names of tied weights move with them
        state |= {other: state[name] for other in state if entries[other] is entry}
    a = ms.Checkpoint(state, name="a")
    batches = [
        {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        for batch in batches_for(kind)
    ]
    held = HeldOut("data", batches, net, logits=kind in ("bert", "vit"))
    found = curvature(base, held, {"a": a - base}, QUIET)
    slow = differenced_curvature(net, ms.Point.of(base), a - base, batches)
    assert found["a"] == pytest.approx(slow, rel=1e-3)  # some compute norms in float32
    changes = [(a.tensor(name) - base.tensor(name)).square().sum() for name, _ in net.named_parameters()]
    assert found.along({"a": 1})[1] == pytest.approx(float(sum(changes)))


def test_a_fixed_head_is_no_coordinate_and_other_classes_are_masked():
    torch.manual_seed(0)
    head = linear_head(4, ["x", "y", "z", "u"], seed=0, policy="frozen-random")
    net = WithHead(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh()), head).double().eval()
    base = ms.Checkpoint({k: v for k, v in net.state_dict().items() if "head" not in k}, name="base")
    whole = ms.Checkpoint(net.state_dict(), name="whole")
    batches = double_batches(labelled_batches(10, 4))
    classes = (0, 1, 2)
    found = Hessian(net, batches, base, fixed=net.head_entries, classes=classes)
    assert found.names == ("backbone.1.weight", "backbone.1.bias")
    exact = exact_hessian(net, ms.Point.of(whole), batches, classes)[: found.size, : found.size]
    eye = torch.eye(found.size, dtype=torch.float64)
    np.testing.assert_allclose(found.products(eye), exact, atol=1e-12)
    held = HeldOut("data", batches, net, fixed=net.head_entries, classes=classes)
    assert eigenvalues(base, held, QUIET).value == pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-3)


def test_batchnorm_uses_stored_statistics_or_those_of_the_batch_as_told():
    net, (base, *_), _ = given("convnet")
    batches = double_batches(labelled_batches(8, 8))
    stored = {key: value.clone() for key, value in net.state_dict().items()}
    at_rest, of_batch = (
        Hessian(net, batches, base, batchnorm=mode).products(torch.eye(75, dtype=torch.float64))
        for mode in ("eval", "batch")
    )
    free = ConvNet(width=2).double()
    for block in free.blocks:
        block[1] = nn.BatchNorm2d(2, track_running_stats=False).double()
    trained = ms.Checkpoint({key: base.tensor(key) for key in free.state_dict()}, name="free")
    eye = torch.eye(75, dtype=torch.float64)
    for found, network, point in ((at_rest, net, base), (of_batch, free, trained)):
        np.testing.assert_allclose(
            found, differenced_products(network, ms.Point.of(point), eye, batches), atol=1e-6
        )
    assert (at_rest - of_batch).abs().max() > 0.01
    for key, value in net.state_dict().items():  # neither weights nor statistics have changed
        assert torch.equal(value, stored[key])
    assert not any(module.training for module in net.modules())
    assert all(block[1].track_running_stats for block in net.blocks)


def test_modes_and_weights_of_the_network_are_put_back():
    net = make_net("vit").train()
    base, a, *_ = family(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():  # whoever calls may have gradients off
        found = curvature(a, HeldOut("data", labelled_batches(), net), {"a": a - base}, QUIET)
    assert found["a"] != 0 and all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x * self.w

    net = Linear()
    base = ms.Checkpoint(net.state_dict(), name="base")
    one_class = HeldOut("data", [(torch.ones(3, 2), torch.zeros(3).long())], net, classes=(0,))
    found = eigenvalues(base, one_class, QUIET)
    assert (found.value, found.found.steps, found.found.converged) == (0, 1, True)


def test_texts_without_a_token_to_predict_count_for_nothing():
    from tiny_transformers import padded, texts, tiny

    net = tiny("llama")
    base, a, *_ = family(net)
    some = texts((5, 1, 3))
    both = [curvature(base, HeldOut("d", [padded(part)], net), {"a": a - base}) for part in (some, some[::2])]
    assert [found.samples for found in both] == [2, 2]
    assert both[0]["a"] == pytest.approx(both[1]["a"], rel=1e-4)
    with pytest.raises(DataError, match="no sample with a loss"):
        curvature(base, HeldOut("d", [padded(texts((1, 1)))], net), {"a": a - base})


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


class OnceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = ms.MLP((64, 3))

    def forward(self, x):
        return Once.apply(self.inner(x))


def refusals():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    data = labelled_batches()
    ok = HeldOut("data", data, net)
    half = make_net("mlp").bfloat16()
    meta = make_net("mlp").to("meta")
    once_net = OnceNet()
    once_base = ms.Checkpoint(once_net.state_dict(), name="base")
    other = ms.Checkpoint(make_net("vit").state_dict(), name="other")
    huge = ms.Checkpoint({k: v * float("nan") for k, v in base.state_dict().items()}, name="huge")
    linear = Linearized(make_net("mlp"))
    all_fixed = HeldOut("data", data, net, fixed=frozenset(net.state_dict()))
    wrong = [(x, y + 1) for x, y in data]
    yield lambda: eigenvalues(base, HeldOut("d", data, half), QUIET), MergescopeError, "computes in bfloat16"
    yield lambda: eigenvalues(base, HeldOut("d", data, meta), QUIET), MergescopeError, "has no memory"
    yield lambda: eigenvalues(base, HeldOut("d", data, linear), QUIET), MergescopeError, "linearised MLP"
    yield lambda: eigenvalues(base, HeldOut("d", [x for x, _ in data], net), QUIET), DataError, "needs labels"
    yield lambda: eigenvalues(base, HeldOut("d", wrong, net), QUIET), DataError, r"Labels \[3\]"
    yield lambda: eigenvalues(base, HeldOut("d", iter(data), net), QUIET), DataError, "one-shot iterator"
    yield lambda: eigenvalues(huge, ok, QUIET), CheckpointError, "NaN or infinite at Point"
    yield lambda: eigenvalues(other, ok, QUIET), MismatchError, "does not fit MLP"
    held_once = HeldOut("d", data, once_net)
    yield lambda: eigenvalues(once_base, held_once, QUIET), MergescopeError, "OnceNet has no Hessian"
    yield lambda: curvature(base, ok, {"a": a}), PointError, "a = a is none"
    yield lambda: curvature(base, ok, {}), PointError, "there is none"
    yield lambda: curvature(base, ok, {"tau": a - b}).along({"tua": 1}), PointError, "Did you mean: tau"
    yield lambda: Hessian(net, data, base).products(torch.ones(1, 5)), MergescopeError, r"\[1, 5\]"
    yield lambda: Hessian(net, data, base, batchnorm="evil"), MergescopeError, "Did you mean: eval"
    yield lambda: curvature(net_only(), all_fixed, {"a": a - b}), MergescopeError, "no weight that the points"
    yield lambda: eigenvalues(base, ok, CurvatureSettings(end="larger")), MergescopeError, "Did you mean: la"
    yield lambda: eigenvalues(base, ok, CurvatureSettings(0)), MergescopeError, r"0 eigenvalue\(s\)"


def net_only():
    return ms.Checkpoint({"nothing.inv_freq": torch.ones(1)}, name="nothing")


@pytest.mark.parametrize("case", range(17))
def test_what_has_no_hessian_is_refused(case):
    call, kind, said = list(refusals())[case]
    with pytest.raises(kind, match=said):
        call()


def test_finished_work_of_a_killed_run_is_not_done_again(tmp_path):
    class Counted(list):
        fingerprint, passes = "these", 0

        def __iter__(self):
            type(self).passes += 1
            return super().__iter__()

    net = make_net("mlp")
    base, a, *_ = family(net)
    held = HeldOut("data", Counted(labelled_batches()), net)

    def both():
        found = eigenvalues(base, held, QUIET), curvature(base, held, {"a": a - base}, QUIET)
        return found[0].found, found[1].matrix.tolist(), found[1].samples

    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "passes"):
        first = both()
        raise KeyboardInterrupt
    passes = Counted.passes
    with resumable(tmp_path / "passes"):
        assert both() == first and Counted.passes == passes
        eigenvalues(base, held, CurvatureSettings(seed=1, progress=False))
        assert Counted.passes > passes


def test_eigenvalues_say_what_they_are():
    net = make_net("mlp")
    base, *_ = family(net)
    held = HeldOut("data", labelled_batches(), net)
    few = eigenvalues(base, held, CurvatureSettings(2, tolerance=1e-9, max_steps=3, progress=False))
    assert not few.found.converged and few.found.steps == 3 and few.passes == 9
    assert str(few).endswith("(3 products, not converged: raise max_steps)")
    rows = few.rows()
    assert [row["parameter"] for row in rows] == [1, 2] and rows[0]["mean"] == few.value
    assert rows[0]["high"] - rows[0]["low"] == pytest.approx(2 * few.found.residuals[0])


@pytest.mark.parametrize("end", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("size", [2, 30, 200])
def test_lanczos_finds_the_ends_of_a_spectrum_within_its_residuals(size, end):
    a = np.random.default_rng(size).standard_normal((size, size))
    a, count = a + a.T, min(size, 3)
    every = np.linalg.eigvalsh(a)
    order = {"largest": -every, "smallest": every, "magnitude": -np.abs(every)}[end]
    wanted = every[np.argsort(order)][:count]
    found = lanczos(a.dot, size, count=count, end=end, tolerance=1e-5, max_steps=size)
    assert found.converged
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5)
    early = lanczos(a.dot, size, count=1, end=end, tolerance=0.0, max_steps=max(1, size // 10))
    distance = np.abs(every - early.values[0]).min()
    assert distance <= early.residuals[0] + 1e-9 and every[0] - 1e-9 <= early.values[0] <= every[-1] + 1e-9
