"""Block by block gives, bit for bit, what the resident executor gives."""

import importlib
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import family, labelled_batches, make_net
from tiny_transformers import DECODERS, MAKERS, batches_for, tiny
from torch import nn

import mergescope as ms
from mergescope.errors import LayerError, MergescopeError
from mergescope.models.nets import net_config
from mergescope.tracing import chain, streamed
from mergescope.tracing.states import States

KINDS = [kind for kind in MAKERS if kind != "t5"]
EXECUTORS = importlib.import_module("mergescope.tracing.trace").EXECUTORS


def batches_of(kind):
    return labelled_batches(5, 2) if kind == "our vit" else batches_for(kind)


def network_of(kind):
    return make_net("vit") if kind == "our vit" else tiny(kind)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of a base and two fine-tunes of each kind, made when asked for."""
    root = tmp_path_factory.mktemp("models")

    def make(kind, dtype=torch.float32):
        folder = root / f"{kind}-{dtype}"
        if not folder.exists():
            net = network_of(kind)
            for point in family(net, ("base", "a", "b"), scale=0.05):
                state = {key: value.to(dtype) for key, value in point.state_dict().items()}
                net.load_state_dict(state)
                place = folder / point.name
                if kind == "our vit":
                    place.mkdir(parents=True)
                    (place / "config.json").write_text(json.dumps(net_config(net)))
                    save_file(state, place / "model.safetensors")
                else:
                    net.to(dtype).save_pretrained(place)
        return [ms.Checkpoint(folder / name, name=name) for name in ("base", "a", "b")]

    return make


@pytest.fixture
def little_memory(monkeypatch, tmp_path):
    """Room for one hidden state or so; the others go to files in this folder."""
    monkeypatch.setitem(EXECUTORS, "streamed", partial(streamed.run_streamed, budget=5000))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


class Watcher:
    """A reading that counts the files in a folder, and may fail."""

    needs_features = True

    def __init__(self, folder, fail=False):
        self.folder, self.fail, self.files = folder, fail, 0

    def start(self, points, layers):
        pass

    def update(self, batch):
        self.files = max(self.files, sum(path.is_file() for path in self.folder.glob("mergescope-*/*")))
        if self.fail:
            raise RuntimeError("on purpose")


def readings_of(kind):
    own = ms.NextTokenLoss() if kind in DECODERS else None if kind == "clip" else ms.Outputs()
    return [ms.InnerProducts(), ms.InnerProducts(local=True), *([] if own is None else [own])]


def run(kind, model, base, a, b, executor, more=(), **options):
    test = ms.ctl(a, b, 0.3, reference=base)
    readings = [*readings_of(kind), *more]
    return ms.trace(
        test.points, batches_of(kind), model, executor=executor, local=base, readings=readings, **options
    )


def assert_same(one, two):
    assert one.forward_passes == two.forward_passes and one.local_passes == two.local_passes
    assert one.samples == two.samples == 5 and one.layers == two.layers
    for mine, other in zip(one.readings, two.readings, strict=False):
        if isinstance(mine, ms.InnerProducts):
            for layer in one.layers[: -1 if mine.local else None]:
                gram = mine.gram(layer, one.points)
                assert np.isfinite(gram).all() and (np.einsum("npp->np", gram) > 0).all()
                np.testing.assert_array_equal(other.gram(layer, one.points), gram)
                np.testing.assert_array_equal(mine.units(layer), other.units(layer))
        else:
            for point in one.points:
                np.testing.assert_array_equal(other.losses(point), mine.losses(point))
                np.testing.assert_array_equal(other.correct(point), mine.correct(point))


@pytest.mark.parametrize("kind", [*KINDS, "our vit"])
def test_an_empty_and_a_real_model_give_what_the_resident_executor_gives(kind, saved, little_memory):
    base, a, b = saved(kind)
    model = ms.load_model(base)
    resident = run(kind, model, base, a, b, "resident")
    for network in (model, ms.empty_model(base)):
        watcher = Watcher(little_memory)
        found = run(kind, network, base, a, b, "streamed", [watcher])
        assert_same(resident, found)
        assert found.executor == "streamed" and watcher.files > 5
        assert not list(little_memory.glob("mergescope-*"))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_points_of_bfloat16_checkpoints(kind, saved):
    base, a, b = saved(kind, torch.bfloat16)
    assert {spec.dtype for spec in base.spec.values()} == {torch.bfloat16}
    for dtype in (torch.float32, torch.bfloat16):
        resident = run(kind, ms.load_model(base).to(dtype), base, a, b, "resident")
        found = run(kind, ms.empty_model(base).to(dtype), base, a, b, "streamed")
        assert_same(resident, found)
        assert found.dtype == dtype


@pytest.mark.parametrize("choice", ["mean", "last", "cls", "each"])
def test_every_choice_of_features(choice, saved, little_memory):
    base, a, b = saved("llama")
    resident, found = (
        run("llama", ms.load_model(base), base, a, b, name, features=choice)
        for name in ("resident", "streamed")
    )
    assert_same(resident, found)


def test_a_centre(saved):
    base, a, b = saved("bert")
    resident, found = (
        run("bert", ms.load_model(base), base, a, b, name, features="mean", centre=base)
        for name in ("resident", "streamed")
    )
    assert_same(resident, found)


def test_some_blocks_only(saved):
    base, a, b = saved("llama")
    layers = ["model.layers.1"]
    resident, found = (
        run("llama", ms.load_model(base), base, a, b, name, layers=layers)
        for name in ("resident", "streamed")
    )
    gram = resident.reading(ms.InnerProducts, local=True).gram(layers[0], resident.points)
    np.testing.assert_array_equal(
        found.reading(ms.InnerProducts, local=True).gram(layers[0], found.points), gram
    )
    assert found.local_passes == resident.local_passes == 9


def test_an_empty_model_is_streamed_unless_told_otherwise(saved):
    base, a, _ = saved("llama")
    assert ms.trace([base, a], batches_for("llama"), ms.empty_model(base)).executor == "streamed"
    for executor in ("resident", "batched"):
        with pytest.raises(MergescopeError, match=f"no memory for the {executor} executor. Use streamed"):
            ms.trace([base, a], batches_for("llama"), ms.empty_model(base), executor=executor)


def test_a_device_that_is_not_there_is_said(saved):
    base, a, _ = saved("llama")
    with pytest.raises(MergescopeError, match="device='gpu' can't be used here"):
        ms.trace([base, a], batches_for("llama"), ms.empty_model(base), device="gpu")


def test_no_more_than_one_block_is_in_memory(saved, monkeypatch):
    base, a, b = saved("llama")
    model = ms.empty_model(base)
    blocks = [model.get_submodule(name) for name in ms.find_layers(model)[:-1]]
    load, counts = streamed.load_part, []

    def counting(job, index, module, prefix, without=()):
        counts.append(sum(any(not entry.is_meta for entry in block.parameters()) for block in blocks))
        assert not any(entry.is_meta for entry in module.parameters()) or module is model
        return load(job, index, module, prefix, without)

    monkeypatch.setattr(streamed, "load_part", counting)
    monkeypatch.setattr(chain, "load_part", counting)
    run("llama", model, base, a, b, "streamed")
    # A block for the probe and for each of four points; what is around the blocks for each point twice.
    assert sorted(counts) == [0] * 8 + [1] * 10
    assert all(entry.is_meta for entry in model.parameters())


def snapshot(net):
    return {key: (value.clone(), value.data_ptr()) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("fail", [False, True])
def test_a_real_model_is_left_as_it_was_and_no_files_stay_also_after_an_error(fail, little_memory):
    net = tiny("bert").train()
    base, a, b = family(net, ("base", "a", "b"))
    before, watcher = snapshot(net), Watcher(little_memory, fail)
    if fail:
        with pytest.raises(RuntimeError, match="on purpose"):
            run("bert", net, base, a, b, "streamed", [watcher])
    else:
        run("bert", net, base, a, b, "streamed", [watcher])
    assert watcher.files > 5 and not list(little_memory.glob("mergescope-*"))
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key][0]) and value.data_ptr() == before[key][1]
    assert all(module.training and "forward" not in module.__dict__ for module in net.modules())


def test_a_full_disk_is_said(monkeypatch):
    monkeypatch.setattr(States, "_path", lambda self, key: Path("/dev/full"))
    with (
        pytest.raises(MergescopeError, match="can't be kept in /dev:.*TMPDIR"),
        States(0, torch.device("cpu")) as states,
    ):
        states.put("hidden", 0, 0, torch.ones(100_000))


def test_states_are_kept_in_memory_up_to_the_budget_and_in_files_beyond(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = [torch.randn(10), torch.randn(3, 4).bfloat16(), torch.tensor(True), torch.randn(20, 2)[:, 1]]
    with States(64, torch.device("cpu")) as states:
        for number, value in enumerate(values):
            states.put("hidden", 0, number, value)
        assert sorted(path.name for path in tmp_path.glob("*/*")) == ["hidden-0-2", "hidden-0-3"]
        assert all(torch.equal(states.get("hidden", 0, n), value) for n, value in enumerate(values))
        states.put("hidden", 0, 0, 2 * values[0])  # what replaces a state has its room
        assert len(list(tmp_path.glob("*/*"))) == 2
        states.put("hidden", 0, 0, values[3])
        states.put("hidden", 0, 3, values[0])
        assert sorted(path.name for path in tmp_path.glob("*/*")) == [
            "hidden-0-0",
            "hidden-0-2",
            "hidden-0-3",
        ]
        assert torch.equal(states.get("hidden", 0, 0), values[3])
        assert torch.equal(states.get("hidden", 0, 3), values[0])
    assert not list(tmp_path.iterdir())


# -- what can't be streamed ------------------------------------------------------------------


class Net(nn.Module):
    """Three blocks; subclasses break the chain."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def between(self, x):
        return x

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = self.between(block(x))
        return self.head(x)


