"""Rows of a table as the batches of a trace: prepared once, in order, the same on every pass."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergescope.data.columns import choose_image_column, choose_label_column
from mergescope.data.heads import CLASSES
from mergescope.data.labels import Labels, read_labels
from mergescope.data.pictures import ImageProcessor
from mergescope.data.samples import Sample
from mergescope.data.splits import SYNONYMS
from mergescope.data.templates import Template, Texts, choose_texts
from mergescope.data.tokens import TextProcessor
from mergescope.errors import DataError
from mergescope.progress import progress_bar

if TYPE_CHECKING:
    import datasets

BUDGET = 2 * 2**30
"""Bytes of encoded batches that are kept in memory."""

MISSING = "no image"

Reader = Callable[[Sequence[int]], Sequence[Sample | str]]
Collate = Callable[[Sequence[Sample]], dict[str, torch.Tensor]]


class Batches:
    """Mapping batches for a trace, which can be passed over again and again.

    Batches are kept in memory up to a budget; those beyond it are prepared again on each pass, and
    must come out the same.

    Args:
        read: table rows to samples, or to the reason why a row is left out.
        collate: samples to a batch.
        rows: how many rows the table has.
        size: samples a batch.
        labels: of all rows, or None.
        notes: what a reader of results should know.
        budget: bytes to keep.
        progress: show a bar on a terminal.

    Attributes:
        rows: ``(samples,)``, the table's rows that became samples.
        labels: ``(samples,)`` class numbers, or None if they are not known.
        class_names: name of each class, if known.
        skipped: reason to number of rows that were left out.
        truncated: how many texts were cut off.
        notes: sentences for a reader of results, these counts among them.
        fingerprint: SHA-256 (hex) over the samples and labels, whatever the batch size.

    Raises:
        DataError: no row is left.

    Example:
        >>> data = Batches(lambda rows: [Sample({"x": torch.full((2,), float(row))}) for row in rows],
        ...                lambda samples: {"x": torch.stack([sample.values["x"] for sample in samples])}, 5, 2)
        >>> len(data), data.samples, [len(batch["x"]) for batch in data]
        (3, 5, [2, 2, 1])
    """

    def __init__(
        self,
        read: Reader,
        collate: Collate,
        rows: int,
        size: int,
        *,
        labels: Labels | None = None,
        notes: Sequence[str] = (),
        budget: int = BUDGET,
        progress: bool = False,
    ) -> None:
        if size < 1:
            raise DataError(f"A batch must have at least 1 sample, got a batch size of {size}.")
        self.size = size
        self.class_names = None if labels is None else labels.names
        self.skipped: Counter[str] = Counter()
        self.truncated = 0
        self._read, self._collate, self._ids = read, collate, None if labels is None else labels.ids
        self._kept: list[dict[str, torch.Tensor]] = []
        self._digests: list[bytes] = []
        self._free = budget
        self._samples: dict[int, Sample] = {}  # for batches in any order
        whole, chosen = hashlib.sha256(), []
        waiting: list[tuple[int, Sample]] = []
        with progress_bar("preparing data", rows, progress) as advance:
            for start in range(0, rows, size):
                some = range(start, min(start + size, rows))
                for row, sample in zip(some, read(some), strict=True):
                    if isinstance(sample, str):
                        self.skipped[sample] += 1
                        continue
                    self.truncated += sample.truncated
                    chosen.append(row)
                    waiting.append((row, sample))
                while len(waiting) >= size or (waiting and some.stop == rows):
                    self._add(waiting[:size], whole)
                    waiting = waiting[size:]
                advance(len(some))
        if not chosen:
            raise DataError(
                f"Not one of {rows} rows is left to measure on ({self._left_out()}). Choose other columns or data."
            )
        self.rows = np.array(chosen)
        self.labels = None if self._ids is None else self._ids[torch.from_numpy(self.rows)]
        self.fingerprint = whole.hexdigest()
        said = [] if labels is None else list(labels.notes)
        if self.skipped:
            said.append(f"left out {sum(self.skipped.values())} of {rows} rows: {self._left_out()}")
        if self.truncated:
            said.append(f"cut off {self.truncated} of {self.samples} texts")
        self.notes = (*notes, *said)

    def _left_out(self) -> str:
        return ", ".join(f"{reason} ({count})" for reason, count in sorted(self.skipped.items()))

    def _add(self, members: Sequence[tuple[int, Sample]], whole: Any) -> None:
        rows, samples = [row for row, _ in members], [sample for _, sample in members]
        batch = self._batch(rows, samples)
        digests = b"".join(self._digest(row, sample) for row, sample in members)
        whole.update(digests)
        self._digests.append(hashlib.sha256(digests).digest())
        needed = sum(value.nbytes for value in batch.values())
        if len(self._kept) == len(self._digests) - 1 and needed <= self._free:
            self._free -= needed
            self._kept.append(batch)

    def _batch(self, rows: Sequence[int], samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        batch = self._collate(samples)
        return batch if self._ids is None else batch | {"labels": self._ids[torch.tensor(rows)]}

    def batch(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """Some samples as one batch, in any order: what training takes.

        Args:
            places: ``(batch,)`` positions among the samples.

        Returns:
            A mapping of model arguments, with ``labels`` if they are known.
        """
        rows = self.rows[places.numpy()].tolist()
        absent = sorted(set(rows) - self._samples.keys())
        found = {row: self._samples[row] for row in rows if row in self._samples}
        for row, sample in zip(absent, self._read(absent) if absent else (), strict=True):
            if isinstance(sample, Sample):
                found[row] = sample
                needed = sum(value.nbytes for value in sample.values.values())
                if needed <= self._free:
                    self._free -= needed
                    self._samples[row] = sample
        return self._batch(rows, [found[row] for row in rows])

    def _digest(self, row: int, sample: Sample) -> bytes:
        # One row at a time and without padding, so that neither depends on the batch size.
        found = hashlib.sha256(b"" if self._ids is None else str(int(self._ids[row])).encode())
        for name, value in sorted(sample.values.items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.contiguous().numpy().data)
        return found.digest()

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for number, digest in enumerate(self._digests):
            if number < len(self._kept):
                yield dict(self._kept[number])
                continue
            rows = self.rows[number * self.size : (number + 1) * self.size].tolist()
            samples = [sample for sample in self._read(rows) if isinstance(sample, Sample)]
            again = b"".join(self._digest(*both) for both in zip(rows, samples, strict=False))
            if hashlib.sha256(again).digest() != digest:
                raise DataError(
                    f"The rows {rows[0]} to {rows[-1]} of the data differ from the pass before: their files were "
                    "changed while they were measured. Measure again."
                )
            yield self._batch(rows, samples)


def encode(
    table: datasets.Dataset,
    processor: TextProcessor | ImageProcessor,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    text_column: str | Sequence[str] | None = None,
    image_column: str | None = None,
    template: str | None = None,
    prompt: str | None = None,
    label_column: str | None = None,
    answer_column: str | None = None,
    classes: int | None = None,
    label2id: Mapping[str, int] | Mapping[int, int] | None = None,
    budget: int = BUDGET,
    progress: bool = True,
) -> Batches:
    """Prepare a table for the models that a processor belongs to.

    Batches have ``labels`` where the model's outputs can be compared with them: class numbers for
    classifiers, next tokens for causal language models, the tokens of the answers for encoder-decoders
    where ``answer_column`` says which they are, else none.

    Args:
        table: the rows, for example of [`load_table`][mergescope.data.load_table].
        processor: of [`load_processor`][mergescope.data.load_processor].
        batch_size: samples a batch.
        max_length: texts are cut at so many tokens; by default at the tokenizer's length. More than
            the model has positions is not possible.
        text_column: the texts' column, or two that are a pair (``"premise,hypothesis"``).
        image_column: the images' column.
        template: a text made from columns, ``"premise: {premise} hypothesis: {hypothesis}"``.
        prompt: a column or template whose text comes first. Its tokens count neither as features
            nor for the loss (``token_mask``); but they do in the mean over tokens that a made head is put on.
        label_column: the labels' column, if its name does not say so.
        answer_column: what an encoder-decoder is to write, as one column.
        classes: how many classes the model's outputs are, if its configuration does not say it.
        label2id: the model's numbers of the data's classes, by name or number, if not those of its
            configuration.
        budget: bytes of batches to keep in memory.
        progress: show a bar on a terminal.

    Returns:
        The batches.

    Raises:
        DataError: columns, labels, texts or images don't fit; the column, row and option are named.
    """  # noqa: DOC502 (raised by what this calls)
    notes = list(processor.notes)
    if SYNONYMS.get(str(table.split)) == "train":
        notes.append("these are training data: models look better on what they were trained on")
    head, labels, column = processor.head, None, None
    if answer_column is not None and getattr(processor, "kind", None) != "encoder-decoder":
        raise DataError(
            f"The column {answer_column!r} holds answers to be written, which only an encoder-decoder learns. For a "
            "causal language model, answers are the text and questions the prompt."
        )
    wanted = head.target == CLASSES or classes is not None
    if wanted or label_column is not None:
        column = choose_label_column(table, label_column)
    if wanted and column is None:
        notes.append("no column holds labels, so accuracy and loss can't be measured")
    elif wanted and column is not None:
        number = head.classes if classes is None else classes
        labels = read_labels(table, column, classes=number, label2id=label2id or head.label2id)
    elif column is not None:
        notes.append(f"the labels in {column!r} are not used: the model's outputs are no classes")
    if isinstance(processor, ImageProcessor):
        read: Reader = _image_reader(table, processor, choose_image_column(table, image_column))
    else:
        texts = choose_texts(
            table, text_column=text_column, template=template, prompt=prompt, label_column=column
        )
        limit, said = processor.limit(max_length, 1 if texts.pair is None else 2)
        notes += said
        answers = None if answer_column is None else Template.of_column(answer_column, table, "the answers")
        read = _text_reader(table, processor, texts, limit, answers)
    return Batches(
        read, processor.collate, len(table), batch_size, labels=labels, notes=notes, budget=budget, progress=progress,
    )  # fmt: skip


def _text_reader(
    table: datasets.Dataset,
    processor: TextProcessor,
    texts: Texts,
    limit: int | None,
    answers: Template | None,
) -> Reader:
    if texts.pair is not None and processor.kind == "decoder":
        first, second = texts.text.columns[0], texts.pair.columns[0]
        raise DataError(
            f"A causal language model takes one text, not the pair {first!r} and {second!r}. Join them with "
            f"--template '{{{first}}} {{{second}}}', or choose one with --text-column."
        )
    parts = [texts.text] if texts.pair is None else [texts.text, texts.pair]
    used = table.select_columns(list(dict.fromkeys([*texts.columns, *(answers.columns if answers else ())])))

    def read(rows: Sequence[int]) -> list[Sample | str]:
        found = used[list(rows)]
        lines = [{name: values[place] for name, values in found.items()} for place in range(len(rows))]
        prompts = None if texts.prompt is None else [texts.prompt.fill(line) for line in lines]
        wanted = None if answers is None else [answers.fill(line) for line in lines]
        return processor.samples(
            [tuple(part.fill(line) for part in parts) for line in lines], prompts, limit, wanted
        )

    return read


def _image_reader(table: datasets.Dataset, processor: ImageProcessor, column: str) -> Reader:
    import datasets

    # Decoded here and not by the table, so that the row of a broken image is known.
    files = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    decoder = datasets.Image()

    def read(rows: Sequence[int]) -> list[Sample | str]:
        out: list[Sample | str] = [MISSING] * len(rows)
        images = {}
        for place, file in enumerate(files[list(rows)][column]):
            if file is None:
                continue
            try:
                images[place] = decoder.decode_example(file)
            except Exception as error:  # PIL and file systems raise many kinds
                where = f" ({file['path']})" if file.get("path") else ""
                raise DataError(
                    f"The image in row {rows[place]}{where} can't be read: {type(error).__name__}: {error}. Fetch it "
                    "again, or remove the row."
                ) from error
        if images:
            for place, sample in zip(images, processor.samples(list(images.values())), strict=True):
                out[place] = sample
        return out

    return read
