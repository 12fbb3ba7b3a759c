"""Next-token loss of padded batches, against transformers' own loss of each text alone."""

import numpy as np
import pytest
import torch
from support import family, labelled_batches, make_net
from tiny_transformers import DECODERS, padded, texts, tiny

import mergescope as ms
from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.models.features import NextTokens
from mergescope.readings import Batch


def own_loss(net, text, skip=0):
    """What transformers calls the loss of a text, without the first tokens."""
    labels = text[None].clone()
    labels[:, :skip] = -100
    with torch.no_grad():
        return float(net(text[None], labels=labels).loss)


def guesses(net, text):
    with torch.no_grad():
        return net(text[None]).logits[0, :-1].argmax(-1)


def traced(net, batches, names=("base", "a")):
    points = family(net, names, scale=0.05)
    return points, ms.trace(points, batches, net, readings=[ms.NextTokenLoss()]).reading(ms.NextTokenLoss)


def cases():
    # A text that starts behind padding has other absolute positions, which only GPT-2 has.
    return [
        (kind, side) for kind in DECODERS for side in ("right", "left") if (kind, side) != ("gpt2", "left")
    ]


@pytest.mark.parametrize(("kind", "side"), cases())
def test_losses_are_those_that_transformers_gives_each_text_alone(kind, side):
    net, some = tiny(kind), texts((6, 3, 1, 5))
    points, reading = traced(net, [padded(some[:2], side), padded(some[2:], side, longer=2)])
    for point in points:
        net.load_state_dict(point.state_dict())
        losses, correct = reading.losses(point), reading.correct(point)
        assert np.isnan(losses[2]) and np.isnan(correct[2])  # one token predicts nothing
        for place in (0, 1, 3):
            text = some[place]
            np.testing.assert_allclose(losses[place], own_loss(net, text), rtol=1e-4)
            np.testing.assert_allclose(correct[place], (guesses(net, text) == text[1:]).double().mean())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("how", ["token_mask", "labels"])
def test_a_prompt_is_not_predicted_but_read(side, how):
    net, some = tiny("llama"), texts((6, 3, 5))
    batch = padded(some, side)
    prompt = batch["attention_mask"].cumsum(1) <= 2
    if how == "token_mask":
        batch["token_mask"] = batch["attention_mask"] * ~prompt
    else:
        counts = batch["attention_mask"].bool() & ~prompt
        batch["labels"] = batch["input_ids"].masked_fill(~counts, -100)
    points, reading = traced(net, [batch])
    for text, loss in zip(some, reading.losses(points[0]), strict=True):
        np.testing.assert_allclose(loss, own_loss(net, text, skip=2), rtol=1e-4)


def test_agreement_is_the_share_of_equal_guesses():
    net, some = tiny("llama"), texts((6, 3, 1, 5))
    (base, a), reading = traced(net, [padded(some[:2]), padded(some[2:])])
    said = {}
    for point in (base, a):
        net.load_state_dict(point.state_dict())
        said[point] = [guesses(net, text) for text in some]
    got = reading.agreement(base, a)
    assert np.isnan(got[2])
    for place in (0, 1, 3):
        expected = (said[base][place] == said[a][place]).double().mean()
        np.testing.assert_allclose(got[place], expected)
    assert 0 < np.nanmean(got) < 1
    np.testing.assert_array_equal(reading.agreement(a, a)[[0, 1, 3]], 1)


def say(losses, predicted, wanted, counts):
    return NextTokens(
        torch.tensor(losses), torch.tensor(predicted), torch.tensor(wanted), torch.tensor(counts)
    )


def test_halves_merged_are_one_reading():
    one = say([[0.5, 1.5]], [[3, 4]], [[3, 5]], [[True, True]])
    two = say([[2.5, 9.0], [1.0, 3.0]], [[1, 2], [1, 2]], [[1, 2], [2, 2]], [[True, False], [True, True]])
    whole, first, rest = (ms.NextTokenLoss() for _ in range(3))
    for reading, batches in ((whole, [one, two]), (first, [one]), (rest, [two])):
        reading.start(["a"], [])
        for said in batches:
            reading.update(Batch({}, [said], None))
    first.merge(rest)
    assert whole.losses("a").tolist() == [1.0, 2.5, 2.0] == first.losses("a").tolist()
    assert whole.correct("a").tolist() == [0.5, 1.0, 0.5] == first.correct("a").tolist()
    other = ms.NextTokenLoss()
    other.start(["b"], [])
    with pytest.raises(MergescopeError, match="same kind, points and layers"):
        first.merge(other)


def test_a_classifier_has_no_next_token():
    net = make_net("mlp")
    with pytest.raises(DataError, match="needs a causal language model on text; use Outputs"):
        ms.trace(family(net), labelled_batches(), net, readings=[ms.NextTokenLoss()])


def test_a_reading_serves_one_trace():
    _, reading = traced(tiny("gpt2"), [padded(texts())])
    with pytest.raises(MergescopeError, match="make a new NextTokenLoss"):
        reading.start(["a"], [])


def test_nan_at_padding_is_left_out():
    reading = ms.NextTokenLoss()
    reading.start(["p"], [])
    counts = torch.tensor([[False, True, True]])
    said = NextTokens(torch.tensor([[float("nan"), 1.0, 3.0]]), torch.ones(1, 3), torch.ones(1, 3), counts)
    reading.update(Batch({}, [said], None))
    assert reading.losses("p").tolist() == [2.0]


def test_a_point_that_was_not_traced_is_named_with_near_ones():
    reading = ms.NextTokenLoss()
    reading.start(["base", "tuned"], [])
    said = say([[0.5, 1.5]], [[3, 4]], [[3, 5]], [[True, True]])
    reading.update(Batch({}, [said, said], None))
    for asked in (reading.losses, reading.correct, lambda point: reading.agreement("base", point)):
        with pytest.raises(PointError, match=r"tune was not traced\. Did you mean: tuned\?"):
            asked("tune")
