"""Tiny random models of many families, saved by transformers, and what the merge tests share."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VISION = {"image_size": 8, "patch_size": 4}


def build(kind, seed=0, **changes):
    """A network with random weights."""
    import transformers as tf

    torch.manual_seed(seed)
    if kind in ("llama", "tied llama"):
        config = tf.LlamaConfig(
            **SMALL | {"num_key_value_heads": 1, "tie_word_embeddings": kind != "llama"} | changes
        )
        model = tf.LlamaForCausalLM(config)
    elif kind == "qwen2":
        model = tf.Qwen2ForCausalLM(tf.Qwen2Config(**SMALL | {"num_key_value_heads": 1} | changes))
    elif kind == "gpt2":
        settings = {
            "n_embd": 16,
            "n_layer": 3,
            "n_head": 2,
            "vocab_size": 40,
            "n_positions": 32,
            "bos_token_id": 1,
        }
        model = tf.GPT2LMHeadModel(tf.GPT2Config(**settings | {"eos_token_id": 2} | changes))
    elif kind == "t5":
        settings = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
        model = tf.T5ForConditionalGeneration(
            tf.T5Config(**settings | {"decoder_start_token_id": 0} | changes)
        )
    elif kind == "bart":
        sizes = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}
        sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
        settings = {"d_model": 16, "vocab_size": 40, "max_position_embeddings": 32}
        settings |= {"decoder_start_token_id": 2, "eos_token_id": 39}  # tied networks repeat the start
        model = tf.BartForConditionalGeneration(tf.BartConfig(**settings | sides | changes))
    elif kind == "bert":
        model = tf.BertForSequenceClassification(tf.BertConfig(**SMALL | changes))
    elif kind == "vit":
        settings = {key: value for key, value in SMALL.items() if "token" not in key and "vocab" not in key}
        model = tf.ViTForImageClassification(tf.ViTConfig(**settings | VISION | changes))
    else:
        shared = {"projection_dim": 8}
        text = SMALL | shared
        vision = {key: SMALL[key] for key in list(SMALL)[:4]} | VISION | shared
        model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, **shared))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


KINDS = ("llama", "tied llama", "qwen2", "gpt2", "t5", "bert", "vit", "clip")


def save_family(folder, kind, names=("base", "a", "b"), **changes):
    """Save models of one kind; returns name to directory."""
    out = {}
    for seed, name in enumerate(names):
        out[name] = folder / name
        build(kind, seed, **changes).save_pretrained(out[name])
    return out


def tensors(folder):
    """Every tensor of a directory."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(path)
    return found


def write_model(folder, state, config=None, **files):
    """A directory with tensors, and files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def entry(model, **parameters):
    """One item of ``models``."""
    return {"model": str(model), **({"parameters": parameters} if parameters else {})}


def mean_of(*models, **rest):
    """The recipe of an average."""
    return {"merge_method": "linear", "models": [entry(model, weight=1.0) for model in models], **rest}


def loads(folder, kind):
    """The network that transformers makes of a directory; every weight must come from the files."""
    import transformers

    name = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], (
        kind,
        info,
    )
    if hasattr(model, "generate") and kind not in ("bert", "vit", "clip"):
        out = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False)
        assert out.shape[1] >= 3
    return model.eval()
