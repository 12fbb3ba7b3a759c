"""Tiny pretrained models as directories that fine-tuning starts from, and tasks for them."""

import json

import given_models
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import mergescope as ms
from mergescope.models import net_config

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ANIMALS = ("bird", "cat", "dog")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {**SIZES, "image_size": 8, "patch_size": 4}
PROMPT = ["a", "photo", "picture", "of", "the", "this", "is", ".", "bird", "cat", "dog", "big", "small"]
WORDS = ["<pad>", "<s>", "<unk>", *PROMPT, "</s>"]


def _saved(network, folder, seed=0):
    network.eval().save_pretrained(folder)
    return folder


def preprocessor(folder, channels=3, size=8):
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * channels,
        "image_std": [0.25] * channels,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def tokenizer(folder, words=WORDS):
    """One token a word, ``<s>`` before and ``</s>`` behind."""
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", len(words) - 1)]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(folder)
    return folder


def clip(folder, seed=0):
    torch.manual_seed(seed)
    ids = {"eos_token_id": len(WORDS) - 1, "bos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={**SIZES, **ids, "vocab_size": len(WORDS), "max_position_embeddings": 16},
        vision_config=PIXELS,
        projection_dim=12,
    )
    return preprocessor(tokenizer(_saved(transformers.CLIPModel(config), folder)))


def clip_vision(folder, seed=0):
    torch.manual_seed(seed)
    config = transformers.CLIPVisionConfig(**PIXELS, projection_dim=12)
    return preprocessor(_saved(transformers.CLIPVisionModelWithProjection(config), folder))


def vit(folder, seed=0, name="ViTModel", **settings):
    torch.manual_seed(seed)
    return preprocessor(
        _saved(getattr(transformers, name)(transformers.ViTConfig(**PIXELS | settings)), folder)
    )


def hf_resnet(folder, seed=0):
    torch.manual_seed(seed)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=7
    )
    return preprocessor(_saved(transformers.ResNetForImageClassification(config), folder), size=16)


def t5(folder, seed=0):
    return given_models.save(given_models.make("T5ForConditionalGeneration", seed), folder)


def small_vit():
    return ms.ViT(image=8, patch=4, channels=3, width=16, depth=2, heads=2, classes=5)


def net(folder, make=small_vit, seed=0):
    torch.manual_seed(seed)
    network = make()
    ms.save(ms.Checkpoint(network.state_dict(), name="net"), folder, config=net_config(network))
    return folder


def animals(folder, names=ANIMALS, rows=20, size=8):
    """An image folder in which each class has a bright band at a height of its own."""
    for split, count, seed in (("train", rows, 0), ("test", 4, 1)):
        noise = np.random.default_rng(seed)
        for number, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                pixels = noise.integers(0, 120, (size, size, 3))
                pixels[number * size // len(names) : (number + 1) * size // len(names)] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{place}.png")
    return folder


def questions(folder, rows=60):
    """Texts, a class, and an answer that follows from the text's first word."""
    texts = [f"w{n % 3} w{n % 7 + 5}" for n in range(rows)]
    for split, some in (("train", texts), ("test", texts[:9])):
        first = [int(text[1]) for text in some]
        given_models.save_rows(
            folder / f"{split}.csv",
            some,
            label=[f"w{10 + n}" for n in first],
            reply=[f"w{20 + n} w9" for n in first],
        )
    return folder
