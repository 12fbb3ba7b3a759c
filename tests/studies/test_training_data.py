"""Every kind of network through prepare and finetune, and what is refused before anything trains."""

import dataclasses
import json

import given_models
import pytest
import torch
import tunable_bases as bases
import yaml
from safetensors.torch import load_file, save_file

import mergescope as ms
from mergescope.data import load_split, task_spec
from mergescope.data.task_splits import held_out
from mergescope.errors import DataError, MergescopeError, MismatchError
from mergescope.models import WithHead, linear_head, load_head, save_head, zero_shot_head
from mergescope.models.heads import FILE
from mergescope.studies.finetune import RECORD, finetune, prepare
from mergescope.studies.training_data import FineTune
from mergescope.training import Recipe, preset, trainable_table

transformers = pytest.importorskip("transformers")
QUICK = Recipe("adamw", lr=3e-3, steps=6, batch=8)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return bases.animals(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return bases.questions(tmp_path_factory.mktemp("data") / "questions")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return bases.clip(tmp_path_factory.mktemp("base") / "clip")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return bases.t5(tmp_path_factory.mktemp("base") / "t5")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return bases.vit(tmp_path_factory.mktemp("base") / "vit")


def tune(base, task, **more):
    return FineTune(str(base), str(task), "task", **{"recipe": QUICK, **more})


def run(base, task, out, **more):
    """Fine-tune; what was prepared, and the record of it."""
    prepared = prepare(tune(base, task, **more))
    finetune(prepared, out, progress=False, device="cpu")
    return prepared, yaml.safe_load((out / RECORD).read_text())


def changed(base, out):
    """Keys whose tensors differ; the two have the same keys."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    assert before.keys() == after.keys()
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def accuracy(network, batches):
    """One sample at a time, by hand."""
    right = 0
    for place in range(batches.samples):
        batch = batches.batch(torch.tensor([place]))
        labels = batch.pop("labels")
        with torch.no_grad():
            output = network(**batch)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        right += int((logits.argmax(-1) == labels).sum())
    return right / batches.samples


def loaded(out):
    """What was written, as a network with its head."""
    return WithHead(ms.load_model(out), load_head(out)).eval()


@pytest.mark.parametrize("regime", ["full", "attention-1", "linearized", "lora"])
def test_a_clip_gets_a_frozen_zero_shot_head_and_only_its_image_tower_trains(tmp_path, clip, animals, regime):
    prepared, record = run(clip, animals, tmp_path / "out", regime=regime)
    assert record["head"] == "zero-shot" and prepared.classes == bases.ANIMALS
    moved = changed(clip, tmp_path / "out")
    assert moved and all(key.startswith(("vision_model.", "visual_projection")) for key in moved)
    if regime in ("attention-1", "lora"):
        assert len(moved) == 8 and all(".self_attn." in key for key in moved)
    assert type(ms.load_model(tmp_path / "out")) is transformers.CLIPModel
    found = load_head(tmp_path / "out")
    assert torch.equal(found.weight, prepared.head.weight) and found.classes == bases.ANIMALS
    if regime != "linearized":
        assert record["results"]["test"]["accuracy"] == accuracy(
            loaded(tmp_path / "out"), prepared.parts["test"]
        )


def test_the_head_is_made_of_the_classes_in_words_with_the_tasks_templates(clip, animals):
    prepared = prepare(tune(clip, animals))
    model = ms.load_model(clip)
    by_hand = zero_shot_head(
        model, transformers.AutoTokenizer.from_pretrained(clip), bases.ANIMALS,
        ("a photo of a {}.", "a picture of the {}.", "this is a {}."),
        logit_scale=float(model.logit_scale.detach()),
    )  # fmt: skip
    assert prepared.head.digest == by_hand.digest
    torch.testing.assert_close(prepared.head.weight, by_hand.weight)


def test_the_head_is_made_once(clip, animals, monkeypatch):
    first = prepare(tune(clip, animals)).head
    monkeypatch.setattr("mergescope.models.zero_shot._embed", None)
    assert torch.equal(prepare(tune(clip, animals)).head.weight, first.weight)


def test_classes_are_called_as_in_the_data_so_that_the_data_can_be_measured(tmp_path, clip):
    data = bases.animals(tmp_path / "data", ("big_cat", "small_cat"))
    assert prepare(tune(clip, data)).head.classes == ("big_cat", "small_cat")
    words = bases.animals(tmp_path / "words", ("big cat", "small cat"))
    assert torch.equal(prepare(tune(clip, data)).head.weight, prepare(tune(clip, words)).head.weight)


def test_a_part_of_the_classes_has_a_part_of_the_head(clip, animals):
    whole = prepare(tune(clip, animals)).head
    part = prepare(tune(clip, animals, classes=(2, 0)))
    assert part.classes == ("bird", "dog") and part.mask is None
    torch.testing.assert_close(part.head.weight, whole.weight[[0, 2]])
    assert set(part.parts["train"].labels.tolist()) == {0, 1}
    assert part.parts["test"].labels.tolist() == [0] * 4 + [1] * 4


def test_a_trained_head_learns_with_the_tower(tmp_path, clip, animals):
    recipe = dataclasses.replace(QUICK, steps=40)
    prepared, record = run(clip, animals, tmp_path / "out", head="trained", recipe=recipe)
    head = load_head(tmp_path / "out")
    assert head.policy == "trained" and not torch.equal(head.weight, prepared.head.weight)
    assert record["results"]["test"]["accuracy"] == 1.0


def test_a_vision_tower_alone_takes_a_head_that_was_made_elsewhere(tmp_path, clip, animals):
    alone = bases.clip_vision(tmp_path / "alone")
    with pytest.raises(MergescopeError, match=r"no text tower to make a zero-shot head of.*a directory"):
        prepare(tune(alone, animals, head="zero-shot"))
    assert prepare(tune(alone, animals)).head.policy == "trained"
    save_head(tmp_path / "head", prepare(tune(clip, animals)).head)
    prepared, record = run(alone, animals, tmp_path / "out", head=str(tmp_path / "head"))
    assert record["head"] == "zero-shot" and changed(alone, tmp_path / "out")
    assert record["results"]["test"]["accuracy"] == accuracy(loaded(tmp_path / "out"), prepared.parts["test"])


IMAGES = {
    "clip vision": bases.clip_vision,
    "vit": bases.vit,
    "vit with a head": lambda folder: bases.vit(folder, name="ViTForImageClassification", num_labels=7),
    "resnet with a head": bases.hf_resnet,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_head_that_is_made_sits_on_the_body(tmp_path, animals, kind):
    base = IMAGES[kind](tmp_path / "base")
    prepared, record = run(base, animals, tmp_path / "out")
    assert record["head"] == "trained" and prepared.head.dim == (12 if kind == "clip vision" else 16)
    moved = changed(base, tmp_path / "out")
    assert moved and not any(key.startswith("classifier") for key in moved), "another task's head stays"
    assert record["results"]["test"]["accuracy"] == accuracy(loaded(tmp_path / "out"), prepared.parts["test"])


def test_a_classifiers_own_head_goes_on_where_it_was(tmp_path, animals):
    names = {"id2label": {0: "dog", 1: "cat", 2: "bird"}, "label2id": {"dog": 0, "cat": 1, "bird": 2}}
    base = bases.vit(tmp_path / "base", name="ViTForImageClassification", **names)
    prepared, record = run(base, animals, tmp_path / "out", head="none", classes=(0, 2))
    assert prepared.head is None and prepared.classes == ("bird", "dog")
    assert prepared.mask == (0, 2), "the model's numbers"
    assert any(key.startswith("classifier") for key in changed(base, tmp_path / "out"))
    assert not (tmp_path / "out" / FILE).exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ms.MLP((192, 32, 5)),
        lambda: ms.ViT(image=8, patch=4, channels=3, width=16, depth=2, heads=2, classes=5),
        lambda: ms.ResNet(image=16, width=4, stages=(1, 1), classes=5),
        lambda: ms.ResNet(image=16, width=4, stages=(1, 1), classes=5, running_statistics=True),
    ],
    ids=["mlp", "vit", "resnet", "resnet with statistics"],
)
def test_a_net_trains_with_its_own_head(tmp_path, animals, make):
    base = bases.net(tmp_path / "base", make)
    recipe = dataclasses.replace(preset("mc-sgd"), epochs=15, batch=12)
    prepared, record = run(base, animals, tmp_path / "out", recipe=recipe)
    assert prepared.head is None and record["head"] is None and prepared.mask is None
    assert {"head.weight", "head.bias"} <= changed(base, tmp_path / "out")
    assert type(ms.load_model(tmp_path / "out")) is type(make())
    assert record["results"]["test"]["accuracy"] > 0.7


def test_the_outputs_of_other_classes_do_not_count(tmp_path, animals):
    base = bases.net(tmp_path / "base")
    with torch.no_grad():
        network = ms.load_model(base)
        network.head.bias[[1, 3, 4]] += 100  # the shared head is sure of classes that are not the task's
        ms.save(
            ms.Checkpoint(network.state_dict()),
            base,
            config=ms.models.net_config(network),
            overwrite=True,
        )
    prepared, record = run(base, animals, tmp_path / "out", classes=(0, 2))
    assert prepared.mask == (0, 2) and prepared.classes == ("bird", "dog")
    assert set(prepared.parts["train"].labels.tolist()) == {0, 2}
    assert len(prepared.parts["test"].labels) == 8
    bias = load_file(tmp_path / "out" / "model.safetensors")["head.bias"]
    assert torch.equal(bias[[1, 3, 4]], network.head.bias.detach()[[1, 3, 4]])
    assert record["results"]["test"]["accuracy"] >= 0.5, "without the mask it would be 0"
    with torch.no_grad():
        logits = ms.load_model(tmp_path / "out")(prepared.parts["test"].batch(torch.arange(8))["x"])
    chosen = torch.tensor([0, 2])[logits[:, [0, 2]].argmax(1)]
    assert record["results"]["test"]["accuracy"] == (chosen == prepared.parts["test"].labels).float().mean()


def test_regimes_choose_within_a_net(tmp_path, animals):
    base = bases.net(tmp_path / "base")
    rows = trainable_table(
        prepare(tune(base, animals)).network, prepare(tune(base, animals, regime="attention-2")).regime
    )
    assert rows[-1].trained == 2 * 4 * (16 * 16 + 16)


@pytest.mark.parametrize("regime", ["full", "attention-1", "linearized", "lora"])
def test_an_encoder_decoder_learns_answers(tmp_path, t5, questions, regime):
    prepared, record = run(t5, questions, tmp_path / "out", answer_column="reply", regime=regime)
    assert prepared.head is None and prepared.classes is None and record["head"] is None
    batch = prepared.parts["train"].batch(torch.tensor([0, 1]))
    ids = [given_models.encoded(text)[0].tolist() for text in ("w20 w9", "w21 w9")]
    assert batch["labels"].tolist()[0] in ids and batch["input_ids"].shape[0] == 2
    assert changed(t5, tmp_path / "out")
    assert type(ms.load_model(tmp_path / "out")) is transformers.T5ForConditionalGeneration


def test_accuracy_is_the_share_of_answers_that_greedy_decoding_writes(tmp_path, t5, questions):
    recipe = Recipe("adamw", lr=3e-3, steps=150, batch=16)
    prepared, record = run(t5, questions, tmp_path / "out", answer_column="reply", recipe=recipe)
    network, part = ms.load_model(tmp_path / "out"), prepared.parts["test"]
    right = 0
    for place in range(part.samples):
        batch = part.batch(torch.tensor([place]))
        wanted = batch.pop("labels")[0].tolist()
        written = network.generate(**batch, max_new_tokens=len(wanted), do_sample=False, num_beams=1)
        right += written[0, 1:].tolist() == wanted
    assert right, "a test that nothing passes says nothing"
    assert record["results"]["test"]["accuracy"] == right / part.samples


def test_classes_are_answers_too(t5, questions):
    prepared = prepare(tune(t5, questions, template="w7 {text}"))
    batch = prepared.parts["test"].batch(torch.tensor([0]))
    assert batch["labels"].tolist() == [given_models.encoded("w10")[0].tolist()]
    assert batch["input_ids"].tolist() == [given_models.encoded("w7 w0 w5")[0].tolist()]
    part = prepare(tune(t5, questions, classes=(1,)))
    assert {tuple(row) for row in part.parts["test"].batch(torch.arange(3))["labels"].tolist()} == {
        tuple(given_models.encoded("w11")[0].tolist())
    }


def test_known_tasks_ask_in_their_own_words(tmp_path, t5):
    import datasets

    rows = {
        "question": ["w1"] * 20, "context": ["w2 w3"] * 20,
        "answers": [{"text": ["w4"], "answer_start": [0]}] * 20,
    }  # fmt: skip
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / f"{split}.parquet"))
    prepared = prepare(tune(t5, f"squad={tmp_path}"))
    assert prepared.parts["train"].batch(torch.tensor([0]))["labels"].tolist() == [
        given_models.encoded("w4")[0].tolist()
    ]
    with pytest.raises(DataError, match="asks for answers in words, and this network gives classes"):
        bert = given_models.save(given_models.make("BertModel"), tmp_path / "bert")
        prepare(tune(bert, f"squad={tmp_path}"))


def test_a_language_model_learns_answers_behind_their_questions(tmp_path, questions):
    base = given_models.save(given_models.make("LlamaForCausalLM"), tmp_path / "llama")
    prepared = prepare(tune(base, questions, answer_column="reply"))
    batch = prepared.parts["train"].batch(torch.tensor([0]))
    learned = batch["labels"][0][batch["labels"][0] >= 0].tolist()
    assert given_models.WORDS.index("w9") in learned and len(learned) == 3  # two words, [SEP]
    assert prepare(tune(base, questions)).parts.keys() == {"train", "validation"}
    headed, record = run(base, questions, tmp_path / "out", head="trained")
    assert headed.head.dim == 16 and headed.classes == ("w10", "w11", "w12")
    assert "model.embed_tokens.weight" in changed(base, tmp_path / "out")
    assert record["results"]["test"]["accuracy"] == accuracy(loaded(tmp_path / "out"), headed.parts["test"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"head": "trained"}, "writes its answers, so it takes no head 'trained'"),
        ({"answer_column": "repyl"}, r"no column 'repyl' \(the answers\).*Did you mean: reply"),
        ({"answer_column": "reply", "classes": (0,)}, "is text-to-text: it has no classes"),
        ({"answer_column": "reply", "prompt": "text"}, "the question is the prompt"),
    ],
)
def test_what_makes_no_sense_is_refused(t5, questions, more, message):
    with pytest.raises(MergescopeError, match=message):
        prepare(tune(t5, questions, **more))


def test_a_language_model_is_evaluated_on_all_held_out_texts_whatever_the_limit(tmp_path):
    base = given_models.save(given_models.make("GPT2LMHeadModel"), tmp_path / "base")
    given_models.save_rows(tmp_path / "data" / "train.csv", given_models.texts(40))
    parts = prepare(tune(base, tmp_path / "data", limit=3)).parts
    assert {name: part.samples for name, part in parts.items()} == {"train": 3, "validation": 4}


def adapted(folder):
    """A base with an adapter that brings a tokenizer of its own, of three more tokens."""
    base = given_models.save(given_models.make("BertModel"), folder / "base")
    words = ["<pad>", "<s>", "<unk>", *(f"w{number}" for number in range(39)), "</s>"]
    adapter = bases.tokenizer(folder / "adapter", words)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    layer = "base_model.model.encoder.layer.0.attention.self.query"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)}
    tensors["base_model.model.embeddings.word_embeddings.weight"] = torch.ones(len(words), 16)
    save_file(tensors, adapter / "adapter_model.safetensors")
    return f"{base}+{adapter}"


def test_what_is_trained_from_an_adapter_has_its_tokenizer_and_vocabulary(tmp_path):
    for split in ("train", "test"):
        rows = ["w38"] * 12
        given_models.save_rows(tmp_path / "data" / f"{split}.csv", rows, label=["a", "b"] * 6)
    prepared, _ = run(adapted(tmp_path), tmp_path / "data", tmp_path / "out")
    assert prepared.parts["test"].batch(torch.tensor([0]))["input_ids"].tolist() == [[1, 41, 42]]
    own, kept = (tmp_path / name / "tokenizer.json" for name in ("adapter", "out"))
    assert kept.read_text() == own.read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 43


@pytest.mark.parametrize("kind", ["BertModel", "T5ForConditionalGeneration"])
def test_that_a_test_splits_labels_are_hidden_is_noted(tmp_path, kind):
    base = given_models.save(given_models.make(kind), tmp_path / "base")
    for split, labels in {"train": [0, 1] * 10, "validation": [0, 1], "test": [-1, -1]}.items():
        given_models.save_rows(tmp_path / "data" / f"{split}.csv", ["w1"] * len(labels), label=labels)
    part = prepare(tune(base, tmp_path / "data")).parts["test"]
    assert part.samples == 2 and any("labels of the split test are hidden" in note for note in part.notes)


def test_images_are_no_questions(t5, animals):
    with pytest.raises(DataError, match="is image-classification, and this model takes texts"):
        prepare(tune(t5, animals))


def test_a_head_with_another_number_of_classes(tmp_path, vit, animals):
    save_head(tmp_path, linear_head(16, ("bird", "cat"), 0))
    with pytest.raises(MismatchError, match="2 classes in the head, 3 in task"):
        prepare(tune(vit, animals, head=str(tmp_path)))


def test_a_head_for_another_embedding(tmp_path, vit, animals):
    save_head(tmp_path, linear_head(8, bases.ANIMALS, 0))
    with pytest.raises(MismatchError, match="embeddings of length 8, the network gives 16"):
        prepare(tune(vit, animals, head=str(tmp_path)))


def test_a_head_that_is_not_there(vit, animals):
    with pytest.raises(MergescopeError, match="no head 'trainned'. Did you mean: trained"):
        prepare(tune(vit, animals, head="trainned"))


def test_a_net_takes_no_other_head(tmp_path, animals):
    with pytest.raises(MergescopeError, match="ends in a head that its tasks share"):
        prepare(tune(bases.net(tmp_path / "net"), animals, head="trained"))


def test_a_network_without_outputs_for_classes(vit, animals):
    with pytest.raises(DataError, match="ViTModel has no outputs for classes.*head='trained'"):
        prepare(tune(vit, animals, head="none"))


def test_more_classes_than_outputs(tmp_path, animals):
    small = bases.net(tmp_path / "net", lambda: ms.MLP((192, 8, 2)))
    with pytest.raises(DataError, match=r"has 2 \(dog\) in row .*the model knows the classes 0 to 1"):
        prepare(tune(small, animals))


def test_a_class_without_a_sample_to_train_on(tmp_path, vit):
    data = bases.animals(tmp_path / "data")
    for picture in (data / "train" / "cat").iterdir():
        picture.unlink()
    with pytest.raises(DataError, match=r"no sample of 1 of its 3 classes: 'cat' \(label 1\)"):
        prepare(tune(vit, data))
    assert prepare(tune(vit, data, classes=(0, 2))).classes == ("bird", "dog")
    with pytest.raises(DataError, match=r"no sample of 1 of its 3 classes: 'cat' \(label 1\)"):
        prepare(tune(vit, data, classes=(0, 1)))


def test_a_class_whose_samples_are_all_held_out(tmp_path):
    labels = [0] * 20
    labels[held_out(20)[1][0]] = 1
    for split in ("train", "test"):
        given_models.save_rows(tmp_path / f"{split}.csv", ["w1 w2"] * 20, label=labels)
    assert len(load_split(task_spec(tmp_path), "train")) == 18
    with pytest.raises(DataError, match=r"Nothing is left to train on of 1 of the 2 .*: label 1\."):
        load_split(task_spec(tmp_path), "train", classes=(0, 1))


@pytest.mark.parametrize(("classes", "said"), [((1, 9), r"\[9\]"), ((), "none")])
def test_classes_that_the_task_does_not_have(vit, animals, classes, said):
    with pytest.raises(DataError, match=rf"has the classes 0 to 2, .* made up of {said}"):
        prepare(tune(vit, animals, classes=classes))


def test_numbers_that_are_not_numbered_from_zero(tmp_path):
    bert = given_models.save(given_models.make("BertModel"), tmp_path / "bert")
    stars = [1, 2, 3] * 8
    for split in ("train", "test"):
        given_models.save_rows(tmp_path / "data" / f"{split}.csv", ["w1 w2"] * 24, label=stars)
    with pytest.raises(DataError, match=r"1 of its 4 classes: label 0.*classes=\[1, 2, 3\]"):
        prepare(tune(bert, tmp_path / "data"))
    prepared = prepare(tune(bert, tmp_path / "data", classes=(1, 2, 3)))
    assert prepared.classes == ("1", "2", "3") and prepared.parts["test"].labels.tolist() == [0, 1, 2] * 8


def test_a_class_that_only_the_test_split_has(tmp_path):
    bert = given_models.save(given_models.make("BertModel"), tmp_path / "bert")
    for split, labels in (("train", [0, 1]), ("test", [0, 2])):
        given_models.save_rows(tmp_path / "data" / f"{split}.csv", ["w1 w2"] * 20, label=labels * 10)
    with pytest.raises(DataError, match=r"has the classes \[2\], and the task is made up of \[0, 1\]"):
        prepare(tune(bert, tmp_path / "data"))


@pytest.mark.parametrize("kind", ["BertModel", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_a_tokenizer_of_another_model(tmp_path, questions, kind):
    base = given_models.save(given_models.make(kind, vocab_size=12), tmp_path / "base")
    with pytest.raises(DataError, match=r"gives the token \d+, but the model's embedding has 12 rows"):
        prepare(tune(base, questions))


def test_answers_beyond_the_vocabulary(tmp_path, questions):
    base = given_models.save(
        given_models.make("T5ForConditionalGeneration", vocab_size=20), tmp_path / "base"
    )
    with pytest.raises(DataError, match=r"gives the token 24, but the model's embedding has 20 rows"):
        prepare(tune(base, questions, answer_column="reply"))


def test_channels_that_images_do_not_have(tmp_path, animals):
    base = bases.net(
        tmp_path / "net", lambda: ms.ViT(image=8, patch=4, channels=2, width=8, depth=1, heads=1)
    )
    with pytest.raises(DataError, match=r"images of 2 channels; only grey \(1\) and RGB \(3\)"):
        prepare(tune(base, animals))


def test_a_setting_that_a_net_does_not_have(tmp_path, animals):
    base = bases.net(tmp_path / "net")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "widht": 8}))
    with pytest.raises(MergescopeError, match="no setting 'widht'. Did you mean: width"):
        prepare(tune(base, animals))


def test_pictures_for_a_text_model_and_texts_for_a_picture_model(tmp_path, vit, animals, questions):
    bert = given_models.save(given_models.make("BertModel"), tmp_path / "bert")
    with pytest.raises(DataError, match="takes texts, and no column is text"):
        prepare(tune(bert, animals))
    with pytest.raises(DataError, match="No column holds images.*use image data"):
        prepare(tune(vit, questions))


def test_a_column_and_a_template_are_one_too_many(tmp_path, questions):
    bert = given_models.save(given_models.make("BertModel"), tmp_path / "bert")
    with pytest.raises(DataError, match="a text column or a template, not both"):
        prepare(tune(bert, questions, text_column="text", template="w1 {text}"))
    prepared = prepare(tune(bert, questions, template="w1 {text}", limit=20))
    assert prepared.parts["train"].samples == 20
    ids = prepared.parts["test"].batch(torch.tensor([0]))["input_ids"]
    assert ids.tolist() == [given_models.encoded("w1 w0 w5")[0].tolist()]


def test_a_head_that_was_trained_elsewhere_stays_as_it_is(tmp_path, vit, animals):
    run(vit, animals, tmp_path / "first")
    before = load_head(tmp_path / "first")
    assert before.policy == "trained"
    prepared, record = run(vit, animals, tmp_path / "out", head=str(tmp_path / "first"), regime="attention-1")
    after = load_head(tmp_path / "out")
    assert record["head"] == after.policy == "given" and changed(vit, tmp_path / "out")
    assert torch.equal(before.weight, after.weight) and torch.equal(before.bias, after.bias)
    assert record["results"]["test"]["accuracy"] == accuracy(loaded(tmp_path / "out"), prepared.parts["test"])
