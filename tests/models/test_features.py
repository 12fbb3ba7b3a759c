"""Feature conventions, against features picked by hand from what transformers returns for single texts."""

import numpy as np
import pytest
import torch
from support import family, labelled_batches, make_net
from tiny_transformers import DECODERS, IMAGES, batches_for, padded, texts, tiny, transformers
from torch import nn

import mergescope as ms
from mergescope.errors import DataError, LayerError
from mergescope.models.features import CHOICES, Features, kind_of_model

PICK = {
    "mean": lambda tokens: tokens.mean(0, keepdim=True),
    "last": lambda tokens: tokens[-1:],
    "cls": lambda tokens: tokens[:1],
    "each": lambda tokens: tokens,
}
"""Token map of one unpadded text to its rows."""


class Recorder:
    """A reading that keeps all features and outputs."""

    needs_features = True

    def __init__(self):
        self.batches = []

    def start(self, points, layers):
        pass

    def update(self, batch):
        self.batches.append(batch)

    def rows(self, layer, point):
        return torch.cat([batch.features[layer][point] for batch in self.batches])

    def units(self, layer):
        return np.concatenate([batch.units[layer] for batch in self.batches])


def traced(net, batches, **options):
    """The features of a fine-tuned point, which is not what the network holds, and its weights."""
    _, a, b = family(net, ("base", "a", "b"), scale=0.05)
    seen = Recorder()
    point = ms.lerp(a, b, 0.3)
    ms.trace([a, point], batches, net, readings=[seen], **options)
    return seen, point.state_dict()


def hidden_states(net, state, inputs, field="hidden_states"):
    """What each block of a network with these weights returns, as transformers tells it."""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    with torch.no_grad():
        result = net(**inputs, output_hidden_states=True)
    net.load_state_dict(before)
    return [state[0] for state in result[field][1:]], result


def alone(text):
    return {"input_ids": text[None], "attention_mask": torch.ones(1, len(text)).long()}


def batched(some, side, size=2, longer=0):
    return [padded(some[i : i + size], side, longer) for i in range(0, len(some), size)]


# The last of transformers' hidden states is that of the last block after a norm, so the first is compared.
CASES = [("bert", "encoder.layer.0", "right"), ("llama", "model.layers.0", "right"),
         ("llama", "model.layers.0", "left"), ("gpt2", "transformer.h.0", "right")]  # fmt: skip


@pytest.mark.parametrize(("kind", "layer", "side"), CASES)
@pytest.mark.parametrize("choice", PICK)
def test_features_of_padded_texts_are_those_of_the_texts_alone(kind, layer, side, choice):
    net, some = tiny(kind), texts()
    layer = ms.find_layers(net, layer)[0]
    seen, state = traced(net, batched(some, side, longer=1), layers=layer, features=choice)
    tokens = [hidden_states(net, state, alone(text))[0][0] for text in some]
    expected = torch.cat([PICK[choice](map_) for map_ in tokens])
    torch.testing.assert_close(seen.rows(layer, 1), expected, rtol=1e-4, atol=1e-4)
    if choice == "each":
        assert seen.units(layer).tolist() == [i for i, text in enumerate(some) for _ in text]
    else:
        assert not any(batch.units for batch in seen.batches)