class Normalises(Net):
    def between(self, x):
        return x / x.norm(dim=1, keepdim=True)


class NormalisesInPlace(Net):
    def between(self, x):
        return x.mul_(0.5)


class LooksBack(Net):
    """Its output takes a skip from the first block."""

    def forward(self, x):
        first = x = self.blocks[0](self.stem(x))
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(x + first)


class Backwards(Net):
    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks[::-1]:
            x = block(x)
        return self.head(x)


class Skips(Net):
    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](self.stem(x))))


class Repeats(Net):
    def forward(self, x):
        x = self.stem(x)
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)
        return self.head(x)


class Scaled(nn.Linear):
    def forward(self, x, scale):
        return super().forward(x) * scale


class PassesWeights(Net):
    """Its blocks are given a weight from outside."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Scaled(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, self.stem.bias)
        return self.head(x)


class PassesWhatFollowsFromWeights(PassesWeights):
    def forward(self, x):
        x, scale = self.stem(x), self.stem.bias.exp()
        for block in self.blocks:
            x = block(x, scale)
        return self.head(x)


class PassesStatistics(PassesWeights):
    """Its blocks are given a number that follows from the last block's output."""

    def forward(self, x):
        x, scale = self.stem(x), torch.ones(1)
        for block in self.blocks:
            x = block(x, scale)
            scale = x.std()
        return self.head(x)


