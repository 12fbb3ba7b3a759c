"""Getting somebody's models and data ready to be measured: ``mergescope measure``."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.errors import DataError, MergescopeError, did_you_mean
from mergescope.models.features import Features
from mergescope.models.layers import OUTPUT, find_layers
from mergescope.models.with_head import WithHead
from mergescope.protocols.linear_model import require_executor
from mergescope.protocols.measure import HeldOut, Measurement, Settings, decided, measure, passes
from mergescope.protocols.subset import Shares
from mergescope.studies.networks import DTYPES, Networks, build, networks_for
from mergescope.tracing.affine import Mixtures

if TYPE_CHECKING:
    import torch

    from mergescope.data import Batches
    from mergescope.studies.families import Task

SAMPLES = 512
"""Samples of each data set, unless the user says otherwise."""


@dataclass(frozen=True)
class DataOptions:
    """Which data, and how rows become batches; fields as for ``load_table`` and ``encode``.

    Data of the name of one of ``tasks`` are that task's, with the columns that it was fine-tuned on. Where a causal
    language model learned answers, ``answers`` are what its losses are of; else its features are those at the end of
    the questions, where it begins to answer.
    """

    specs: tuple[str, ...]
    split: str | None = None
    config: str | None = None
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    template: str | None = None
    prompt: str | None = None
    limit: int | None = SAMPLES
    batch_size: int = 32
    max_length: int | None = None
    processor: Path | None = None
    seed: int = 0
    tasks: Mapping[str, Task] = field(default_factory=dict)
    answers: bool = False


@dataclass(frozen=True)
class Options:
    """What to measure, as a user says it.

    Attributes:
        base: reference of the pretrained model, or None.
        models: references of the fine-tunes.
        data: the data.
        settings: as for [`measure`][mergescope.measure].
        dtype: what the networks compute in.
    """

    base: str | None
    models: tuple[str, ...]
    data: DataOptions
    settings: Settings = field(default_factory=Settings)
    dtype: str = "float32"


@dataclass
class Given:
    """Everything opened.

    Attributes:
        options: what the user said.
        base: the base or None; bodies only, if heads differ.
        models: name to fine-tune.
        sources: name to the whole checkpoint of each.
        held: the data and the networks that they run through.
        homes: data name to the model whose network that is.
        batches: data name to batches.
        settings: what to measure.
        notes: what the user should know.
    """

    options: Options
    base: Any
    models: dict[str, Any]
    sources: dict[str, Any]
    held: list[HeldOut]
    homes: dict[str, str]
    batches: dict[str, Batches]
    settings: Settings
    notes: list[str]

    def plan(self) -> dict[str, Any]:
        """What measuring will cost.

        Returns:
            Models, pairs, points at most in a pass, layers, samples, forward passes of a batch.
        """
        settings, _ = decided(self.base, self.models, self.settings)
        ends = len(self.models) + (self.base is not None)
        layers = find_layers(self.held[0].model, settings.layers)
        layers = [layer for layer in layers if settings.output or layer != OUTPUT]
        found = passes(self.base, self.models, self.held, settings)
        points = {name: len(every) for name, every in found.items()}
        runs = points
        if settings.linearized and settings.executor != "resident":  # sums give all but the checkpoints
            runs = {name: len(Mixtures.of(every).runs) for name, every in found.items()}
        batches = {name: len(data) for name, data in self.batches.items()}
        local = settings.local and self.base is not None and layers != [OUTPUT]
        # The base once more for its mean feature; for its inputs to layers, if all points run at once.
        more = settings.centred + (local and settings.executor == "batched")
        return {
            "models": ends,
            "pairs": ends * (ends - 1) // 2,
            "points": max(points.values()),
            "layers": len(layers),
            "samples": {name: data.samples for name, data in self.batches.items()},
            "forward_passes": sum((runs[name] + more) * count for name, count in batches.items()),
            "local_passes": sum((points[name] - 1) * count for name, count in batches.items())
            if local
            else 0,
            "features": Features.of(self.held[0].model, settings.features).choice,
        }

    def run(self) -> Measurement:
        """Measure.

        Returns:
            The measurement, with what should be known about models and data.
        """
        # First what may lack memory, for it needs a second network. A linearised one is linear in any type.
        linear = decided(self.base, self.models, self.settings)[0].linearized
        notes = [] if self.options.dtype == "float32" or linear else [self._precision()]
        found = measure(self.base, self.models, self.held, self.settings)
        found.notes += self.notes + notes
        for name, data in self.batches.items():
            found.notes += [f"{name}: {note}" for note in data.notes]
        return found

    def _precision(self) -> str:
        # One pair on the first batch in float32 as well: what the narrower type changes.
        held = self.held[0]
        settings = replace(self.settings, local=False, centred=False, linearized=False, progress=False)
        twin = build(self.sources[self.homes[held.name]], settings, "float32", held.fixed)
        if isinstance(held.model, WithHead):
            place = next(twin.parameters()).device
            twin = WithHead(twin, held.model.task_head).to(place).eval()
        names = sorted(self.models, key=lambda name: name != held.owner)[:2]
        models, base = {name: self.models[name] for name in names}, None if len(names) > 1 else self.base
        first = [next(iter(held.batches))]
        ways = [
            HeldOut(held.name, first, model, fixed=held.fixed, logits=False) for model in (held.model, twin)
        ]
        one, other = (measure(base, models, [way], settings).pairs[0].middle for way in ways)
        worst = {
            name: max(
                (
                    abs(a.measures[name].mean - b.measures[name].mean)
                    for a, b in zip(one.layers, other.layers, strict=True)
                    if a.measures[name].n and b.measures[name].n
                ),
                default=0.0,
            )
            for name in ("cos", "coef")
        }
        return (
            f"computed in {self.options.dtype}: against float32, on one pair and batch, cos changes by up to "
            f"{worst['cos']:.1e} and coef by up to {worst['coef']:.1e}"
        )

    def provenance(self) -> dict[str, Any]:
        """Where models and data came from.

        Returns:
            For ``run.yaml``.
        """
        return {
            "models": {
                name: {
                    "from": _origin(source), "commit": source.commit, "digest": source.digest,
                }
                for name, source in self.sources.items()
            },
            "data": {
                name: {
                    "samples": data.samples, "fingerprint": data.fingerprint, "labels": data.labels is not None,
                    "notes": list(data.notes),
                }
                for name, data in self.batches.items()
            },
        }  # fmt: skip

    def config(self) -> dict[str, Any]:
        """What the user asked for.

        Returns:
            For ``run.yaml``.
        """
        said = asdict(self.options)
        said["data"]["processor"] = (
            None if self.options.data.processor is None else str(self.options.data.processor)
        )
        for name in ("calibration", "progress"):
            said["settings"].pop(name)
        said["calibrate"] = self.settings.calibration is not None
        return _plain(said)


def _origin(source: Any) -> str:
    adapter = getattr(source, "adapter", None)
    place = str(source.directory or source.files[0])
    return place if adapter is None else f"{place}+{adapter.directory}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def prepare(options: Options, *, calibrate: bool = False) -> Given:
    """Open models and data.

    Models of one shape run through the base's network. If their heads differ, their common body is
    measured; data named like a model then run through that model's network with its head, so that
    accuracy and loss mean something.

    Args:
        options: what the user said.
        calibrate: re-estimate BatchNorm statistics of combined models on a share of all data sets.

    Returns:
        What is measured.

    Raises:
        CheckpointError: a model can't be opened.
        MismatchError: the models have no common body.
        DataError: the data can't be read, or don't fit the models.
        MergescopeError: there is no such dtype, too few models, or nothing to compare.
    """  # noqa: DOC502 (raised by what this calls)
    if options.dtype not in DTYPES:
        raise MergescopeError(
            f"There is no dtype {options.dtype!r} to compute in.{did_you_mean(options.dtype, DTYPES)} Choose one of "
            f"{', '.join(DTYPES)}."
        )
    if len(options.models) + (options.base is not None) < 2:
        raise MergescopeError("Measuring takes two models: --base and one of --models, or two of --models.")
    references = [*([] if options.base is None else [options.base]), *options.models]
    if options.settings.linearized:
        _require_linearisable(references, options)
    opened, notes = open_references(references)
    names = _data_names(options.data.specs, [model.name for model in opened[options.base is not None :]])
    owners = {name: owner for name, (_, owner) in names.items()}
    found = networks_for(opened, owners, options.settings, options.dtype)
    settings = options.settings if found.outputs else replace(options.settings, output=False)
    if not found.outputs and find_layers(next(iter(found.networks.values())), settings.layers) == [OUTPUT]:
        raise MergescopeError(
            f"There is nothing to compare: only the output was asked for, and {found.notes[0]}. Choose --layers blocks."
        )
    batches = {name: _batches(name, spec, found, opened, options.data) for name, (spec, _) in names.items()}
    if calibrate:
        settings = replace(settings, calibration=Shares(batches.values()))
    held = [
        HeldOut(
            name,
            batches[name],
            found.networks[name],
            owner,
            fixed=found.fixed[name],
            logits=(isinstance(found.networks[name], WithHead) or None) if found.outputs else False,
            classes=options.data.tasks[name].mask if name in options.data.tasks else None,
        )  # fmt: skip
        for name, owner in owners.items()
    ]
    views = dict(zip((model.name for model in opened), found.models, strict=True))
    base = None if options.base is None else views.pop(opened[0].name)
    sources, homes = (
        {model.name: model for model in opened},
        {name: home.name for name, home in found.homes.items()},
    )
    return Given(options, base, views, sources, held, homes, batches, settings, notes + found.notes)


def _require_linearisable(references: Sequence[str], options: Options) -> None:
    from mergescope.models.architecture import find_gguf

    require_executor(options.settings.executor)
    if options.base is None:
        raise MergescopeError("The linearised model is linearised around the base. Give a base: --base.")
    packed = [reference for reference in references if find_gguf(split_name(reference)[1]) is not None]
    if packed:
        raise MergescopeError(
            f"{', '.join(packed)}: the weights of a GGUF file are rounded so much that its task vector is mostly "
            "rounding, which the linearised model would be measured with. Give the original weights (safetensors)."
        )


def open_references(references: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Open models that are to be combined: under names of their own, in one type.

    Args:
        references: as for [`open_model`][mergescope.weights.references.open_model], perhaps with ``NAME=`` before.

    Returns:
        The models, and what the user should know of them.

    Raises:
        CheckpointError: a model can't be opened.
        MergescopeError: two models have one name.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.merging.check import open_distinct
    from mergescope.weights.references import open_model

    given = [(name, _dequantised(reference)) for name, reference in map(split_name, references)]
    opened = open_distinct([reference for _, reference in given])
    for (name, _), model in zip(given, opened, strict=True):
        model.name = name or model.name
    names = [model.name for model in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MergescopeError(
            f"Two models are called {', '.join(twice)}. Give each a name of its own: NAME=path."
        )
    wide = _common_dtype(opened)
    if wide is None:
        return opened, []
    said = "; ".join(f"{model.name} in {', '.join(sorted(map(_said, _dtypes(model))))}" for model in opened)
    opened = [open_model(reference, dtype=wide) for _, reference in given]
    for name, model in zip(names, opened, strict=True):
        model.name = name
    return opened, [f"the models are stored in different types and read as {_said(wide)} ({said})"]


def _dequantised(reference: str) -> str:
    # A GGUF file as an ordinary directory, kept for the next time.
    from mergescope.models.architecture import find_gguf
    from mergescope.models.gguf import dequantise

    path = find_gguf(reference)
    return reference if path is None else str(dequantise(path))


def split_name(text: str) -> tuple[str, str]:
    """Take ``NAME=path`` apart, which tells directories that are all called "model" from one another.

    Args:
        text: a reference with or without a name.

    Returns:
        The name, or "", and the reference.

    Example:
        >>> split_name("spam=runs/a/model"), split_name("org/model")
        (('spam', 'runs/a/model'), ('', 'org/model'))
    """
    name, equals, reference = text.partition("=")
    plain = equals and name and reference and not {"/", os.sep} & set(name) and not Path(text).exists()
    return (name, reference) if plain else ("", text)


def _dtypes(model: Any) -> set[torch.dtype]:
    return {spec.dtype for spec in model.spec.values() if spec.dtype.is_floating_point}


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _common_dtype(models: Sequence[Any]) -> torch.dtype | None:
    """The type that all floating-point tensors fit into.

    Returns:
        The type, or None if models agree tensor by tensor, so that they can be combined as they are.
    """
    import torch

    first, *others = ({key: spec.dtype for key, spec in model.spec.items()} for model in models)
    same = all(first[key] == other[key] for other in others for key in first.keys() & other.keys())
    every = [_dtypes(model) for model in models]
    if same and all(dtypes == every[0] for dtypes in every):
        return None
    return functools.reduce(torch.promote_types, set().union(*every), torch.float32)


def _data_names(specs: Sequence[str], models: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    from mergescope.data import parse_data_option

    if not specs:
        raise DataError("There are no data to measure on. Give --data: a hub id, a file or a directory.")
    names: dict[str, tuple[str, str | None]] = {}
    last = [name.rpartition("/")[2] for name in models]
    known = {
        short: name for short, name in zip(last, models, strict=True) if last.count(short) == 1
    }  # of org/name
    known |= {name: name for name in models}
    only = models[0] if len(models) == 1 else None  # there is a base, and all data are for its one fine-tune
    for text in specs:
        name, spec = parse_data_option(text)
        if name in names:
            raise DataError(f"Two data sets are called {name!r}. Name them: --data first={spec} ...")
        names[name] = (spec, known.get(name, only))
    owned = {owner for _, owner in names.values() if owner is not None}
    others = [name for name, (_, owner) in names.items() if owner is None]
    if owned and others:
        raise DataError(
            f"Some data are named like models ({', '.join(sorted(owned))}) and some are not "
            f"({', '.join(others)}). Name all after the models whose tasks they are ({', '.join(models)}), or none."
        )
    missing = [name for name in models if owned and name not in owned]
    if missing:
        short = next((name for name, model in known.items() if model == missing[0] and "/" not in name), None)
        advice = (
            f"Give --data {short}=... as well."
            if short
            else f"Name the model, NAME={missing[0]}, and give --data NAME=..."
        )
        raise DataError(f"There are no data for {', '.join(missing)}. {advice}")
    return names


def _batches(name: str, spec: str, found: Networks, models: Sequence[Any], data: DataOptions) -> Batches:
    from mergescope.data import encode, load_processor, load_table
    from mergescope.data.heads import CLASSES, Head
    from mergescope.data.tokens import TextProcessor
    from mergescope.models.features import kind_of_model

    home, kind = found.homes[name], kind_of_model(found.networks[name])
    columns: dict[str, Any] = {
        "text_column": data.text_column, "image_column": data.image_column, "template": data.template,
        "prompt": data.prompt, "label_column": data.label_column, "max_length": data.max_length,
    }  # fmt: skip
    if name in data.tasks:
        from mergescope.studies.family_data import held_out_rows

        task = data.tasks[name]
        how: dict[str, Any] = {
            "split": data.split,
            "limit": data.limit,
            "seed": data.seed,
            "answers": data.answers,
        }
        table, own = held_out_rows(task, kind, **how)
        asked = {key: value for key, value in columns.items() if value is not None}
        if asked.keys() & {"text_column", "template"}:  # in place of what the task was learned with
            own = {**own, "text_column": None, "template": None}
        columns = own | asked
    else:
        table = load_table(
            spec, split=data.split, config=data.config, limit=data.limit, seed=data.seed,
            label_column=data.label_column,
        )  # fmt: skip
    places = [getattr(model, "tokenizer_directory", model.directory) for model in (home, *models)]
    problem: DataError | None = None
    for files in [data.processor] if data.processor is not None else dict.fromkeys(places):
        try:
            processor = load_processor(home.directory, kind, files=files, config=home.config)
            break
        except DataError as error:  # fine-tunes are often saved without a tokenizer
            problem = problem or error
    else:
        raise problem or DataError("None of the models has a directory, so there is no tokenizer.")
    network = found.networks[name]
    inner: Any = getattr(network, "config", None)
    if isinstance(processor, TextProcessor) and getattr(inner, "pad_token_id", 0) is None:
        inner.pad_token_id = processor.filler  # decoders that classify look for the token before it
    if not found.outputs:
        processor = replace(processor, head=Head())
    elif isinstance(network, WithHead):
        classes = network.task_head.classes
        processor = replace(
            processor, head=Head(CLASSES, len(classes), {c: i for i, c in enumerate(classes)})
        )
    try:
        return encode(table, processor, batch_size=data.batch_size, **columns)
    except DataError as error:
        raise DataError(f"{name}, for the network of {home.name}: {error}") from error
