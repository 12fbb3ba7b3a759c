"""Tiny random transformers of the families that people use, and batches for them."""

import pytest
import torch

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCABULARY, PAD = 50, 0
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "max_position_embeddings": 32, **SIZES}
PIXELS = {"image_size": 8, "patch_size": 4, **SIZES}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


def _llama(**more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=1, **TEXT, **more))


def _qwen():
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(num_key_value_heads=1, **TEXT))


def _mistral():
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(num_key_value_heads=1, sliding_window=4, **TEXT)
    )


def _gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def _bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3, **TEXT))


def _vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(num_labels=3, num_channels=1, **PIXELS)
    )


def _clip():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(num_channels=1, **PIXELS))


def _t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(decoder_start_token_id=PAD, pad_token_id=PAD, **T5)
    )


MAKERS = {
    "llama": _llama,
    "tied llama": lambda: _llama(tie_word_embeddings=True),
    "qwen2": _qwen,
    "mistral": _mistral,
    "gpt2": _gpt2,
    "bert": _bert,
    "vit": _vit,
    "clip": _clip,
    "t5": _t5,
}
DECODERS = ("llama", "tied llama", "qwen2", "mistral", "gpt2")
IMAGES = ("vit", "clip")


def tiny(kind, seed=0):
    """A network of a kind. Its weights are large enough that layers are far from linear."""
    torch.manual_seed(seed)
    net = MAKERS[kind]().eval()
    with torch.no_grad():
        for entry in net.parameters():
            if entry.ndim > 1:
                entry.mul_(5)
    return net


def texts(lengths=(6, 3, 5, 1, 4), seed=3):
    """Token ids of texts; none is the padding's."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded(some, side="right", longer=0):
    """A batch of texts padded to the longest of them, or longer."""
    width = max(map(len, some)) + longer
    ids, mask = torch.full((len(some), width), PAD), torch.zeros(len(some), width).long()
    for row, text in enumerate(some):
        place = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def batches_for(kind, size=2, labels=True):
    """Batches that a kind understands, with labels for classifiers."""
    if kind in IMAGES:
        x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        batches = [{"pixel_values": part} for part in x.split(size)]
    else:
        some = texts()
        batches = [padded(some[i : i + size]) for i in range(0, len(some), size)]
    if labels and kind in ("bert", "vit"):
        for batch in batches:
            batch["labels"] = torch.arange(len(next(iter(batch.values())))) % 3
    return batches
