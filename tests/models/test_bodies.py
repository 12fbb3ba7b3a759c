"""What models of one base have in common, whatever their heads are."""

import pytest
import torch
from given_models import make

import mergescope as ms
from mergescope.errors import MismatchError
from mergescope.models.bodies import shared_body


def checkpoint(network, name="model", drop=(), **extra):
    state = {
        key: value.clone()
        for key, value in network.state_dict().items()
        if not key.startswith(tuple(drop) or "-")
    }
    return ms.Checkpoint(state | extra, name=name)


def body_of(network, *models):
    return shared_body(network, models, ms.find_layers(network))


def classifier(classes, name="BertForSequenceClassification", **settings):
    return make(name, num_labels=classes, **settings)


def test_only_the_heads_are_no_part_of_the_body():
    networks = {name: classifier(classes) for name, classes in (("a", 2), ("b", 3))}
    models = [checkpoint(network, name) for name, network in networks.items()]
    body = body_of(networks["a"], *models)
    assert body.fixed == {"classifier.weight", "classifier.bias"}
    assert body.left_out == {name: ("classifier.weight", "classifier.bias") for name in "ab"}
    assert [view.name for view in body.models] == ["a", "b"]
    for view, model in zip(body.models, models, strict=True):
        assert set(view.spec) == set(networks["a"].state_dict()) - body.fixed
        assert all(torch.equal(view.tensor(key), model.tensor(key)) for key in view.spec)


def test_names_are_the_networks_whatever_the_models_call_them():
    network, headless = classifier(2), make("BertModel")
    body = body_of(network, checkpoint(headless, "base"))
    assert all(key.startswith("bert.") for key in body.models[0].spec)
    assert body.models[0].names["bert.pooler.dense.bias"] == "pooler.dense.bias"
    assert body_of(headless, checkpoint(network, "tuned")).fixed == set()


def test_a_language_model_and_a_classifier_share_embeddings_and_blocks():
    masked, tuned = make("BertForMaskedLM"), classifier(5)
    models = (checkpoint(masked, "base"), checkpoint(tuned, "tuned"))
    body = body_of(masked, *models)
    assert all(name.startswith("cls.") for name in body.fixed) and "cls.predictions.bias" in body.fixed
    assert "cls.predictions.decoder.weight" not in body.fixed  # it is the embedding
    other = body_of(tuned, *models)
    assert other.fixed == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert set(other.models[0].spec) == set(body.models[0].spec)


def test_a_head_of_several_layers_stays_whole():
    networks = [make("RobertaForSequenceClassification", num_labels=classes) for classes in (2, 3)]
    body = body_of(
        networks[0], *(checkpoint(network, name) for network, name in zip(networks, "ab", strict=True))
    )
    assert body.fixed == {
        f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")
    }
    alike = [checkpoint(networks[0], name) for name in "ab"]
    assert body_of(networks[0], *alike).fixed == set()


@pytest.mark.parametrize("saved", [False, True])
def test_a_tied_head_is_no_difference_if_one_model_saves_it(saved):
    network = make("LlamaForCausalLM", tie_word_embeddings=True)
    without = checkpoint(network, "without", drop=["lm_head"])
    head = network.model.embed_tokens.weight.detach().clone() + (0 if saved else 0.1)
    body = body_of(network, without, checkpoint(network, "with", **{"lm_head.weight": head}))
    assert body.fixed == (set() if saved else {"lm_head.weight"})
    assert body.left_out == ({} if saved else {"with": ("lm_head.weight",)})
    assert "lm_head.weight" not in body.models[0].spec


def test_t5_embeddings_need_one_of_their_names():
    network = make("T5ForConditionalGeneration")
    names = ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    assert body_of(network, checkpoint(network), checkpoint(network, drop=names)).fixed == set()


def test_another_vocabulary_is_told_with_both_sizes():
    network = classifier(2)
    with pytest.raises(MismatchError) as told:
        body_of(network, checkpoint(network, "base"), checkpoint(classifier(2, vocab_size=44), "tuned"))
    assert told.value.problems == [
        "bert.embeddings.word_embeddings.weight: [44, 16] in tuned, [40, 16] in the network"
    ]
    assert "same vocabulary" in str(told.value)


@pytest.mark.parametrize("depth", [2, 5])
def test_more_or_fewer_blocks_are_another_body(depth):
    network = classifier(2)
    with pytest.raises(MismatchError) as told:
        body_of(
            network, checkpoint(network, "base"), checkpoint(classifier(2, num_hidden_layers=depth), "tuned")
        )
    where = {
        2: "missing in tuned, [16, 16] in the network",
        5: "[16, 16] in tuned, not in the network (and 1 alike)",
    }
    number = {2: 2, 5: 3}[depth]
    assert f"bert.encoder.layer.{number}.attention.output.dense.weight: {where[depth]}" in told.value.problems
    assert len(told.value.problems) == 16  # kinds of tensors of a block


def test_an_unrelated_model_is_told_in_a_line():
    network = classifier(2)
    with pytest.raises(MismatchError) as told:
        body_of(network, checkpoint(network, "base"), checkpoint(make("GPT2LMHeadModel"), "gpt"))
    (problem,) = told.value.problems
    assert problem.startswith("gpt shares no tensor with the network") and "transformer.wte.weight" in problem
    assert "bert.embeddings.word_embeddings.weight" in problem


def test_layers_without_tensors_are_no_body():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    with pytest.raises(MismatchError, match="its blocks hold no tensors"):
        shared_body(network, [checkpoint(network)], ["1", "output"])
