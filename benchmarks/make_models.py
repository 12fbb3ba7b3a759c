"""Make a base and fine-tunes of a Llama shape, for benchmarks: random weights, real layout and sizes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {
    # OpenLLaMA 3B's shape: 3.4 B parameters, 6.9 GB in bfloat16.
    "3.4B": {"hidden": 3200, "inner": 8640, "layers": 26, "heads": 32, "kv_heads": 32, "vocab": 32000},
    # TinyLlama's shape: 1.1 B parameters, 2.2 GB in bfloat16.
    "1.1B": {"hidden": 2048, "inner": 5632, "layers": 22, "heads": 32, "kv_heads": 4, "vocab": 32000},
    "small": {"hidden": 256, "inner": 704, "layers": 4, "heads": 8, "kv_heads": 2, "vocab": 2000},
}


def make_models(root: Path, shape: str, tuned: int = 4) -> list[Path]:
    """Write ``base`` and ``tuned-1`` to ``tuned-N``, unless they are there.

    Fine-tunes are the base plus noise of a tenth of its spread.
    """
    size = SHAPES[shape]
    paths = [root / "base", *(root / f"tuned-{number}" for number in range(1, tuned + 1))]
    for number, path in enumerate(paths):
        if (path / "config.json").is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for index, (name, dims) in enumerate(_tensors(size)):
            generator = torch.Generator().manual_seed(index)
            value = torch.empty(dims).normal_(0, 0.02, generator=generator)
            if name.endswith("norm.weight"):
                value += 1
            if number:  # a fine-tune
                noise = torch.Generator().manual_seed(1000 * number + index)
                value += torch.empty(dims).normal_(0, 0.002, generator=noise)
            tensors[name] = value.bfloat16()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": size["hidden"],
            "intermediate_size": size["inner"], "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"], "num_key_value_heads": size["kv_heads"],
            "vocab_size": size["vocab"], "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
        }  # fmt: skip
        (path / "config.json").write_text(json.dumps(config, indent=2))
    return paths


def _tensors(size: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    hidden, inner = size["hidden"], size["inner"]
    kv = hidden // size["heads"] * size["kv_heads"]
    out: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (size["vocab"], hidden))]
    for layer in range(size["layers"]):
        block = f"model.layers.{layer}."
        out += [
            (block + "self_attn.q_proj.weight", (hidden, hidden)),
            (block + "self_attn.k_proj.weight", (kv, hidden)),
            (block + "self_attn.v_proj.weight", (kv, hidden)),
            (block + "self_attn.o_proj.weight", (hidden, hidden)),
            (block + "mlp.gate_proj.weight", (inner, hidden)),
            (block + "mlp.up_proj.weight", (inner, hidden)),
            (block + "mlp.down_proj.weight", (hidden, inner)),
            (block + "input_layernorm.weight", (hidden,)),
            (block + "post_attention_layernorm.weight", (hidden,)),
        ]
    return [*out, ("model.norm.weight", (hidden,)), ("lm_head.weight", (size["vocab"], hidden))]
