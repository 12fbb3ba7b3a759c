"""Losses against sums by hand, for classes, tokens and answers."""

import pytest
import torch
from tiny_transformers import PAD, padded, texts, tiny
from torch import nn
from torch.nn import functional as F

from mergescope.errors import DataError
from mergescope.training.loop import evaluate
from mergescope.training.objective import Objective, masked

ANSWERS = texts((3, 1, 4, 2, 3), seed=8)


def answers(some):
    width = max(map(len, some))
    return torch.stack([F.pad(answer, (0, width - len(answer)), value=-100) for answer in some])


@torch.no_grad()
def by_hand(model, text, answer):
    """Loss and rightness of one answer without padding, one token at a time."""
    losses, right = [], True
    for place, token in enumerate(answer):
        before = torch.cat([torch.tensor([PAD]), answer[:place]])
        logits = model(input_ids=text[None], decoder_input_ids=before[None]).logits[0, -1].double()
        losses.append(float(logits.logsumexp(0) - logits[token]))
        right &= int(logits.argmax()) == int(token)
    return sum(losses) / len(losses), right


def learned(model, some):
    """Answers of which the first is what greedy decoding writes, so that one is right."""
    text = texts()[0]
    written = []
    with torch.no_grad():
        for _ in range(len(some[0])):
            before = torch.tensor([[PAD, *written]])
            written.append(int(model(input_ids=text[None], decoder_input_ids=before).logits[0, -1].argmax()))
    return [torch.tensor(written), *some[1:]]


def test_an_answer_is_one_prediction_whose_loss_is_the_mean_over_its_tokens():
    model = tiny("t5")
    wanted = learned(model, ANSWERS)
    expected = [by_hand(model, *both) for both in zip(texts(), wanted, strict=True)]
    loss, right, count = Objective(model)(model, padded(texts()), answers(wanted))
    assert count == 5 and int(right) == sum(fits for _, fits in expected) >= 1
    assert float(loss.detach()) == pytest.approx(sum(loss for loss, _ in expected) / 5, rel=1e-5)


class Answers:
    def __init__(self, wanted):
        self.wanted = wanted

    def __len__(self):
        return len(self.wanted)

    def batch(self, places):
        some = [self.wanted[place] for place in places]
        return padded([texts()[place] for place in places]), answers(some)


def test_results_do_not_depend_on_which_answers_share_a_batch():
    model = tiny("t5")
    data = Answers(learned(model, ANSWERS))
    results = [evaluate(model, data, Objective(model), batch=size) for size in (1, 2, 5)]
    assert results[0][1] == results[1][1] == results[2][1] >= 1 / 5
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5) == results[2][0]


def test_answers_without_tokens_are_no_predictions():
    model = tiny("t5")
    labels = answers(ANSWERS)
    labels[3] = -100
    some = [place for place in range(5) if place != 3]
    one = Objective(model)(model, padded(texts()), labels)
    other = Objective(model)(model, padded([texts()[n] for n in some]), answers([ANSWERS[n] for n in some]))
    assert one[2] == other[2] == 4 and int(one[1]) == int(other[1])
    torch.testing.assert_close(one[0], other[0])


def test_label_smoothing_of_answers():
    model = tiny("t5")
    logits = model(**padded(texts()), labels=answers(ANSWERS)).logits.double()
    smooth = []
    for row, answer in zip(logits, ANSWERS, strict=True):
        logs = row[: len(answer)].log_softmax(-1)
        hard = -logs[torch.arange(len(answer)), answer]
        smooth.append((0.9 * hard - 0.1 * logs.mean(-1)).mean())
    loss, _, _ = Objective(model, label_smoothing=0.1)(model, padded(texts()), answers(ANSWERS))
    torch.testing.assert_close(loss.double(), torch.stack(smooth).mean(), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_answers_is_that_of_the_loss():
    model = tiny("t5")
    loss, _, _ = Objective(model)(model, padded(texts()), answers(ANSWERS))
    loss.backward()
    assert float(model.shared.weight.grad.norm()) > 0


def test_the_tokens_of_a_language_model_are_predictions_of_their_own():
    model = tiny("gpt2")
    batch = padded(texts())
    with torch.no_grad():
        losses = []
        for text in texts():
            if len(text) > 1:
                logits = model(input_ids=text[None]).logits[0, :-1]
                losses.append(F.cross_entropy(logits, text[1:], reduction="none"))
        loss, _, count = Objective(model)(model, batch, None)
    assert count == sum(len(text) - 1 for text in texts())
    torch.testing.assert_close(loss, torch.cat(losses).mean(), rtol=1e-4, atol=1e-5)


def test_a_shared_head_is_masked_to_the_tasks_classes():
    net, x = nn.Linear(4, 6), torch.randn(8, 4)
    labels = torch.tensor([1, 4, 4, 1, 1, 4, 1, 4])
    loss, right, count = Objective(net, (1, 4))(net, x, labels)
    logits = net(x)[:, [1, 4]]
    torch.testing.assert_close(loss, F.cross_entropy(logits, (labels == 4).long()))
    assert count == 8 and int(right) == int((logits.argmax(1) == (labels == 4)).sum())
    assert torch.equal(masked(net(x), None), net(x))


@pytest.mark.parametrize("classes", [None, (1, 4)])
def test_label_smoothing_spreads_over_the_tasks_classes(classes):
    net, x, labels = nn.Linear(4, 6), torch.randn(8, 4), torch.tensor([1, 4] * 4)
    loss, _, _ = Objective(net, classes, 0.2)(net, x, labels)
    chosen = list(classes or range(6))
    logs = net(x)[:, chosen].log_softmax(-1)
    places = torch.tensor([chosen.index(int(label)) for label in labels])
    hard = -logs[torch.arange(8), places]
    torch.testing.assert_close(loss, (0.8 * hard - 0.2 * logs.mean(-1)).mean())


def test_labels_that_cannot_be_learned_are_named():
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(DataError, match=r"Labels \[5\] can't be learned: the network has 3 outputs\."):
        Objective(net)(net, x, torch.tensor([0, 5]))
    with pytest.raises(DataError, match=r"Labels \[0\] can't be learned.*the task's classes are \[1, 2\]"):
        Objective(net, (2, 1))(net, x, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="Training needs labels"):
        Objective(net)(net, x, None)
    t5 = tiny("t5")
    with pytest.raises(DataError, match=r"Labels \[50\] can't be learned: the network has 50 outputs"):
        labels = answers(ANSWERS)
        labels[0, 0] = 50
        Objective(t5)(_Permissive(t5), padded(texts()), labels)


class _Permissive(nn.Module):
    """A T5 whose decoder is not asked to embed an unknown token before its logits are looked at."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, labels, **inputs):
        return self.model(labels=labels.clamp_max(49), **inputs)
