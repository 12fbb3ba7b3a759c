"""Tiny families as users have them: a base, fine-tunes with heads of their own, a tokenizer, data in files."""

import csv

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(36))]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 32, "pad_token_id": 0}
MARKS = {"bos_token_id": 2, "eos_token_id": 3}
PIXELS = {**SIZES, "image_size": 8, "patch_size": 4}
KINDS = {
    "Bert": (transformers.BertConfig, TEXT),
    "Roberta": (transformers.RobertaConfig, {**TEXT, "max_position_embeddings": 34}),
    "Llama": (transformers.LlamaConfig, {**TEXT, **MARKS, "num_key_value_heads": 1}),
    "GPT2": (
        transformers.GPT2Config,
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": len(WORDS), "n_positions": 32, **MARKS},
    ),
    "T5": (
        transformers.T5Config,
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
        | {"decoder_start_token_id": 0},
    ),
    "ViT": (transformers.ViTConfig, PIXELS),
    "CLIPVision": (transformers.CLIPVisionConfig, PIXELS),
}


def make(name, seed=0, start=None, change=0.1, **settings):
    """A network of a class of transformers with random weights, or near those of another one."""
    kind = max((kind for kind in KINDS if name.startswith(kind)), key=len)
    config, sizes = KINDS[kind]
    torch.manual_seed(seed)
    network = getattr(transformers, name)(config(**sizes | settings)).eval()
    with torch.no_grad():
        for entry in network.parameters():  # norms and biases too, and far from linear
            entry.add_(torch.randn_like(entry) * 0.3)
        if start is not None:
            own, other = network.state_dict(), start.state_dict()
            prefix = f"{network.base_model_prefix}."
            for key, value in own.items():
                found = next(
                    (other[k] for k in (key, prefix + key, key.removeprefix(prefix)) if k in other), None
                )
                if found is not None and found.shape == value.shape and value.is_floating_point():
                    value.copy_(found + change * torch.randn_like(value))
    return network


def save(network, folder, tokenizer=True, **options):
    """Save it as its maker would, with a tokenizer."""
    network.save_pretrained(folder, **options)
    if tokenizer:
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder, marks=True):
    """One token a word, with [CLS] and [SEP] around a text."""
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if marks:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    return folder


def texts(count=10, seed=5, longest=7):
    """Random texts of one to seven words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [
        " ".join(f"w{n}" for n in torch.randint(36, (length,), generator=generator).tolist())
        for length in lengths
    ]


def encoded(text):
    """Its token ids, one text at a time."""
    ids = [2, *(WORDS.index(word) for word in text.split()), 3]
    return torch.tensor([ids])


def save_rows(path, rows, **columns):
    """A CSV file of texts, and of other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *columns])
        writer.writerows(zip(rows, *columns.values(), strict=True))
    return path


def labels(count, classes, seed=7):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def family(folder, names=("base", "a", "b"), kind="BertForSequenceClassification", change=0.1, **settings):
    """A base and fine-tunes of one class: names to directories."""
    base = make(kind, **settings)
    return {
        name: save(base if not seed else make(kind, seed, base, change, **settings), folder / name)
        for seed, name in enumerate(names)
    }


def mixed(one, two, alpha):
    """``alpha * one + (1 - alpha) * two`` of two state dicts, by hand, in float64."""
    return {
        key: (alpha * one[key].double() + (1 - alpha) * two[key].double()).to(one[key].dtype)
        if one[key].is_floating_point() else one[key]
        for key in one
    }  # fmt: skip


def images(folder):
    """Four random images of cats and four of dogs."""
    for number, kind in enumerate(("cat", "dog")):
        (folder / "test" / kind).mkdir(parents=True)
        for place in range(4):
            pixels = np.random.default_rng(10 * number + place).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "test" / kind / f"{place}.png")
    return folder
