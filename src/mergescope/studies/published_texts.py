"""Published families of language models: text-to-text models with their tasks, decoders on any texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mergescope.data.registry import TASKS, TaskSpec
from mergescope.studies.published_parts import Part

if TYPE_CHECKING:
    from mergescope.studies.given import Options


@dataclass(frozen=True)
class TextFamily:
    """A base and its fine-tunes, by reference: nothing is read before it is asked for.

    What counts as a feature is what ``auto`` means for such networks
    ([`Features`][mergescope.models.features.Features]): the mean over an encoder's tokens, a decoder's last
    token, of an encoder-decoder the first that it writes (CTL, Figs 19 to 24).

    Attributes:
        name: of the family.
        base: reference of the base, as for [`open_model`][mergescope.weights.references.open_model].
        models: name to the reference of a fine-tune.
        tasks: name to the task that the model was fine-tuned on; empty if all are measured on the same texts.
        corpus: those texts.
        executor: of passes, unless the user names another one.
    """

    name: str
    base: str
    models: Mapping[str, str]
    tasks: Mapping[str, TaskSpec] = field(default_factory=dict)
    corpus: TaskSpec | None = None
    executor: str = "auto"

    @property
    def place(self) -> str:
        """Where the base is."""
        return self.base

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the data sets that the models are measured on."""
        return tuple(self.tasks) or (() if self.corpus is None else (self.corpus.name,))

    def options(self, options: Options) -> Options:
        """The family's models and data as a user would name them one by one.

        Args:
            options: what else the user said. Other data than the corpus that they name take its place.

        Returns:
            For [`prepare`][mergescope.studies.given.prepare].
        """
        from mergescope.data import parse_data_option
        from mergescope.studies.families import Task

        data, settings = options.data, options.settings
        if self.tasks:
            tasks = {name: Task(_source(name, spec)) for name, spec in self.tasks.items()}
            specs = tuple(f"{name}={task.source}" for name, task in tasks.items())
            data = replace(data, specs=specs, tasks=tasks)
        elif self.corpus is not None and {parse_data_option(text)[0] for text in data.specs} <= set(
            self.data
        ):
            of = self.corpus
            data = replace(
                data, specs=(f"{of.name}={of.source}",), config=of.config, text_column=of.columns["text"]
            )
        if settings.executor == "auto":
            settings = replace(settings, executor=self.executor)
        models = tuple(f"{name}={reference}" for name, reference in self.models.items())
        return replace(options, base=self.base, models=models, data=data, settings=settings)

    def compared(self) -> tuple[Any, list[Any]]:
        """Base and fine-tunes, to be compared with each other.

        Returns:
            The base, and the fine-tunes, called by their tasks: the tensors that all have, under the names of
            the base's network, however they were saved; of vocabularies the base's rows.

        Raises:
            MismatchError: they have no body in common.
            CheckpointError: a model can't be found or read.
        """  # noqa: DOC502 (raised by what this calls)
        from mergescope.models import empty_model, find_layers
        from mergescope.models.bodies import shared_body
        from mergescope.studies.base_rows import with_base_rows
        from mergescope.studies.given import open_references

        named = [f"{name}={reference}" for name, reference in self.models.items()]
        (base, *models), _ = open_references([f"base={self.base}", *named])
        network = empty_model(base)
        models, _ = with_base_rows(base, models)
        body = shared_body(network, [base, *models], find_layers(network, "blocks"))
        start, *others = (Part(view, view.name, whole=True) for view in body.models)
        return start, others


def _source(name: str, spec: TaskSpec) -> str:
    # A local copy of a known task keeps what is known of the task.
    return name if TASKS.get(name) == spec else f"{name}={spec.source}"
