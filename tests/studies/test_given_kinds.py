"""``mergescope measure`` on language models, vision towers, and checkpoints of every make."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from given_models import encoded, family, images, labels, make, mixed, save, save_rows, save_tokenizer, texts
from given_runs import assert_alike, loads, loss_and_accuracy, losses, next_token_loss, options, run, said
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

import mergescope as ms
from mergescope.errors import DataError, LayerError
from mergescope.studies.given import prepare
from mergescope.studies.measured import to_dict

# -- language models -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_losses_of_language_models_are_those_of_transformers(tmp_path, kind):
    settings = {"tie_word_embeddings": True} if kind.startswith("Llama") else {}
    folders = family(tmp_path, kind=kind, **settings)
    lines = texts(7)
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    found = run(
        folders["base"], [folders["a"], folders["b"]], [tmp_path / "lines.txt"], alphas=(0.25, 0.5, 0.75)
    )
    every = {name: loads(folder) for name, folder in folders.items()}
    reading = found.traces["lines"].readings[1]
    for name, network in every.items():
        slow = [next_token_loss(network, encoded(line)) for line in lines]
        point = ms.Point.of(ms.Checkpoint(folders[name]))
        assert reading.losses(point) == pytest.approx([loss for loss, _ in slow], abs=1e-5)
        assert losses(found, name, "lines") == pytest.approx(np.mean(slow, axis=0), abs=1e-5)
    line = []
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        merged = make(kind, **settings)
        merged.load_state_dict(mixed(every["a"].state_dict(), every["b"].state_dict(), alpha))
        line.append(np.mean([next_token_loss(merged, encoded(text))[0] for text in lines]))
    along = found.pairs[0].barrier
    assert along.loss.tolist() == pytest.approx(line, abs=1e-5)
    excess = [
        line[i] - alpha * line[4] - (1 - alpha) * line[0] for i, alpha in ((1, 0.25), (2, 0.5), (3, 0.75))
    ]
    assert along.loss_barrier == pytest.approx(max(excess), abs=1e-5)
    streamed = run(folders["base"], [folders["a"], folders["b"]], [tmp_path / "lines.txt"], executor="streamed",
                   alphas=(0.25, 0.5, 0.75))  # fmt: skip
    assert_alike(said(found), said(streamed))


def test_a_prompt_counts_neither_as_feature_nor_for_the_loss(tmp_path):
    start = make("LlamaForCausalLM")
    for seed, name in enumerate(("base", "a")):
        save(make("LlamaForCausalLM", seed, start), tmp_path / name, tokenizer=False)
        save_tokenizer(tmp_path / name, marks=False)
    asked, answers = texts(5, 1, 4), [f"{line} w1 w2" for line in texts(5, 2, 3)]
    rows = save_rows(tmp_path / "rows.csv", answers, question=asked)
    found = run(
        tmp_path / "base", [tmp_path / "a"], [rows], rows={"text_column": "text", "prompt": "question"}
    )
    network = loads(tmp_path / "a")
    slow = []
    for question, answer in zip(asked, answers, strict=True):
        before, ids = (encoded(line)[:, 1:-1] for line in (question, f"{question} {answer}"))
        slow.append(next_token_loss(network, ids, before.shape[1]))
    assert losses(found, "a", "rows") == pytest.approx(np.mean(slow, axis=0), abs=1e-5)


def test_one_token_is_nothing_to_predict(tmp_path):
    start = make("GPT2LMHeadModel")
    for seed, name in enumerate(("base", "a")):
        save(make("GPT2LMHeadModel", seed, start), tmp_path / name, tokenizer=False)
        save_tokenizer(tmp_path / name, marks=False)
    (tmp_path / "lines.txt").write_text("w1\nw2 w3\nw4\nw5 w6 w7\n")
    found = run(tmp_path / "base", [tmp_path / "a"], [tmp_path / "lines.txt"])
    assert found.traces["lines"].samples == 2
    assert any("left out 2 of 4 rows: a single token" in note for note in found.notes)
    (tmp_path / "single.txt").write_text("w1\nw4\n")
    with pytest.raises(DataError, match="Not one of 2 rows is left"):
        run(tmp_path / "base", [tmp_path / "a"], [tmp_path / "single.txt"])


@pytest.mark.parametrize("kind", ["GPT2ForSequenceClassification", "LlamaForSequenceClassification"])
def test_decoders_that_classify_are_classifiers(tmp_path, reviews, kind):
    folders = family(tmp_path, kind=kind, pad_token_id=0)
    found = run(folders["base"], [folders["a"], folders["b"]], [reviews])
    slow = loss_and_accuracy(loads(folders["a"]), texts(), labels(10, 2))
    assert losses(found, "a", "reviews") == pytest.approx(slow, abs=1e-5)


def test_an_encoder_decoder_is_asked_for_its_first_token(tmp_path, reviews):
    folders = family(tmp_path, kind="T5ForConditionalGeneration", change=0.3)
    found = run(folders["base"], [folders["a"], folders["b"]], [reviews])
    first = {}
    for name, folder in folders.items():
        network = loads(folder)
        first[name] = [
            network.generate(encoded(line), max_new_tokens=1, do_sample=False)[0, 1].item()
            for line in texts()
        ]
    pair = found.pairs[0]
    assert pair.agreement["a, b"].mean == np.mean(np.array(first["a"]) == np.array(first["b"]))
    assert pair.barrier is None and found.traces["reviews"].layers[0] == "encoder.block.0"
    with pytest.raises(LayerError, match="Use the resident executor"):
        run(folders["base"], [folders["a"], folders["b"]], [reviews], executor="streamed")


def test_masked_language_models_predict_nothing(tmp_path, reviews):
    folders = family(tmp_path, kind="BertForMaskedLM")
    found = run(folders["base"], [folders["a"], folders["b"]], [reviews])
    assert not found.losses and not found.pairs[0].agreement and "output" in found.traces["reviews"].layers


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "CLIPVisionModel"])
def test_vision_towers_on_a_folder_of_images(tmp_path, kind):
    start = make(kind)
    for seed, name in enumerate(("base", "a", "b")):
        save(start if not seed else make(kind, seed, start), tmp_path / name, tokenizer=False)
    processor = (
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}) if kind.startswith("ViT")
        else transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    )  # fmt: skip
    processor.save_pretrained(tmp_path / "base")
    found = run(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], [images(tmp_path / "pets")])
    network = loads(tmp_path / "a")
    files = sorted((tmp_path / "pets").rglob("*.png"))
    pixels = [processor(Image.open(file), return_tensors="pt")["pixel_values"] for file in files]
    if kind.startswith("ViT"):
        with torch.no_grad():
            logits = torch.cat([network(pixel_values=image).logits for image in pixels])
        slow = F.cross_entropy(logits, torch.tensor([0] * 4 + [1] * 4)).item()
        assert losses(found, "a", "pets")[0] == pytest.approx(slow, abs=1e-4)
        assert any("cat = 0, dog = 1" in note for note in found.notes)
    else:
        assert not found.losses and not found.pairs[0].agreement
    streamed = run(
        tmp_path / "base", [tmp_path / "a", tmp_path / "b"], [tmp_path / "pets"], executor="streamed"
    )
    assert_alike(said(found), said(streamed))


def test_own_networks_need_no_processor(tmp_path):
    torch.manual_seed(0)
    net = ms.ViT(image=8, patch=4, width=16, depth=2, heads=2, classes=2, channels=3)
    for seed, name in enumerate(("base", "a")):
        near = {key: value + 0.02 * seed * torch.randn_like(value) for key, value in net.state_dict().items()}
        ms.save(ms.Checkpoint(near), tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(ms.models.net_config(net)))
    found = run(tmp_path / "base", [tmp_path / "a"], [images(tmp_path / "pets")])
    assert found.pairs[0].word == "CTL holds" and ("a", "pets") in found.losses


# -- how models are stored -------------------------------------------------------------------------


def test_shards_and_pickles_are_the_same_models(tmp_path, classifiers, reviews):
    whole = run(classifiers["base"], [classifiers["a"], classifiers["b"]], [reviews])
    for name, folder in classifiers.items():
        save(loads(folder), tmp_path / name, max_shard_size="10KB" if name == "a" else "5GB")
    (tmp_path / "b" / "model.safetensors").unlink()
    torch.save(loads(classifiers["b"]).state_dict(), tmp_path / "b" / "pytorch_model.bin")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    other = run(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], [reviews])
    assert_alike(said(whole), said(other), 0)
    turned = run(tmp_path / "b", [tmp_path / "a"], [reviews])
    assert losses(turned, "b", "reviews") == losses(whole, "b", "reviews")


@pytest.mark.peft
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_on_a_base_are_fine_tunes(tmp_path, reviews):
    base = save(make("LlamaForCausalLM"), tmp_path / "base")
    for seed, name in enumerate(("p", "q")):
        torch.manual_seed(seed)
        options_ = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        network = peft.get_peft_model(loads(base), options_)
        network.save_pretrained(tmp_path / name)
        save(network.merge_and_unload(), tmp_path / f"merged-{name}")
    adapted = run(base, [f"p={base}+{tmp_path / 'p'}", f"q={base}+{tmp_path / 'q'}"], [reviews])
    merged = run(base, [f"p={tmp_path / 'merged-p'}", f"q={tmp_path / 'merged-q'}"], [reviews])
    assert adapted.pairs[0].middle.layers[0].measures["gap"].mean > 0.001
    assert_alike(said(adapted), said(merged))
    plain = run(base, [f"{base}+{tmp_path / 'p'}"], [reviews])
    assert plain.models == ("base+p",)
    told = prepare(options(base, [f"{base}+{tmp_path / 'p'}"], [reviews])).provenance()["models"]["base+p"]
    assert told["from"] == f"{base}+{tmp_path / 'p'}"
    assert told["digest"] != ms.Checkpoint(base).digest


def test_half_precision_checkpoints_are_combined_as_they_would_be_merged(tmp_path, reviews):
    folders = family(tmp_path)
    for folder in folders.values():
        save(loads(folder).to(torch.bfloat16), folder)
    found = run(folders["base"], [folders["a"], folders["b"]], [reviews])
    one, two = (load_file(folders[name] / "model.safetensors") for name in "ab")
    merged = make("BertForSequenceClassification")
    merged.load_state_dict({
        key: ((one[key].float() + two[key].float()) / 2).to(torch.bfloat16).float() for key in one
    })
    slow = loss_and_accuracy(merged, texts(), labels(10, 2))
    assert losses(found, "a + b, merged", "reviews") == pytest.approx(slow, abs=1e-5)
    assert found.traces["reviews"].dtype == torch.float32 and found.notes == []


def test_models_of_different_types_are_read_as_the_wider_one(tmp_path, reviews):
    folders = family(tmp_path)
    save(loads(folders["a"]).to(torch.bfloat16), folders["a"])
    found = run(folders["base"], [folders["a"], folders["b"]], [reviews])
    merged = make("BertForSequenceClassification")
    states = [{k: v.float() for k, v in load_file(folders[n] / "model.safetensors").items()} for n in "ab"]
    merged.load_state_dict(mixed(*states, 0.5))
    slow = loss_and_accuracy(merged, texts(), labels(10, 2))
    assert losses(found, "a + b, merged", "reviews") == pytest.approx(slow, abs=1e-5)
    assert found.notes == [
        "the models are stored in different types and read as float32 (base in float32; a in bfloat16; b in float32)"
    ]


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_the_error_of_a_narrower_type_is_told(classifiers, reviews, executor):
    given = (classifiers["base"], [classifiers["a"], classifiers["b"]], [reviews])
    exact = run(*given, rows={"batch_size": 16})
    narrow = run(*given, "bfloat16", rows={"batch_size": 16}, executor=executor)
    one, two = (found.pairs[0].middle for found in (exact, narrow))
    change = {
        measure: max(
            abs(one[layer.layer].measures[measure].mean - layer.measures[measure].mean)
            for layer in two.layers
        )
        for measure in ("cos", "coef")
    }
    assert change["cos"] > 0  # all samples are in the first batch
    assert narrow.notes == [
        f"computed in bfloat16: against float32, on one pair and batch, cos changes by up to {change['cos']:.1e} and "
        f"coef by up to {change['coef']:.1e}"
    ]
    assert to_dict(narrow)["cost"]["dtype"] == "bfloat16"
