"""The linearised network against finite differences, torch.func.jvp, and everything it must refuse."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from support import NETS, labelled_batches, make_net
from tiny_transformers import batches_for, tiny, transformers
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

import mergescope as ms
from mergescope.errors import LayerError, MergescopeError, MismatchError
from mergescope.models.features import Features
from mergescope.models.heads import linear_head
from mergescope.models.loading import key_map
from mergescope.models.with_head import WithHead
from mergescope.tracing.capture import capture
from mergescope.training import Linearized, linearized_network, origin_of, regime
from mergescope.training.tangents import called_with

TRANSFORMERS = ("bert", "tiny vit", "clip", "t5", "gpt2", "llama", "tied llama", "qwen2", "mistral")
KINDS = (*NETS, *TRANSFORMERS)


def network(kind, dtype=torch.float64):
    """A network with layers that are far from linear."""
    net = (make_net(kind) if kind in NETS else tiny(kind.removeprefix("tiny "))).to(dtype)
    if kind == "t5":  # its attention has no scale: large weights make it a step function
        with torch.no_grad():
            for value in net.parameters():
                value.mul_(0.2 if value.ndim > 1 else 1.0)
    return net


def arguments(kind, dtype=torch.float64):
    if kind in NETS:
        return labelled_batches(3, 3)[0][0].to(dtype)
    batch = {
        key: value for key, value in batches_for(kind.removeprefix("tiny "))[0].items() if key != "labels"
    }
    return {key: value.to(dtype) if key == "pixel_values" else value for key, value in batch.items()}


def call(net, kind, inputs):
    return Features.of(net).call(net, inputs) if kind in TRANSFORMERS else net(inputs)


def floats(output):
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return [leaf for leaf in found if leaf.is_floating_point()]


def direction(net, size, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * value.abs().mean() * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in net.named_parameters()
    }


def move(net, start, tau, factor=1.0):
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(start[name] + factor * tau[name])


def weights(net):
    return {name: value.detach().clone() for name, value in net.named_parameters()}


@torch.no_grad()
def everything(net, kind, inputs):
    """Outputs and the features of all blocks."""
    names = [name for name in ms.find_layers(net) if name != "output"]
    with capture(net, names) as caught:
        outputs = floats(call(net, kind, inputs))
    return outputs + [caught[name] for name in names]


@torch.no_grad()
def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_features_of_all_blocks_are_the_taylor_expansion(kind):
    net, inputs = network(kind), arguments(kind)
    start, tau, step = weights(net), direction(network(kind), 0.3), 1e-4
    around = []
    for factor in (step, -step, 0.0):
        move(net, start, tau, factor)
        around.append(everything(net, kind, inputs))
    model = Linearized(net)
    move(net, start, tau)
    found = everything(model, kind, inputs)
    move(net, start, tau, 2.0)
    twice = everything(model, kind, inputs)
    assert len(found) == len(around[0]) > 1
    for got, double, ahead, behind, here in zip(found, twice, *around, strict=True):
        slope = (ahead - behind) / (2 * step)
        # Llama and T5 normalise in float32, where a difference of nearby values has few digits.
        single = kind in ("t5", "llama", "tied llama", "qwen2", "mistral")
        assert relative(got - here, slope) < (1e-2 if single else 1e-5)
        assert relative(double - here, 2 * (got - here)) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_in_single_precision_it_is_the_taylor_expansion_within_1e_5(kind):
    net, inputs = network(kind), arguments(kind)
    start, tau = weights(net), direction(network(kind), 0.3)
    model = Linearized(net)
    move(net, start, tau)
    exact = everything(model, kind, inputs)
    single = network(kind, torch.float32)
    model = Linearized(single)
    move(single, weights(single), {name: value.float() for name, value in tau.items()})
    for got, expected in zip(everything(model, kind, arguments(kind, torch.float32)), exact, strict=True):
        assert relative(got.double(), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_base_it_is_the_network_itself(kind):
    net, inputs = network(kind, torch.float32), arguments(kind, torch.float32)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        plain = floats(call(net, kind, inputs))
    found = floats(call(Linearized(net), kind, inputs))
    assert all(torch.equal(one, two) for one, two in zip(found, plain, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_network_at_the_base(kind, checkpointing):
    net, inputs = network(kind), arguments(kind)
    model = Linearized(net, checkpointing=checkpointing)
    start = weights(net)
    move(net, start, direction(net, 0.3))
    outputs = floats(call(model, kind, inputs))
    against = [torch.randn_like(output) for output in outputs]
    sum((output * other).sum() for output, other in zip(outputs, against, strict=True)).backward()
    found = {name: value.grad for name, value in net.named_parameters()}
    net.zero_grad()
    move(net, start, direction(net, 0.0))
    outputs = floats(call(net, kind, inputs))
    sum((output * other).sum() for output, other in zip(outputs, against, strict=True)).backward()
    size = sum(value.grad.norm() for value in net.parameters() if value.grad is not None)
    for name, value in net.named_parameters():
        assert (found[name] is None) == (value.grad is None), name
        if value.grad is not None:
            assert float((found[name] - value.grad).norm() / size) < 1e-12, name


def test_it_is_torchs_jacobian_vector_product():
    net, inputs = network("vit"), arguments("vit")
    start, tau = weights(net), direction(net, 0.5)
    with sdpa_kernel(SDPBackend.MATH):
        here, slope = torch.func.jvp(
            lambda theta: torch.func.functional_call(net, theta, (inputs,)), (start,), (tau,)
        )
    model = Linearized(net)
    move(net, start, tau)
    torch.testing.assert_close(model(inputs), here + slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_it_minimises_the_loss_of_the_linear_model(checkpointing):
    net = make_net("vit")
    model = Linearized(net, checkpointing=checkpointing)
    (x, y), *_ = labelled_batches(12, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # A linear model's loss is convex: small steps of the full batch never raise it.
    assert losses[-1] < 0.5 * losses[0] and all(b <= a for a, b in zip(losses, losses[1:], strict=False))


def test_a_second_derivative_is_an_error_and_not_that_of_the_network():
    model, (x, y) = Linearized(make_net("mlp")), labelled_batches(4, 4)[0]
    loss = F.cross_entropy(model(x), y)
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(value.square().sum() for value in first).backward()


@pytest.mark.parametrize("kind", ["packed vit", "convnet", "bert", "clip", "t5"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_computes_the_same_in_bfloat16(kind, checkpointing):
    net, inputs = network(kind, torch.float32), arguments(kind, torch.float32)
    model = Linearized(net, checkpointing=checkpointing)
    move(net, weights(net), direction(net, 0.05))
    exact = floats(call(model, kind, inputs))
    with torch.autocast("cpu", torch.bfloat16):
        found = floats(call(model, kind, inputs))
    for one, two in zip(found, exact, strict=True):
        assert 0 < relative(one.float(), two) < 0.1
    sum(one.float().square().sum() for one in found).backward()
    gradients = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    net.zero_grad()
    sum(two.square().sum() for two in exact).backward()
    expected = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    assert gradients.keys() == expected.keys()
    total = torch.cat([value.flatten() for value in expected.values()])
    assert relative(torch.cat([value.flatten() for value in gradients.values()]), total) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_names_layers_and_files_are_those_of_the_network(kind):
    net = network(kind, torch.float32)
    checkpoint = ms.Checkpoint(net.state_dict())
    names, layers, mapping = list(net.state_dict()), ms.find_layers(net), key_map(net, checkpoint)
    features = Features.of(net)
    model = Linearized(net)
    assert list(model.state_dict()) == names and ms.find_layers(model) == layers
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert key_map(model, checkpoint) == mapping
    assert (Features.of(model).kind, Features.of(model).start) == (features.kind, features.start)
    assert all(one is two for one, two in zip(model.parameters(), net.parameters(), strict=True))


def test_the_base_stays_whatever_happens_to_the_weights():
    net = make_net("convnet")
    model = Linearized(net)
    kept = {name: value.clone() for name, value in model.origin.items()}
    x = labelled_batches()[0][0]
    zero = model(x)
    with torch.no_grad():
        for value in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            value.mul_(1.5).add_(0.1)
    assert not torch.equal(model(x), zero)
    assert all(torch.equal(value, kept[name]) for name, value in model.origin.items())
    assert {name for name in kept if "running" in name}, "BatchNorm statistics are part of th_0"
    model.load_state_dict(kept, strict=False)
    assert torch.equal(model(x), zero)


def test_statistics_of_a_point_are_not_used():
    net = make_net("convnet")
    model, x = Linearized(net), labelled_batches()[0][0]
    before = model(x)
    net.blocks[0][1].running_mean += 1.0
    assert torch.equal(model(x), before)
    loss = Linearized(net, checkpointing=True)(x).sum()
    net.blocks[0][1].running_mean += 1.0
    loss.backward()
    recomputed = net.blocks[0][0].weight.grad.clone()
    net.zero_grad()
    net.blocks[0][1].running_mean -= 1.0
    Linearized(net)(x).sum().backward()
    torch.testing.assert_close(recomputed, net.blocks[0][0].weight.grad)


def test_dropout_and_batchnorm_stay_in_evaluation_mode():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.5,
    )  # fmt: skip
    model = Linearized(transformers.BertModel(config).train())
    ids = torch.arange(6).view(2, 3)
    first = model.train()(input_ids=ids).last_hidden_state
    assert model.training and torch.equal(model(input_ids=ids).last_hidden_state, first)
    net = make_net("convnet")
    before = copy.deepcopy(dict(net.named_buffers()))
    Linearized(net).train()(labelled_batches()[0][0])
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


def test_a_module_in_training_mode_is_refused():
    net = make_net("convnet")
    model = Linearized(net)
    net.blocks[1].train()
    with pytest.raises(
        MergescopeError, match=r"module 'blocks.1' of a linearised ConvNet is in training mode"
    ):
        model(labelled_batches()[0][0])
    with pytest.raises(MergescopeError, match="is in training mode.*leave calibration out"):
        ms.reestimate_batchnorm(Linearized(net), labelled_batches())


def test_what_others_hook_sees_plain_linearised_features():
    net = make_net("mlp").double()
    start, tau = weights(net), direction(net, 0.5)
    x = labelled_batches(3, 3)[0][0].double()
    with torch.no_grad():
        before = net.blocks[0][0](x.flatten(1)).relu()
        inner = net.blocks[0][0](x.flatten(1))
    model = Linearized(net)
    move(net, start, tau)
    seen = {}
    hooks = [
        net.blocks[0].register_forward_pre_hook(lambda m, args: seen.update(fed=args[0])),
        net.blocks[0].register_forward_hook(
            lambda m, args, kwargs, out: seen.update(out=out), with_kwargs=True
        ),
        net.blocks[1].register_forward_pre_hook(lambda m, args: seen.update(next=args[0])),
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    slope = x.flatten(1) @ tau["blocks.0.0.weight"].T + tau["blocks.0.0.bias"]
    torch.testing.assert_close(seen["out"].detach(), before + slope * (inner > 0))
    assert torch.equal(seen["next"], seen["out"]) and seen["fed"].data_ptr() == x.data_ptr()
    assert seen["out"].numpy(force=True).shape == (3, 12)
    model(x)  # hooks are gone, and nothing else is left behind
    assert all(not module._forward_hooks for module in net.modules())


def test_features_caught_before_work_in_place_are_those_before_it():
    net = make_net("convnet").double()
    model = Linearized(net)
    move(net, weights(net), direction(net, 0.5))
    with torch.no_grad(), capture(model, ["blocks.0.1", "blocks.0"]) as caught:
        model(labelled_batches()[0][0].double())
    assert (caught["blocks.0.1"] < 0).any() and not torch.equal(caught["blocks.0.1"], caught["blocks.0"])


def test_a_hook_that_changes_its_value_is_refused():
    net = make_net("mlp")
    net.blocks[0].register_forward_hook(lambda m, args, out: out * 2)
    with pytest.raises(LayerError, match="A hook on Sequential changes what it is given"):
        Linearized(net)(labelled_batches()[0][0])


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_hidden_states_that_transformers_collects_are_linearised_too(kind):
    net = tiny(kind).double()
    model, inputs = Linearized(net), arguments(kind)
    move(net, weights(net), direction(net, 0.3))
    names = [name for name in ms.find_layers(net) if name != "output"]
    for _ in range(2):  # it puts hooks of its own on the blocks in the first pass
        with torch.no_grad(), capture(model, names) as caught:
            states = model(**inputs, output_hidden_states=True).hidden_states
        assert len(states) == 3
        torch.testing.assert_close(states[1].flatten(1), caught[names[0]])


def test_the_gradient_of_what_a_hook_has_caught_is_that_of_the_network_at_the_base():
    net, x = network("vit"), arguments("vit")
    start, layer, gradients = weights(net), net.blocks[1].attn.out_proj, []
    for model, factor in ((Linearized(net), 0.5), (net, 0.0)):
        net.zero_grad()
        move(net, start, direction(net, factor))
        caught = []
        hook = layer.register_forward_pre_hook(lambda m, args, caught=caught: caught.append(args[0]))
        model(x)
        hook.remove()
        (caught[0] * torch.linspace(-1, 1, caught[0].numel()).view_as(caught[0])).sum().backward()
        gradients.append(net.blocks[0].attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_arguments_that_are_not_linear_are_refused():
    bert, gpt = Linearized(tiny("bert")), Linearized(tiny("gpt2"))
    ids = torch.ones(2, 3).long()
    with pytest.raises(MergescopeError, match="labels= makes BertForSequenceClassification return a loss"):
        bert(input_ids=ids, labels=torch.zeros(2).long())
    with pytest.raises(MergescopeError, match="linearised GPT2LMHeadModel keeps no cache"):
        gpt(input_ids=ids, use_cache=True)
    assert gpt(input_ids=ids).past_key_values is None
    with pytest.raises(AttributeError, match="generate"):
        gpt.generate(ids)
    with pytest.raises(MergescopeError, match="BertForSequenceClassification is linearised already"):
        Linearized(bert)


def test_labels_of_an_encoder_decoder_are_its_decoders_input():
    net = tiny("t5")
    ids, labels = torch.ones(2, 3).long(), torch.tensor([[4, 5, 1], [6, 1, -100]])
    plain = net(input_ids=ids, labels=labels)
    found = Linearized(net)(input_ids=ids, labels=labels)
    assert found.loss is None and plain.loss is not None
    torch.testing.assert_close(found.logits, plain.logits)


@dataclass
class Pair:
    logits: torch.Tensor
    count: int


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make, self.layer = make, nn.Linear(2, 2)

    def forward(self, x):
        return self.make(self.layer(x).exp())


class Opaque:
    def __init__(self, value):
        self.value = value


def test_outputs_of_all_structures_are_linearised():
    x = torch.ones(1, 2)
    torch.manual_seed(0)
    expected = None
    for make, take in (
        (lambda v: v, lambda out: out),
        (lambda v: (v, 3), lambda out: out[0]),
        (lambda v: {"y": [v]}, lambda out: out["y"][0]),
        (lambda v: Pair(v, 3), lambda out: out.logits),
        (lambda v: transformers.modeling_outputs.BaseModelOutput(v), lambda out: out.last_hidden_state),
    ):
        torch.manual_seed(0)
        net = Returns(make)
        model = Linearized(net)
        with torch.no_grad():
            net.layer.weight.mul_(3)
        found = take(model(x))
        expected = found if expected is None else expected
        assert torch.equal(found, expected) and not torch.allclose(found, take(net(x)))
    with pytest.raises(LayerError, match="Returns returns a Opaque, whose tensors can't be linearised"):
        Linearized(Returns(Opaque))(x)


class Unknown(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_operations_without_a_forward_derivative_are_named():
    net = Returns(lambda v: Unknown.apply(v))
    with pytest.raises(MergescopeError, match="Returns can't be linearised.*autograd.Function"):
        Linearized(net)(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linearized(net)(torch.ones(1, 3))
    assert torch.backends.mha.get_fastpath_enabled()


def test_attention_kernels_are_replaced_and_the_reason_is_noted():
    assert Linearized(make_net("mlp")).notes == []
    assert "MATH kernel" in Linearized(make_net("vit")).notes[0]
    net = tiny("llama")
    assert "MATH kernel" in Linearized(net).notes[0] and net.config._attn_implementation == "sdpa"
    net = tiny("llama")
    net.set_attn_implementation("eager")
    assert Linearized(net).notes == []
    net = tiny("llama")
    net.set_attn_implementation("flex_attention")
    assert Linearized(net).notes == [
        "attention runs as 'eager', not 'flex_attention', whose kernel has no forward-mode derivative"
    ]
    assert net.config._attn_implementation == net.model.config._attn_implementation == "eager"
    net = make_net("vit")
    net.config = type("Config", (), {"_attn_implementation": "flash"})
    with pytest.raises(MergescopeError, match="ViT runs attn_implementation='flash'.*Load the network with"):
        Linearized(net)


def test_experts_that_run_grouped_are_replaced():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.MixtralConfig(vocab_size=50, num_key_value_heads=1, num_local_experts=2, **sizes)
    net = transformers.MixtralForCausalLM(config).eval()
    grouped = getattr(config, "_experts_implementation", None) not in (None, "eager")
    model = Linearized(net)
    assert any("experts run as 'eager'" in note for note in model.notes) == grouped
    assert model(input_ids=torch.ones(1, 3).long()).logits.shape == (1, 3, 50)


def test_torchs_own_attention_module_runs_without_its_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().double()
    x = torch.randn(2, 3, 8).double()
    start, tau = weights(layer), direction(layer, 0.3)
    model = Linearized(layer)
    with torch.no_grad():
        zero = model(x)
        move(layer, start, tau, 1e-5)
        near = layer(x)
        slope = (model(x) - zero) / 1e-5
    torch.testing.assert_close((near - zero) / 1e-5, slope, rtol=1e-3, atol=1e-3)


def test_a_module_with_two_names_is_called_with_one_weight_and_left_as_it_was():
    net = nn.ModuleDict({"one": nn.Linear(1, 1, bias=False)})
    net["two"] = net["one"]
    net.forward = lambda x: net["two"](net["one"](x))
    own = net["one"].weight
    assert float(called_with(net, {id(own): torch.tensor([[3.0]])}, (torch.ones(1),), {})) == 9.0
    assert net["one"].weight is own


def test_gradient_checkpointing_keeps_less_and_is_inherited_from_the_network():
    net, x = make_net("vit"), labelled_batches(6, 6)[0][0]
    kept = {}
    for checkpointing in (False, True):
        model = Linearized(net, checkpointing=checkpointing)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=saved: s.append(t.numel()) or t, lambda t: t
        ):
            model(x)
        kept[checkpointing] = sum(saved)
    assert kept[True] < 0.7 * kept[False]
    bert = tiny("bert")
    assert not Linearized(bert).is_gradient_checkpointing
    bert.gradient_checkpointing_enable()
    model = Linearized(bert)
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(LayerError, match="Gradient checkpointing recomputes blocks. No known block layout"):
        Linearized(nn.Linear(2, 2), checkpointing=True)


def test_it_can_be_copied_pickled_and_moved():
    model, x = Linearized(make_net("vit")), labelled_batches()[0][0]
    with torch.no_grad():
        model.head.weight.add_(1.0)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        with torch.no_grad():
            twin.head.weight.add_(1.0)
        assert twin.network.head.weight is twin.head.weight
        assert not torch.equal(twin(x), expected) and torch.equal(model(x), expected)
    model.double()
    assert all(value.dtype == torch.float64 for value in model.origin.values())
    torch.testing.assert_close(model(x.double()), expected.double(), rtol=1e-5, atol=1e-6)


def saved(folder, net, made, name):
    folder.mkdir(exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in made.state(net).items()},
        folder / f"{name}.safetensors",
        made.metadata(),
    )
    return ms.Checkpoint(folder / f"{name}.safetensors")


def test_a_checkpoint_of_the_regime_is_an_ordinary_one_that_names_its_base(tmp_path):
    net = make_net("vit")
    base = ms.Checkpoint(net.state_dict(), name="base")
    made = regime("linearized", frozen=["head"], base_digest=base.digest)
    model = made.prepare(net)
    x, y = labelled_batches(6, 6)[0]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    trained = model(x).detach()
    theta = saved(tmp_path, model, made, "theta")
    assert origin_of(theta) == base.digest and theta.metadata["linearized"] == "true"
    assert origin_of(base) is None
    tau = theta - base
    assert not tau.tensor("head.weight").any() and tau.tensor("blocks.0.mlp.0.weight").any()
    again = Linearized.from_point(make_net("vit", seed=5), base, theta)
    torch.testing.assert_close(again(x), trained)
    halfway = Linearized.from_point(make_net("vit", seed=5), base, base + 0.5 * tau)
    with torch.no_grad():
        zero = linearized_network(make_net("vit", seed=5), base)(x)
    torch.testing.assert_close(halfway(x), 0.5 * trained + 0.5 * zero, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_not_linearised_around_another_base(tmp_path):
    net = make_net("mlp")
    base, other = ms.Checkpoint(net.state_dict(), name="base"), ms.Checkpoint(make_net("mlp", 1).state_dict())
    made = regime("linearized", base_digest=base.digest)
    theta = saved(tmp_path, made.prepare(net), made, "theta")
    with pytest.raises(MismatchError, match=rf"theta: linearised around {base.digest}\nGive the base"):
        Linearized.from_point(make_net("mlp"), other, 0.5 * theta + 0.5 * base)
    assert Linearized.from_point(make_net("mlp"), base, 0.5 * theta + 0.5 * base).affine


def test_a_head_comes_after_the_linearised_backbone():
    body = tiny("vit").vit
    net = WithHead(body, linear_head(16, ["a", "b"], seed=0)).double()
    base = ms.Checkpoint(body.state_dict(), name="base")
    point = ms.random_neighbour(base, base * 1.2, seed=0)
    pixels = torch.randn(2, 1, 8, 8).double()
    model = Linearized.from_point(net, net.view(base), net.view(point), fixed=net.head_entries)
    assert model is net and isinstance(net.backbone, Linearized)
    hidden = Linearized.from_point(copy.deepcopy(body.double()), base, point)(pixel_values=pixels)
    expected = F.linear(hidden.last_hidden_state[:, 0], net.head.weight, net.head.bias)
    torch.testing.assert_close(model(pixel_values=pixels).logits, expected)
    assert list(model.state_dict()) == [
        *(f"backbone.{key}" for key in body.state_dict()),
        "head.weight",
        "head.bias",
    ]


@pytest.mark.parametrize("kind", ["vit", "tiny vit", "clip"])
def test_hooks_and_training_flags_of_a_trace_leave_it_as_it_was(kind):
    net = network(kind, torch.float32)
    base = ms.Checkpoint(net.state_dict(), name="base")
    model = linearized_network(net, base)
    data = [arguments(kind, torch.float32)]
    first = ms.trace([base, base * 1.1 + base * -0.1], data, model, progress=False)
    assert first.network == "Linearized" and not model.network.training
    assert all(torch.equal(value, model.origin[name]) for name, value in model.named_parameters())
