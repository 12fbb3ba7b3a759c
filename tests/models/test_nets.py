import pytest
import torch
from support import make_net

import mergescope as ms
from mergescope.models import net_config
from mergescope.models.nets import Attention


@pytest.mark.parametrize("kind", ["mlp", "vit", "packed vit"])
def test_a_net_saves_and_loads_as_a_directory(tmp_path, kind):
    net = make_net(kind)
    out = ms.save(ms.Checkpoint(net.state_dict(), name="net"), tmp_path / "net", config=net_config(net))
    again = ms.load_model(out)
    assert type(again) is type(net) and not again.training
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_ctls_mlp_has_its_published_size():
    assert sum(p.numel() for p in ms.MLP().parameters()) == 785 * 100 + 101 * 100 + 101 * 10


@pytest.mark.parametrize("packed", [False, True])
def test_attention_is_softmax_of_scaled_products(packed):
    net = Attention(8, 2, packed)
    x = torch.randn(3, 5, 8)
    if packed:
        q, k, v = net.qkv(x).split(8, dim=-1)
    else:
        q, k, v = net.q_proj(x), net.k_proj(x), net.v_proj(x)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = q[..., h] @ k[..., h].mT / 4**0.5
        heads.append(scores.softmax(-1) @ v[..., h])
    torch.testing.assert_close(net(x), net.out_proj(torch.cat(heads, -1)))


def test_packed_and_separate_weights_compute_the_same():
    separate, packed = make_net("vit"), make_net("packed vit")
    state = separate.state_dict()
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"blocks.{i}.attn.{p}_proj.{kind}") for p in "qkv"]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    packed.load_state_dict(state)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(packed(x), separate(x))
