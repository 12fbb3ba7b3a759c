"""Miniature copies of the papers' models and data, in the layout that the hub's copies have under a root."""

from dataclasses import replace

import datasets
import given_models
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from test_published import make_base, make_tuned, vocabulary

from mergescope.data.prompts import known_classes
from mergescope.data.registry import TASKS
from mergescope.models.loading import key_map, load_weights
from mergescope.studies.published import open_family
from mergescope.studies.published_clip import fixed_entries
from mergescope.weights import Point

BACKBONES = ("base-patch32", "base-patch16", "large-patch14")
ROWS = len(given_models.WORDS)
"""Of the language models' vocabularies."""


def hub(root):
    """Two of CLIP's and of T5's tasks, Llama with three fine-tunes, and the data sets."""
    for name, size in (("mnist", (28, 28)), ("svhn", (32, 32, 3))):
        counts = dict.fromkeys(known_classes()[name], 10)
        pictures(root / name, counts, size)
    names = known_classes()["cifar100"]
    pictures(root / "cifar100", {name: 8 if n < 25 else 2 for n, name in enumerate(names)}, (32, 32, 3),
             ("img", "fine_label"))  # fmt: skip
    for backbone in BACKBONES:
        clip(root / "models", f"clip-vit-{backbone}")
    for task, split, tuned in (
        ("mnist", "train", True),
        ("svhn", "train", True),
        ("cifar100", "test", False),
    ):
        add_answers(root, task, split, tuned)
    t5(root / "models")
    llama(root / "models")
    answers(root)
    texts = {"text": ["", *given_models.texts(12, longest=9)]}
    table(texts, root / "wikitext" / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet")
    table(texts, root / "wikitext" / "wikitext-103-raw-v1" / "test-00000-of-00001.parquet")
    return root


def table(rows, path, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features).to_parquet(path)


def pictures(folder, counts, size, columns=("image", "label")):
    """Coarse noise, which is still there in a smaller picture."""
    image, label = columns
    kinds = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(counts))})
    for split, share in (("train", 1.0), ("test", 0.2)):
        noise = np.random.default_rng(len(split))
        ids = [number for number, count in enumerate(counts.values()) for _ in range(int(count * share))]
        blocks = noise.integers(0, 255, (len(ids), 4, 4, *size[2:]), dtype=np.uint8)
        pixels = blocks.repeat(size[0] // 4, axis=1).repeat(size[1] // 4, axis=2)
        rows = {image: [Image.fromarray(each) for each in pixels], label: ids}
        table(rows, folder / f"{split}.parquet", kinds)


def clip(folder, name):
    """Images look different to it, and a few steps at CLIP's rates change what it says: features are small."""
    base = make_base(folder / name, words=vocabulary(("mnist", "svhn", "cifar100")))
    with torch.no_grad():
        for entry_name, entry in base.vision_model.named_parameters():
            if entry.ndim > 1:
                entry.mul_(0.005 if entry_name.endswith(("out_proj.weight", "fc2.weight")) else 5)
        base.vision_model.pre_layrnorm.weight.fill_(1e-3)
    base.save_pretrained(folder / name)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    ).save_pretrained(folder / name)
    for seed, task in enumerate(("mnist", "svhn"), 1):
        make_tuned(folder / f"{name}_{task}", base, seed, "vision_model.")


def add_answers(root, task, split, tuned):
    """Images once more, with what the base says of them: accuracies are not 0, and tell whatever training changes.

    And with what the task's own fine-tune says.
    """
    family = open_family("clip8", directory=root / "models")
    network = replace(family, tasks={task: TASKS[task]}).network(task)
    path = root / task / f"{split}.parquet"
    found = datasets.Dataset.from_parquet(str(path), cache_dir=str(root / "cache"))
    image, label = found.column_names
    processor = transformers.CLIPImageProcessor.from_pretrained(family.base)
    with torch.no_grad():
        pixels = processor(list(found[image]), return_tensors="pt")["pixel_values"]
        said = [network(pixel_values=pixels).logits.argmax(1).tolist()]
        if tuned:
            point = Point.of(family.towers()[1][task])
            load_weights(network, point, key_map(network, point, fixed_entries(network)))
            said.append(network(pixel_values=pixels).logits.argmax(1).tolist())
    labels = [*found[label], *(answer for answers in said for answer in answers)]
    table({image: (1 + len(said)) * list(found[image]), label: labels}, path, found.features)


def t5(folder):
    """One fine-tune as old versions saved it: pickled, tied tensors more than once, a table that nobody reads."""
    base = given_models.make("T5ForConditionalGeneration")
    given_models.save(base, folder / "t5-base")
    for seed, name in enumerate(("imdb-sentiment", "squadv2"), 1):
        tuned = given_models.make("T5ForConditionalGeneration", seed, base, 0.05)
        given_models.save(tuned, folder / f"t5-base-finetuned-{name}", tokenizer=False)
    place = folder / "t5-base-finetuned-squadv2"
    state = load_file(place / "model.safetensors")
    rows = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    state |= {name: state["shared.weight"].clone() for name in rows}
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 2)
    torch.save(state, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()


def llama(folder):
    """One fine-tune in half precision, one with a token more than the base."""
    base = given_models.make("LlamaForCausalLM")
    given_models.save(base, folder / "Llama-2-13b-hf")
    for seed, name in enumerate(("WizardLM-13B-V1.2", "WizardMath-13B-V1.0", "llama-2-13b-code-alpaca"), 1):
        tuned = given_models.make("LlamaForCausalLM", seed, base, 0.05)
        if seed == 1:
            tuned = tuned.half()
        if seed == 2:
            tuned.resize_token_embeddings(ROWS + 1, mean_resizing=False)
        given_models.save(tuned, folder / name)
        if seed == 2:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
            tokenizer.add_tokens(["[NEW]"])
            tokenizer.save_pretrained(folder / name)


def answers(root):
    """Reviews and questions in the columns of T5's tasks."""
    lines = given_models.texts(20)
    kinds = datasets.Features({
        "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"]),
    })  # fmt: skip
    asked = {"question": lines, "context": given_models.texts(20, 9), "answers": [{"text": ["w1"]}] * 20}
    for split in ("train", "test"):
        table({"text": lines, "label": [n % 2 for n in range(20)]}, root / "imdb" / f"{split}.parquet", kinds)
        table(asked, root / "squad" / f"{'validation' if split == 'test' else split}.parquet")