@pytest.mark.parametrize(("kind", "layer", "side"), CASES)
def test_all_tokens_follow_one_another_and_padding_is_zero(kind, layer, side):
    net, some = tiny(kind), texts()
    layer = ms.find_layers(net, layer)[0]
    batches = batched(some, side, size=5)
    seen, state = traced(net, batches, layers=layer, features="all")
    rows = seen.rows(layer, 1).view(5, 6, -1)
    mask = batches[0]["attention_mask"].bool()
    assert (rows[~mask] == 0).all()
    for row, keep, text in zip(rows, mask, some, strict=True):
        expected = hidden_states(net, state, alone(text))[0][0]
        torch.testing.assert_close(row[keep], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", ["mean", "last", "each", "all", "cls"])
def test_a_token_mask_leaves_out_the_prompt_and_the_model_does_not_see_it(choice):
    net, some = tiny("llama"), texts((6, 3, 5, 4))
    layer = ms.find_layers(net)[0]
    batches = batched(some, "left")
    for batch in batches:  # the prompt is the first two tokens of each text
        batch["token_mask"] = batch["attention_mask"] * (batch["attention_mask"].cumsum(1) > 2)
    given = []
    net.register_forward_pre_hook(lambda module, args, kwargs: given.extend(kwargs), with_kwargs=True)
    seen, state = traced(net, batches, layers=layer, features=choice)
    assert set(given) == {"input_ids", "attention_mask", "use_cache"}
    tokens = [hidden_states(net, state, alone(text))[0][0] for text in some]
    if choice == "cls":  # the first token is the prompt's
        expected = torch.cat([map_[:1] for map_ in tokens])
    elif choice == "all":
        expected = torch.zeros(2, 2, 6, 16)
        for place, map_ in enumerate(tokens):
            expected[place // 2, place % 2, -len(map_) + 2 :] = map_[2:]
        widths = [6, 5]
        for batch, part, width in zip(seen.batches, expected, widths, strict=True):
            torch.testing.assert_close(
                batch.features[layer][1], part[:, -width:].flatten(1), rtol=1e-4, atol=1e-4
            )
        return
    else:
        expected = torch.cat([PICK[choice](map_[2:]) for map_ in tokens])
    torch.testing.assert_close(seen.rows(layer, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("choice", [*PICK, "all", "auto"])
def test_image_models_have_tokens_too(kind, choice):
    net, batches = tiny(kind), batches_for(kind)
    layer = ms.find_layers(net)[0]
    seen, state = traced(net, batches, layers=layer, features=choice)
    expected = []
    for batch in batches:
        for image in batch["pixel_values"]:
            map_ = hidden_states(net, state, {"pixel_values": image[None]})[0][0]
            expected.append(PICK[choice](map_) if choice in PICK else map_.flatten()[None])
    torch.testing.assert_close(seen.rows(layer, 1), torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_an_encoder_decoder_has_mean_encoder_features_and_those_of_the_first_generated_token():
    net, some = tiny("t5"), texts()
    encoder, decoder = "encoder.block.0", "decoder.block.0"
    batches = batched(some, "right")
    seen, state = traced(net, batches, layers=[encoder, decoder, "output"])
    first = torch.zeros(1, 1).long()
    for number, text in enumerate(some):
        inputs = alone(text) | {"decoder_input_ids": first}
        (mean, *_), result = hidden_states(net, state, inputs, "encoder_hidden_states")
        (token, *_), _ = hidden_states(net, state, inputs, "decoder_hidden_states")
        for layer, expected in (
            (encoder, mean.mean(0)),
            (decoder, token[0]),
            ("output", result.logits[0, 0]),
        ):
            torch.testing.assert_close(seen.rows(layer, 1)[number], expected, rtol=1e-4, atol=1e-4)


def test_the_first_generated_token_is_what_generate_says():
    net, some = tiny("t5"), texts()
    base = family(net, ("base",))[0]
    seen = Recorder()
    ms.trace([base], [padded(some)], net, layers="output", readings=[seen])
    for row, text in zip(seen.rows("output", 0), some, strict=True):
        said = net.generate(**alone(text), max_new_tokens=1, do_sample=False)
        assert int(row.argmax()) == int(said[0, 1])


def test_a_decoders_tokens_have_a_mask_of_their_own():
    net = tiny("t5")
    batch = padded(texts((4, 2)))  # as long as the decoder's texts, with another mask
    answers = padded(texts((3, 4), seed=9))
    batch |= {f"decoder_{key}": value for key, value in answers.items()}
    layer = "decoder.block.0"
    seen, state = traced(net, [batch], layers=layer)
    result = hidden_states(net, state, batch, "decoder_hidden_states")[1]
    maps = result.decoder_hidden_states[1]
    for row, map_, count in zip(seen.rows(layer, 1), maps, (3, 4), strict=True):
        torch.testing.assert_close(row, map_[:count].mean(0), rtol=1e-4, atol=1e-4)


def test_padding_is_left_out_where_an_encoder_decoder_judges_a_text():
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = transformers.BartConfig(
        vocab_size=50, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, **sizes,
    )  # fmt: skip
    net = transformers.BartForSequenceClassification(config).eval()
    some = [torch.cat([text.clamp_min(3), torch.tensor([2])]) for text in texts((5, 2))]
    together, _ = traced(net, [padded(some, longer=2)])
    apart, _ = traced(net, [alone(text) for text in some])
    for layer in ms.find_layers(net):
        torch.testing.assert_close(together.rows(layer, 1), apart.rows(layer, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", ["all", "mean", "last", "cls", "each"])
def test_whatever_stands_at_padding_is_left_out(choice):
    value, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    features = Features("encoder", choice)
    clean = features.rows("layer", value.masked_fill(mask[..., None] == 0, 0.0), {"attention_mask": mask})
    dirty = value.masked_fill(mask[..., None] == 0, float("nan"))
    assert torch.equal(features.rows("layer", dirty, {"attention_mask": mask}), clean)


def test_a_mean_over_tokens_in_half_precision_is_rounded_once_if_at_all():
    value = torch.randn(2, 301, 4).bfloat16()
    mask = torch.ones(2, 301)
    mask[1, 150:] = 0
    got = Features("encoder", "mean").rows("layer", value, {"attention_mask": mask})
    expected = torch.stack([value[0].double().mean(0), value[1, :150].double().mean(0)])
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", ["last", "cls", "each"])
def test_feature_maps_of_convolutions_have_no_tokens(choice):
    net = make_net("convnet")
    with pytest.raises(LayerError, match=rf"'blocks.0' returns \[\d+, 4, 8, 8\].*{choice!r} make no sense"):
        ms.trace(family(net), labelled_batches(), net, features=choice)


def test_the_mean_of_a_convolutions_map_is_over_its_places():
    net, batches = make_net("convnet"), labelled_batches()
    whole, _ = traced(net, batches, layers="blocks.1")
    mean, _ = traced(net, batches, layers="blocks.1", features="mean")
    expected = whole.rows("blocks.1", 1).view(-1, 4, 64).mean(2)
    torch.testing.assert_close(mean.rows("blocks.1", 1), expected)


def test_one_number_a_sample_is_a_feature_too():
    class Regression(nn.Sequential):
        def forward(self, x):
            return super().forward(x).squeeze(1)

    net = Regression(nn.Flatten(), nn.Linear(64, 1))
    seen, state = traced(net, [x for x, _ in labelled_batches()], layers=["1", "output"])
    assert torch.equal(seen.rows("output", 1), seen.rows("1", 1)) and seen.rows("1", 1).shape == (10, 1)


@pytest.mark.parametrize("wrong", ["men", "lats", "token"])
def test_unknown_features_are_refused_with_a_near_match(wrong):
    near = {"men": "mean", "lats": "last"}.get(wrong)
    with pytest.raises(LayerError, match=f"no features {wrong!r}") as caught:
        ms.trace(family(make_net("mlp")), labelled_batches(), make_net("mlp"), features=wrong)
    assert all(choice in str(caught.value) for choice in CHOICES)
    assert ("Did you mean" in str(caught.value)) == (near is not None)
    assert near is None or f"Did you mean: {near}" in str(caught.value)


def test_kinds_and_what_auto_means():
    kinds = {kind: Features.of(tiny(kind)) for kind in ("llama", "gpt2", "bert", "vit", "clip", "t5")}
    assert {kind: (found.kind, found.choice) for kind, found in kinds.items()} == {
        "llama": ("decoder", "last"),
        "gpt2": ("decoder", "last"),
        "bert": ("encoder", "all"),
        "vit": ("image", "all"),
        "clip": ("image", "all"),
        "t5": ("encoder-decoder", "mean"),
    }
    assert kinds["t5"].start == 0 and kinds["bert"].start is None
    assert (Features.of(make_net("vit")).kind, Features.of(make_net("vit")).choice) == ("plain", "all")
    assert kind_of_model(transformers.T5EncoderModel(tiny("t5").config)) == "encoder"
    assert kind_of_model(transformers.LlamaForSequenceClassification(tiny("llama").config)) == "decoder"


@pytest.mark.parametrize("kind", DECODERS)
def test_bare_token_ids_are_a_batch_too(kind):
    net, ids = tiny(kind), torch.stack(texts((4, 4)))
    bare, _ = traced(net, [ids], features="each")
    named, _ = traced(net, [{"input_ids": ids}], features="each")
    for layer in ms.find_layers(net)[:2]:
        assert torch.equal(bare.rows(layer, 1), named.rows(layer, 1))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("llama", torch.tensor([1, 2]), r"labels are tokens of shape \[2, 4\], got \[2\].*Leave labels out"),
        ("gpt2", torch.ones(2, 3).long(), r"labels are tokens of shape \[2, 4\], got \[2, 3\]"),
        (
            "t5",
            torch.ones(2, 3).long(),
            r"first tokens that it should generate.*got \[2, 3\].*labels\[:, 0\]",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(kind, labels, message):
    net = tiny(kind)
    with pytest.raises(DataError, match=message):
        ms.trace(family(net, ("a",)), [padded(texts((4, 2))) | {"labels": labels}], net)


def test_a_first_token_is_a_class_of_an_encoder_decoder():
    net, some = tiny("t5"), texts((4, 2))
    (base,) = family(net, ("base",))
    batch = padded(some) | {"labels": torch.tensor([7, 8])}
    got = ms.trace([base], [batch], net).reading(ms.Outputs).losses(base)
    with torch.no_grad():
        for text, label, loss in zip(some, (7, 8), got, strict=True):
            expected = net(**alone(text), labels=torch.tensor([[label]])).loss
            np.testing.assert_allclose(loss, float(expected), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "width"), [("BartForSequenceClassification", 3), ("LlamaForTokenClassification", 3)]
)
def test_networks_of_writing_families_that_judge_texts(kind, width):
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 1, "eos_token_id": 2}
    if kind.startswith("Bart"):
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        config = transformers.BartConfig(
            **small, **sizes, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24
        )
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        config = transformers.LlamaConfig(**small, **sizes)
    network = getattr(transformers, kind)(config).eval()
    inputs = {
        "input_ids": torch.tensor([[5, 6, 2], [7, 8, 2]]),
        "attention_mask": torch.ones(2, 3, dtype=torch.long),
    }
    features = Features.of(network)
    with torch.no_grad():
        result = features.call(network, inputs)
        assert torch.equal(result.logits, network(**inputs, use_cache=False).logits)
    assert features.output(result, inputs, None).shape == (2, width)


def test_the_mean_of_a_plain_network_is_over_tokens_or_over_places():
    value = torch.randn(2, 5, 3)
    assert torch.equal(Features("plain", "mean").rows("blocks.0", value, None), value.mean(1))
    maps = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(Features("plain", "mean").rows("conv", maps, None), maps.mean((2, 3)))


def test_padded_texts_have_no_mean_to_be_centred_by():
    net = tiny("bert")
    points = family(net, ("base", "a", "b"), scale=0.05)
    short, long = texts((3,), 0), texts((6,), 1)
    one = [padded([*short, *long])]
    with pytest.raises(LayerError, match="all tokens of padded texts, which have no mean"):
        ms.trace(points, one, net, centre=points[0])
    ms.trace(points, one, net, centre=points[0], features="mean")
    ms.trace(points, [padded(long)], net, centre=points[0])


def test_the_output_of_a_network_that_judges_tokens_leaves_padding_out():
    features = Features("encoder-decoder", "mean", writes=False)
    value = torch.tensor([[[1.0], [3.0], [99.0]]])
    batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
    assert features.output_rows(value, batch).tolist() == [[2.0]]
