"""Getting a family ready to be measured: its own models, data and heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mergescope.errors import MergescopeError
from mergescope.models.with_head import WithHead
from mergescope.protocols.measure import HeldOut
from mergescope.studies.given import Given, Options, prepare
from mergescope.studies.opened_families import OwnFamily, find_family
from mergescope.studies.published_clip import ClipFamily, fixed_entries
from mergescope.studies.published_texts import TextFamily


def prepare_family(text: str, regime: str | None, options: Options, *, calibrate: bool = False) -> Given:
    """Open a family's models, and the test data of its tasks.

    Args:
        text: what ``--family`` says, as for
            [`find_family`][mergescope.studies.opened_families.find_family].
        regime: label of a regime of a family directory.
        options: what else the user said. Data that it names are measured on in place of the tasks'; of a
            published family, they are where the tasks' data are.
        calibrate: re-estimate BatchNorm statistics of combined models on a share of all data sets.

    Returns:
        What is measured.

    Raises:
        MergescopeError: models are named as well, or the family can't be measured so.
        StudyError: there is no such family or regime.
        DataError: the data can't be read, or don't fit the models.
    """  # noqa: DOC502 (raised by what this calls)
    if options.models:
        raise MergescopeError(
            f"--family {text} names the models: leave {', '.join(options.models)} out, or --family."
        )
    places = _places(options)
    found = find_family(text, regime, base=options.base, data=places)
    _require_used(text, found, options)
    if isinstance(found, ClipFamily):
        return _towers(found, options)
    own = found.options(options) if isinstance(found, TextFamily) else _own(found, options)
    return prepare(own, calibrate=calibrate)


def _require_used(text: str, found: Any, options: Options) -> None:
    idle: tuple[str, ...] = ()
    if isinstance(found, ClipFamily):
        idle = ("config", "text_column", "label_column", "template", "prompt", "max_length")
    elif isinstance(found, OwnFamily) and not options.data.specs:
        idle = ("config",)
    said = [name for name in idle if getattr(options.data, name) is not None]
    if said:
        written = {"config": "data-config", "prompt": "prompt-column"}
        names = ", ".join(f"--{written.get(name, name.replace('_', '-'))}" for name in said)
        raise MergescopeError(f"--family {text} says itself how its data are read: leave {names} out.")


def _places(options: Options) -> dict[str, str]:
    from mergescope.data import parse_data_option

    return dict(parse_data_option(text) for text in options.data.specs)


def _own(found: OwnFamily, options: Options) -> Options:
    data, tasks = options.data, {task: found.family.tasks[task] for task in found.models}
    if not data.specs:
        specs = tuple(f"{name}={task.source}" for name, task in tasks.items())
        data = replace(data, specs=specs, tasks=tasks)
    models = tuple(f"{task}={path.resolve()}" for task, path in found.models.items())
    return replace(options, base=found.place, models=models, data=data)


def _towers(family: ClipFamily, options: Options) -> Given:
    from mergescope.data import class_words, encode, load_processor, load_split
    from mergescope.data.heads import CLASSES, Head
    from mergescope.data.task_splits import image_column, label_column
    from mergescope.models.zero_shot import user_cache

    data, settings = options.data, options.settings
    if options.dtype != "float32" or settings.executor == "streamed" or settings.linearized:
        raise MergescopeError(
            f"The published family {family.name} is measured in float32, in memory, and in the ordinary network: leave "
            "--dtype, --executor streamed and --linearized out."
        )
    base, towers = family.towers()
    tables = {
        task: load_split(spec, data.split or "test", limit=data.limit, seed=data.seed)
        for task, spec in family.tasks.items()
    }
    words = {task: class_words(family.tasks[task], table) for task, table in tables.items()}
    heads = family.heads(words, cache=user_cache())
    first = next(iter(tables))
    backbone = family.network(first, heads[first]).backbone.to(
        settings.device
    )  # one for all, which points overwrite
    processor: Any = load_processor(data.processor or base.source.directory, "image")
    held, batches = [], {}
    for task, table in tables.items():
        network = WithHead(backbone, heads[task]).eval().to(settings.device)
        batches[task] = encode(
            table, replace(processor, head=Head(CLASSES, len(words[task]))), batch_size=data.batch_size,
            image_column=data.image_column or image_column(family.tasks[task], table),
            label_column=label_column(family.tasks[task], table),
        )  # fmt: skip
        held.append(HeldOut(task, batches[task], network, task, fixed=fixed_entries(network), logits=True))
    sources = {"base": base.source, **{task: tower.source for task, tower in towers.items()}}
    return Given(
        replace(options, base=family.base, models=tuple(family.models.values())), base, dict(towers), sources, held,
        {task: task for task in tables}, batches, settings, [],
    )  # fmt: skip
