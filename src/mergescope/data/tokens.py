"""Texts to token batches: tokenizing, masks for prompts, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from mergescope.data.heads import TOKENS, Head
from mergescope.data.samples import Sample
from mergescope.errors import DataError

IGNORED = -100
"""Label of a token that is not to be predicted."""

EMPTY = "empty text"
UNPROMPTED = "empty prompt"
UNANSWERED = "empty answer"
CUT = "the prompt leaves no room for the text"
ALONE = "a single token, so that there is no next one"


@dataclass(frozen=True)
class TextProcessor:
    """Turns texts into samples, each by itself, and samples into padded batches.

    Attributes:
        tokenizer: of transformers.
        head: what the model's outputs say about labels.
        kind: ``"encoder"``, ``"decoder"`` or ``"encoder-decoder"``.
        directory: where the tokenizer came from.
        length: tokens of the longest text the tokenizer was made for, or None.
        positions: tokens that the model has positions for, or None.
        vocabulary: rows of the model's embedding, or None if not known.
        padding: token that the model takes for padding, or None if not known.
        notes: what a reader of results should know.
    """

    tokenizer: Any
    head: Head
    kind: str
    directory: Path | None = None
    length: int | None = None
    positions: int | None = None
    vocabulary: int | None = None
    padding: int | None = None
    notes: tuple[str, ...] = field(default=())

    def limit(self, max_length: int | None, segments: int = 1) -> tuple[int | None, tuple[str, ...]]:
        """At how many tokens texts are cut.

        Args:
            max_length: what the user asks for.
            segments: 2 for pairs.

        Returns:
            The number, or None for no limit, and a note if it is lower than was asked for.

        Raises:
            DataError: there is no room for text.
        """
        special = self.tokenizer.num_special_tokens_to_add(pair=segments == 2)
        if max_length is None:
            known = [size for size in (self.length, self.positions) if size is not None]
            return (min(known) if known else None), ()
        if max_length < special + segments:
            raise DataError(
                f"max_length={max_length} leaves no room for text beside {special} special token(s): give at least "
                f"{special + segments}."
            )
        if self.positions is None or max_length <= self.positions:
            return max_length, ()
        return self.positions, (
            f"texts are cut at {self.positions} tokens, not {max_length}: the model has no more positions",
        )

    def samples(
        self,
        rows: Sequence[tuple[str | None, ...]],
        prompts: Sequence[str | None] | None,
        limit: int | None,
        answers: Sequence[str | None] | None = None,
    ) -> list[Sample | str]:
        """Tokenize rows, without padding, so that a row gives the same whatever its neighbours are.

        Args:
            rows: one text a row, or two that are a pair; None where there is none.
            prompts: what comes before each text and does not count, or None.
            limit: tokens of the longest sample, special tokens included; of the longest answer, too.
            answers: what an encoder-decoder is to write, or None.

        Returns:
            One sample a row, or the reason why it is left out.

        Raises:
            DataError: a token is outside the model's vocabulary.
        """  # noqa: DOC502 (raised by what this calls)
        out: list[Sample | str] = [EMPTY] * len(rows)
        full = [place for place, row in enumerate(rows) if None not in row]
        if prompts is not None:
            for place in full:
                out[place] = UNPROMPTED
            full = [place for place in full if prompts[place] is not None]
        if not full:
            return out
        texts = [list(column) for column in zip(*(rows[place] for place in full), strict=True)]
        starts = None
        if prompts is None:
            encoded = self._encode(texts, limit)
        else:
            before = [str(prompts[place]) for place in full]
            texts[0] = [_join(*both) for both in zip(before, texts[0], strict=True)]
            encoded = self._encode(texts, limit)
            alone = self._encode([before], None)["input_ids"]
            starts = [_shared(*both) for both in zip(alone, encoded["input_ids"], strict=True)]
        types = encoded.get("token_type_ids") or [[]] * len(full)
        for index, place in enumerate(full):
            ids = encoded["input_ids"][index]
            cut = limit is not None and len(ids) >= limit and self._is_longer(texts, index, limit)
            out[place] = self._sample(ids, types[index], None if starts is None else starts[index], cut)
        return out if answers is None else self._answered(out, answers, limit)

    def _answered(
        self, samples: Sequence[Sample | str], answers: Sequence[str | None], limit: int | None
    ) -> list[Sample | str]:
        out = list(samples)
        for place, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            if isinstance(sample, str):
                continue
            if answer is None:
                out[place] = UNANSWERED
                continue
            ids = self._answer(answer, None)
            cut = limit is not None and len(ids) > limit
            ids = self._answer(answer, limit) if cut else ids
            self._require_known(ids)
            out[place] = Sample(sample.values | {"labels": torch.tensor(ids)}, sample.truncated or cut)
        return out

    def _answer(self, text: str, limit: int | None) -> list[int]:
        encoded = self.tokenizer(
            text_target=text, truncation=limit is not None, max_length=limit, return_attention_mask=False,
            verbose=False,
        )  # fmt: skip
        return list(encoded["input_ids"])

    def _require_known(self, ids: Sequence[int]) -> None:
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            raise DataError(
                f"The tokenizer in {self.directory} gives the token {max(ids)}, but the model's embedding has "
                f"{self.vocabulary} rows: it belongs to another model. Copy the right one there, or pass its directory "
                "with --tokenizer DIR."
            )

    def _sample(self, ids: list[int], types: list[int], start: int | None, cut: bool) -> Sample | str:
        self._require_known(ids)
        if not ids:
            return EMPTY
        # The first token has no token before it that could predict it.
        counted = ids[max(start or 0, 1 if self.head.target == TOKENS else 0) :]
        if start is not None and (
            not counted or (cut and set(counted) <= set(self.tokenizer.all_special_ids))
        ):
            return CUT
        if not counted:
            return ALONE
        values = {"input_ids": torch.tensor(ids)}
        if start is not None:
            values["token_mask"] = (torch.arange(len(ids)) >= start).long()
        # Zeros are what models assume anyway, but GPT-2 would add the embedding of word 0.
        if self.kind != "decoder" and any(types):
            values["token_type_ids"] = torch.tensor(types)
        return Sample(values, cut)

    def _encode(self, texts: list[list[str]], limit: int | None) -> Any:
        return self.tokenizer(
            *texts, truncation=limit is not None, max_length=limit, padding=False, return_attention_mask=False,
            verbose=False,
        )  # fmt: skip

    def _is_longer(self, texts: list[list[str]], index: int, limit: int) -> bool:
        whole = self._encode([[column[index]] for column in texts], None)["input_ids"][0]
        return len(whole) > limit

    def collate(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Pad samples to the longest of them.

        Args:
            samples: of one batch.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(batch, tokens)``; ``token_mask`` if there are
            prompts; ``labels`` with -100 where nothing is to be predicted: next tokens
            ``(batch, tokens)``, or answers ``(batch, tokens of the longest answer)``.
        """
        lengths = torch.tensor([len(sample.values["input_ids"]) for sample in samples])
        # A causal model counts positions from the left, so its padding must be on the right.
        left = self.kind != "decoder" and self.tokenizer.padding_side == "left"
        mask = torch.arange(int(lengths.max())).expand(len(samples), -1) < lengths.unsqueeze(1)
        mask = mask.flip(1) if left else mask

        def padded(name: str, filler: int) -> torch.Tensor:
            whole = torch.full(mask.shape, filler, dtype=torch.int64)
            empty = torch.zeros(0, dtype=torch.int64)
            for row, inside, sample in zip(whole, mask, samples, strict=True):
                value = sample.values.get(name, empty)
                if len(value):
                    row[inside] = value
            return whole

        batch = {"input_ids": padded("input_ids", self.filler), "attention_mask": mask.long()}
        for name, filler in (("token_type_ids", self.tokenizer.pad_token_type_id), ("token_mask", 0)):
            if any(name in sample.values for sample in samples):
                batch[name] = padded(name, filler)
        if self.head.target == TOKENS:
            counts = batch.get("token_mask", batch["attention_mask"])
            batch["labels"] = batch["input_ids"].where(counts.bool(), torch.tensor(IGNORED))
        elif all("labels" in sample.values for sample in samples):
            batch["labels"] = pad_sequence(
                [sample.values["labels"] for sample in samples], batch_first=True, padding_value=IGNORED
            )
        return batch

    @property
    def filler(self) -> int:
        """The token that pads: the model's own, by which decoders that classify find a text's last token.

        Any other that the model has would do, since it is masked.
        """
        ids = (self.padding, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        # One may have been added to the tokenizer and not to the model.
        known = float("inf") if self.vocabulary is None else self.vocabulary
        return next((number for number in ids if number is not None and number < known), 0)


def _join(prompt: str, text: str) -> str:
    return prompt + text if prompt[-1:].isspace() or text[:1].isspace() else f"{prompt} {text}"


def _shared(prompt: Sequence[int], whole: Sequence[int]) -> int:
    # Where the two part, the text begins: a token that spans the border belongs to the text, and
    # an end token of the prompt alone is not mistaken for one of the whole.
    pairs = enumerate(zip(prompt, whole, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(prompt), len(whole)))