class Pair(nn.Linear):
    def forward(self, x):
        x = super().forward(x)
        return x, x.std()


class UsesTheRest(Net):
    """Its output takes what the last block returns behind its hidden state."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Pair(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x, rest = block(x)
        return self.head(x) * rest


class Keywords(Net):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(input=x)
        return self.head(x)


REFUSED = {
    Normalises: "'blocks.0' of Normalises passes its hidden state only after another step on to 'blocks.1'",
    NormalisesInPlace: "passes its hidden state only after another step on to 'blocks.1'",
    LooksBack: "output of LooksBack depends on more of its blocks than the hidden state that 'blocks.2' returns",
    Backwards: r"blocks run in another order than they are listed \(blocks.2, blocks.1, blocks.0\)",
    Skips: r"another order than they are listed \(blocks.0, blocks.1\), or not all of them",
    Repeats: "block 'blocks.0' runs more than once",
    PassesWeights: "argument 'argument 1' of 'blocks.0' depends on the weights",
    PassesWhatFollowsFromWeights: "argument 'argument 1' of 'blocks.0' depends on the weights",
    PassesStatistics: "argument 'argument 1' of 'blocks.1' depends on the weights",
    UsesTheRest: "output of UsesTheRest depends on more of its blocks",
    Keywords: "called with input; to run block by block, its hidden state must be the first argument",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_networks_that_are_no_chain_are_refused_with_the_reason(kind):
    net = kind()
    data = [torch.randn(4, 6)]
    before = snapshot(net)
    with pytest.raises(LayerError, match=REFUSED[kind]):
        ms.trace(family(net, ("base", "a")), data, net, executor="streamed", layers=["blocks.0", "output"])
    assert all(torch.equal(value, before[key][0]) for key, value in net.state_dict().items())
    assert not any("forward" in module.__dict__ for module in net.modules())


def test_what_follows_from_blocks_is_refused_for_a_single_point_too():
    net = PassesStatistics()
    with pytest.raises(LayerError, match="'argument 1' of 'blocks.1' depends on the weights"):
        ms.trace(family(net, ("base",)), [torch.randn(4, 6)], net, executor="streamed")


@pytest.mark.parametrize("own", [False, True])
def test_a_chain_is_not_refused_and_modules_keep_a_forward_of_their_own(own):
    net = Net()
    if own:  # as hooks of accelerate set it
        net.blocks[1].forward = lambda x, inner=net.blocks[1].forward: inner(x) + 1
    before = net.blocks[1].__dict__.get("forward")
    data = list(torch.randn(5, 6).split(2))
    points = family(net, ("base", "a", "b"))
    one, two = (ms.trace(points, data, net, executor=name) for name in ("resident", "streamed"))
    assert_same(one, two)
    assert net.blocks[1].__dict__.get("forward") is before


class RestWithoutUse(UsesTheRest):
    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x)


class HeadInPlace(Net):
    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.relu_())


@pytest.mark.parametrize("kind", [RestWithoutUse, HeadInPlace])
def test_what_blocks_return_besides_may_be_left_and_a_head_may_work_in_place(kind):
    net = kind()
    points, data = family(net, ("base", "a")), list(torch.randn(5, 6).split(2))
    one, two = (ms.trace(points, data, net, executor=name) for name in ("resident", "streamed"))
    assert_same(one, two)


def test_t5_is_refused_with_the_reason():
    net = tiny("t5")
    with pytest.raises(
        LayerError,
        match=r"'encoder.block.0' of T5.* passes more than its hidden state on to 'encoder.block.1'.*resident",
    ):
        ms.trace(family(net, ("base", "a")), batches_for("t5"), net, executor="streamed")


def test_layers_that_are_no_blocks_are_refused_by_name():
    net = make_net("vit")
    with pytest.raises(
        LayerError,
        match=r"sees blocks \(blocks.0 to blocks.1\) and the output; it can't measure blocks.1.attn, head",
    ):
        ms.trace(
            family(net), labelled_batches(), net, executor="streamed", layers=["blocks.*", "1.attn", "head"]
        )


def test_calibration_is_refused():
    net = make_net("convnet")
    batches = labelled_batches()
    with pytest.raises(MergescopeError, match="can't be re-estimated block by block.*resident"):
        ms.trace(family(net), batches, net, executor="streamed", calibration=batches)
