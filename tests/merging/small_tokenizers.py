"""Small real tokenizers, and models with a row for each of their tokens."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import mergescope as ms

TEXT = {
    "a": ["the quick brown fox jumps over the lazy dog", "merging models averages their weights"] * 3,
    "b": ["a slow green turtle walks under the bridge", "merging turtles averages their shells"] * 3,
}
SPECIAL = ["<unk>", "<s>", "</s>"]
EMBED, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"


def bpe(text, size=70, special=SPECIAL):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    return tokenizer


def unigram(text, size=50):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def wrapped(tokenizer, added=(), **options):
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )
    fast.add_tokens(list(added))
    return fast


def word_piece(text, size=60):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special)
    tokenizer.train_from_iterator(text, trainer)
    first, last = (("[CLS]", 2), ("[SEP]", 3))
    tokenizer.post_processor = processors.BertProcessing(last, first)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def permuted(tokenizer, seed=0):
    """The same tokens with other ids, beyond the special ones."""
    content = json.loads(tokenizer.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    order = torch.randperm(len(tokens) - 3, generator=torch.Generator().manual_seed(seed)).tolist()
    moved = tokens[:3] + [tokens[3:][i] for i in order]
    content["model"]["vocab"] = {token: number for number, token in enumerate(moved)}
    return Tokenizer.from_str(json.dumps(content))


def model(folder, name, tokenizer, rows=None, width=3, head=True, seed=0, config=None):
    """A checkpoint whose rows are random; rows beyond the tokenizer are padding."""
    path = folder / name
    tokenizer.save_pretrained(path)
    rows = rows or len(tokenizer)
    generator = torch.Generator().manual_seed(hash_of(name) + seed)
    state = {EMBED: torch.randn(rows, width, generator=generator), "norm.weight": torch.ones(width)}
    if head:
        state |= {
            HEAD: torch.randn(rows, width, generator=generator),
            BIAS: torch.randn(rows, generator=generator),
        }
    save_file(state, path / "model.safetensors")
    settings = {"vocab_size": rows, "hidden_size": width, "tie_word_embeddings": not head} | (config or {})
    (path / "config.json").write_text(json.dumps(settings))
    return ms.Checkpoint(path)


def hash_of(name):
    return sum(map(ord, name))


def three_models(folder):
    """Three models that share some tokens, under other ids."""
    a = bpe(TEXT["a"])
    return {
        "a": model(folder, "a", wrapped(a), rows=80),
        "b": model(folder, "b", wrapped(permuted(a), added=["<extra>", "<b only>"])),
        "c": model(folder, "c", wrapped(bpe(TEXT["b"]), added=["<extra>"]), rows=96),
    }
