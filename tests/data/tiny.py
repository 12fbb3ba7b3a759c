"""Tiny tokenizers, and directories of models that have one."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = [
    *("the", "a", "good", "bad", "film", "was", "is", "and", "it", "boring", "fun", ":", "so"),
    *("premise", "hypothesis", "question", "answer", "yes", "no"),
]
ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]


def word_tokenizer():
    """One token a word, with [CLS] and [SEP], as BERT has them."""
    ids = {word: number for number, word in enumerate(ENTRIES)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return tokenizer


def byte_tokenizer():
    """Byte-level BPE without a padding token, as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return tokenizer


def save_tokenizer(folder, kind="words", **options):
    from transformers import PreTrainedTokenizerFast

    if kind == "words":
        named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer = word_tokenizer()
    else:
        named, tokenizer = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}, byte_tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, **options).save_pretrained(folder)
    return folder


def save_config(folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
