"""Measuring in the linearised model: when that is done, and that the network is left as it was."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from slow_reference import loss_and_hit
from support import NETS, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import MergescopeError, MismatchError
from mergescope.models.heads import linear_head
from mergescope.models.with_head import WithHead
from mergescope.protocols.linear_model import in_linear_model, linearized_in_place
from mergescope.protocols.measure import HeldOut, Settings, decided, measure, passes
from mergescope.training import Linearized, origin_of, require_origin
from mergescope.weights import Point
from mergescope.weights.selection import Selection

QUIET = {"progress": False}


@pytest.fixture
def trained(tmp_path):
    """A network, a base, and fine-tunes in files whose headers say that they were linearised around it."""
    net = make_net("mlp")
    base, a, b, c = family(net, scale=0.4)

    def write(checkpoint, digest):
        metadata = {"linearized": "true", "base_digest": digest}
        save_file(checkpoint.state_dict(), tmp_path / f"{checkpoint.name}.safetensors", metadata)
        return ms.Checkpoint(tmp_path / f"{checkpoint.name}.safetensors")

    return net, base, {"a": write(a, base.digest), "b": write(b, base.digest)}, {"c": write(c, "other")}


def points_of(models):
    return {name: Point.of(model) for name, model in models.items()}


def said(base, models, wanted=None):
    return in_linear_model(None if base is None else Point.of(base), points_of(models), wanted)


# -- when ------------------------------------------------------------------------------------------


def test_all_models_of_the_regime_around_their_base(trained):
    _, base, models, _ = trained
    assert said(base, models) == said(base, models, True) == (True, [])
    assert said(base, models, False) == (False, [])


def test_a_point_of_such_models_and_the_base_is_one_too(trained):
    _, base, models, _ = trained
    mixed = {"mixed": base + 0.3 * (models["a"] - base) + 0.3 * (models["b"] - base)}
    assert said(base, mixed) == (True, [])


def test_a_view_of_a_checkpoint_has_its_origin(trained):
    _, base, models, others = trained

    def view(source):
        return Selection(source, {f"backbone.{key}": key for key in source.spec if "head" not in key})

    assert origin_of(view(models["a"])) == base.digest and origin_of(view(base)) is None
    require_origin(view(models["a"]), view(base))
    with pytest.raises(MismatchError, match="c: linearised around other"):
        require_origin(view(others["c"]), view(base))


def test_a_base_that_is_read_as_another_type_is_the_origin(tmp_path, trained):
    _, base, models, _ = trained
    save_file({k: v.bfloat16() for k, v in base.state_dict().items()}, tmp_path / "half.safetensors")
    half = ms.Checkpoint(tmp_path / "half.safetensors")
    wide = ms.Checkpoint(tmp_path / "half.safetensors", dtype="float32")
    save_file(
        models["a"].state_dict(),
        tmp_path / "own.safetensors",
        {"linearized": "true", "base_digest": half.digest},
    )
    own = ms.Checkpoint(tmp_path / "own.safetensors")
    assert wide.digest != half.digest
    require_origin(own, wide)
    with pytest.raises(MismatchError, match="own: linearised around"):
        require_origin(own, base)


def test_what_keeps_models_out_of_it_is_told(trained):
    _, base, models, others = trained
    plain = {"plain": ms.Checkpoint(models["a"].state_dict(), name="plain")}
    assert said(base, plain) == (False, [])
    assert said(base, plain | models) == (
        False, ["a, b were trained in the linearised regime, and plain was not: measured in the ordinary network"],
    )  # fmt: skip
    assert "and there is no base to linearise around" in said(None, models)[1][0]
    linear, (note,) = said(base, others)
    assert not linear and note.startswith(
        "c was trained in the linearised regime, but around another base than base"
    )


def test_what_is_asked_for_and_can_not_be_done(trained):
    net, base, models, others = trained
    with pytest.raises(MergescopeError, match="Give a base: --base"):
        said(None, models, True)
    with pytest.raises(MismatchError, match="c: linearised around other"):
        said(base, models | others, True)
    held = [HeldOut("digits", labelled_batches(), net)]
    with pytest.raises(MergescopeError, match="The streamed executor can't run a linearised network"):
        measure(base, models, held, Settings(executor="streamed", **QUIET))
    with pytest.raises(MismatchError, match="c: linearised around other"):
        measure(base, others, held, Settings(linearized=True, **QUIET))


def test_settings_are_decided_before_anything_runs(trained):
    _, base, models, _ = trained
    settings, notes = decided(base, models, Settings(**QUIET))
    assert (settings.linearized, settings.local) == (
        True,
        False,
    ) and "CTL holds there by construction" in notes[0]
    settings, notes = decided(base, models, Settings(linearized=False, **QUIET))
    assert (settings.linearized, settings.local, notes) == (False, True, [])


# -- what is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["auto", "resident"])
def test_losses_are_those_of_the_linearised_network(trained, executor):
    net, base, models, _ = trained
    batches = labelled_batches(10, 4)
    held = [HeldOut("digits", batches, net)]
    found = measure(base, models, held, Settings((0.25, 0.5), executor=executor, **QUIET))
    labels = torch.cat([y for _, y in batches]).tolist()
    ends = {"base": Point.of(base), **points_of(models)}
    ends["a + b, merged"] = (ends["a"] + ends["b"]) / 2
    for name, point in ends.items():
        linear = Linearized.from_point(make_net("mlp"), base, point)
        with torch.no_grad():
            logits = torch.cat([linear(x) for x, _ in batches])
        slow = [loss_and_hit(*both) for both in zip(logits.double().numpy(), labels, strict=True)]
        loss, accuracy = np.mean(slow, axis=0)
        assert found.losses[name, "digits"]["loss"].mean == pytest.approx(loss, abs=1e-5)
        assert found.losses[name, "digits"]["accuracy"].mean == pytest.approx(accuracy)
    plain = measure(base, models, held, Settings(linearized=False, **QUIET))
    assert abs(plain.losses["a", "digits"]["loss"].mean - found.losses["a", "digits"]["loss"].mean) > 1e-3
    points = passes(base, models, held, Settings((0.25, 0.5), **QUIET))["digits"]
    assert found.traces["digits"].points == points
    assert found.traces["digits"].forward_passes == (3 if executor == "auto" else len(points)) * len(batches)


def test_features_may_be_centred_in_it(trained):
    net, base, models, _ = trained
    found = measure(
        base, models, [HeldOut("digits", labelled_batches(), net)], Settings(centred=True, **QUIET)
    )
    for pair in found.pairs:
        np.testing.assert_allclose([layer.measures["cos"].mean for layer in pair.middle.layers], 1, atol=1e-4)


def test_statistics_can_not_be_re_estimated_in_it():
    net = make_net("convnet")
    base, a, b, _ = family(net)
    held, data = [HeldOut("digits", labelled_batches(), net)], labelled_batches()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(MergescopeError, match="BatchNorm statistics are those of th_0"):
        measure(base, {"a": a, "b": b}, held, Settings(linearized=True, calibration=data, **QUIET))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- the network is left as it was -----------------------------------------------------------------


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("fails", [False, True])
def test_weights_modes_and_modules_are_put_back(kind, fails):
    net = make_net(kind)
    base = Point.of(family(make_net(kind, seed=5))[1])
    net.train()
    next(net.children()).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    try:
        with linearized_in_place(net, base) as linear:
            assert linear.affine and not net.training
            for name, value in net.state_dict().items():
                assert torch.equal(value, base.tensor(name)), name
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert [module.training for module in net.modules()] == modes
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_backbone_under_a_head_is_the_ordinary_one_again():
    body = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    net = WithHead(body, linear_head(4, ["x", "y"], seed=0))
    base = net.view(ms.Checkpoint(body.state_dict(), name="base"))
    with linearized_in_place(net, Point.of(base), net.head_entries) as linear:
        assert linear is net and isinstance(net.backbone, Linearized)
    assert net.backbone is body
    with pytest.raises(MismatchError), linearized_in_place(net, Point.of(base)):
        pass
    assert net.backbone is body
