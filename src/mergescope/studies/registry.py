"""The studies by name, described without importing what they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError, did_you_mean


@dataclass(frozen=True)
class Study:
    """One line of ``mergescope study list``, and how to run it.

    Attributes:
        name: what the user types.
        title: one line.
        claims: what it tests.
        setting: models, data, training.
        source: paper, section, figures.
        presets: preset name to its cost in words.
        runner: ``module:function`` taking (preset, run directory, options) and returning a path.
    """

    name: str
    title: str
    claims: str
    setting: str
    source: str
    presets: dict[str, str]
    runner: str

    def load(self) -> Callable[..., Any]:
        """Import the function that runs the study.

        Returns:
            The function.
        """
        module, _, function = self.runner.partition(":")
        return getattr(import_module(module), function)


STUDIES = (
    Study(
        name="digits",
        title="Are models fine-tuned on rotated digits linearly connected in feature space?",
        claims=(
            "At a moderate learning rate the features of interpolated weights are nearly the interpolated features "
            "(cos and coef near 1, far above the baseline); at a high one they are not; two models from different "
            "initialisations never are. What merging then gives is measured beside it."
        ),
        setting=(
            "MLP 784-100-100-10 and a small ViT, pretrained on upright digits, fine-tuned on four rotations (or on "
            "four pairs of classes), all six pairs; Eq. 1 to 3; average, task arithmetic and ensemble."
        ),
        source="CTL 4.1 to 4.3, Figs 2 and 3 (Rotated MNIST); MC-SGD",
        presets={
            "quick": "under a minute",
            "default": "under 2 minutes",
            "full": "long training, all test digits",
        },
        runner="mergescope.studies.digits:run_preset",
    ),
)


def find_study(name: str) -> Study:
    """The study of a name.

    Args:
        name: as listed.

    Returns:
        The study.

    Raises:
        StudyError: there is none; near matches are suggested.

    Example:
        >>> find_study("digits").name
        'digits'
    """
    for study in STUDIES:
        if study.name == name:
            return study
    names = [study.name for study in STUDIES]
    raise StudyError(f"There is no study {name!r}.{did_you_mean(name, names)} Studies: {', '.join(names)}.")


def default_directory(study: str, preset: str) -> Path:
    """Where a run goes if the user names no directory.

    Args:
        study: its name.
        preset: its preset.

    Returns:
        ``runs/STUDY-PRESET`` under the working directory.
    """
    return Path("runs") / f"{study}-{preset}"
