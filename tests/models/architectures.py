"""Tiny random networks of the architectures people use, and which classes their blocks are."""

import torch
import transformers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {**SIZES, "vocab_size": 50, "max_position_embeddings": 32}
MARKS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PIXELS = {**SIZES, "image_size": 16, "patch_size": 8}
SMALL = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
STAGES = {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 2, 1, 3]}
WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
}
TOWERS = {"text_config": {**WORDS, **MARKS}, "vision_config": PIXELS}
MIX = {**WORDS, "num_experts_per_tok": 2, "num_key_value_heads": 2}
GROUPED = {**WORDS, "num_key_value_heads": 2, "head_dim": 8}
DISTIL = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
BLOOM = {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2}
T5 = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
BART = {
    "vocab_size": 50, "d_model": 16, "max_position_embeddings": 32,
    "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
}  # fmt: skip


def text():
    return {"input_ids": torch.arange(12).view(2, 6) + 3, "attention_mask": torch.ones(2, 6).long()}


def pixels(side=16):
    return {"pixel_values": torch.randn(2, 3, side, side)}


def images():
    return pixels(32)


def both():
    return text() | pixels()


# Model class: settings of its configuration, inputs, the classes of its blocks and how many there are.
KNOWN = {
    "BertModel": (WORDS, text, {"BertLayer": 2}),
    "BertForSequenceClassification": (WORDS, text, {"BertLayer": 2}),
    "RobertaForSequenceClassification": (WORDS, text, {"RobertaLayer": 2}),
    "DistilBertModel": (DISTIL, text, {"TransformerBlock": 2}),
    "DistilBertForSequenceClassification": (DISTIL, text, {"TransformerBlock": 2}),
    "MPNetForSequenceClassification": (WORDS, text, {"MPNetLayer": 2}),
    "DebertaModel": (WORDS, text, {"DebertaLayer": 2}),
    "DebertaV2ForSequenceClassification": (WORDS, text, {"DebertaV2Layer": 2}),
    "ElectraForSequenceClassification": ({**WORDS, "embedding_size": 8}, text, {"ElectraLayer": 2}),
    "ModernBertModel": ({**WORDS, **MARKS}, text, {"ModernBertEncoderLayer": 2}),
    "ModernBertForMaskedLM": ({**WORDS, **MARKS}, text, {"ModernBertEncoderLayer": 2}),
    "LlamaModel": (WORDS, text, {"LlamaDecoderLayer": 2}),
    "LlamaForCausalLM": (WORDS, text, {"LlamaDecoderLayer": 2}),
    "LlamaForSequenceClassification": ({**WORDS, "pad_token_id": 0}, text, {"LlamaDecoderLayer": 2}),
    "Qwen2ForCausalLM": (GROUPED, text, {"Qwen2DecoderLayer": 2}),
    "Qwen3ForCausalLM": (GROUPED, text, {"Qwen3DecoderLayer": 2}),
    "MistralForCausalLM": (GROUPED, text, {"MistralDecoderLayer": 2}),
    "GemmaForCausalLM": (GROUPED, text, {"GemmaDecoderLayer": 2}),
    "PhiForCausalLM": (WORDS, text, {"PhiDecoderLayer": 2}),
    "Phi3ForCausalLM": ({**WORDS, **MARKS}, text, {"Phi3DecoderLayer": 2}),
    "MixtralForCausalLM": ({**MIX, "num_local_experts": 3}, text, {"MixtralDecoderLayer": 2}),
    "Qwen2MoeForCausalLM": (
        {**MIX, "num_experts": 3, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
        text,
        {"Qwen2MoeDecoderLayer": 2},
    ),
    "OPTModel": ({**WORDS, "ffn_dim": 32, "word_embed_proj_dim": 16}, text, {"OPTDecoderLayer": 2}),
    "OPTForCausalLM": ({**WORDS, "ffn_dim": 32, "word_embed_proj_dim": 16}, text, {"OPTDecoderLayer": 2}),
    "GPT2Model": (SMALL, text, {"GPT2Block": 2}),
    "GPT2LMHeadModel": (SMALL, text, {"GPT2Block": 2}),
    "GPTNeoXModel": (WORDS, text, {"GPTNeoXLayer": 2}),
    "GPTNeoXForCausalLM": (WORDS, text, {"GPTNeoXLayer": 2}),
    "BloomModel": (BLOOM, text, {"BloomBlock": 2}),
    "BloomForCausalLM": (BLOOM, text, {"BloomBlock": 2}),
    "FalconForCausalLM": (WORDS, text, {"FalconDecoderLayer": 2}),
    "GPTJForCausalLM": ({**SMALL, "rotary_dim": 4}, text, {"GPTJBlock": 2}),
    "T5ForConditionalGeneration": ({**T5, "decoder_start_token_id": 0}, text, {"T5Block": 5}),
    "T5EncoderModel": (T5, text, {"T5Block": 3}),
    "BartModel": (BART, text, {"BartEncoderLayer": 3, "BartDecoderLayer": 2}),
    "BartForConditionalGeneration": (BART, text, {"BartEncoderLayer": 3, "BartDecoderLayer": 2}),
    "CLIPModel": (TOWERS, both, {"CLIPEncoderLayer": 4}),
    "CLIPVisionModel": (PIXELS, pixels, {"CLIPEncoderLayer": 2}),
    "CLIPVisionModelWithProjection": (PIXELS, pixels, {"CLIPEncoderLayer": 2}),
    "CLIPTextModel": ({**WORDS, **MARKS}, text, {"CLIPEncoderLayer": 2}),
    "CLIPForImageClassification": (TOWERS, pixels, {"CLIPEncoderLayer": 2}),
    "SiglipModel": (TOWERS, both, {"SiglipEncoderLayer": 4}),
    "SiglipVisionModel": (PIXELS, pixels, {"SiglipEncoderLayer": 2}),
    "ViTModel": (PIXELS, pixels, {"ViTLayer": 2}),
    "ViTForImageClassification": (PIXELS, pixels, {"ViTLayer": 2}),
    "DeiTForImageClassification": (PIXELS, pixels, {"DeiTLayer": 2}),
    "Dinov2ForImageClassification": (PIXELS, pixels, {"Dinov2Layer": 2}),
    "DINOv3ViTModel": (PIXELS, pixels, {"DINOv3ViTLayer": 2}),
    "SwinModel": (WINDOWS, images, {"SwinLayer": 4}),
    "SwinForImageClassification": (WINDOWS, images, {"SwinLayer": 4}),
    "Swinv2ForImageClassification": (WINDOWS, images, {"Swinv2Layer": 4}),
    "ConvNextForImageClassification": (STAGES, images, {"ConvNextLayer": 7}),
    "ResNetModel": ({**STAGES, "embedding_size": 4, "layer_type": "basic"}, images, {"ResNetBasicLayer": 7}),
    "ResNetForImageClassification": ({**STAGES, "embedding_size": 4}, images, {"ResNetBottleNeckLayer": 7}),
    "RegNetForImageClassification": (
        {**STAGES, "embedding_size": 4, "groups_width": 2},
        images,
        {"RegNetYLayer": 7},
    ),
    "EfficientNetForImageClassification": (
        {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
        images,
        {"EfficientNetBlock": 7},
    ),
    "MobileNetV2Model": (
        {"image_size": 32, "depth_multiplier": 0.25},
        images,
        {"MobileNetV2InvertedResidual": 16},
    ),
}


def build(name):
    """A tiny network of a class in `KNOWN`."""
    kind = getattr(transformers, name)
    return kind(kind.config_class(**KNOWN[name][0])).eval()
