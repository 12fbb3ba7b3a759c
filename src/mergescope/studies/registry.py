"""The studies by name, described without importing what they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
        runner: ``module:function`` taking (preset, run directory, what it ``takes``) and returning a run directory;
            empty if a command runs it.
        planner: ``module:function`` taking (preset, run directory, data, tasks) and returning lines of words.
        takes: options of ``study run`` that the runner takes.
        differs: what differs from the source, preset name to words.
        aliases: other names, such as the figures'.
        command: words of the command that runs it on a family.
        options: preset name to the command's further options.
        reference: the source's own numbers, line by line.
    """

    name: str
    title: str
    claims: str
    setting: str
    source: str
    presets: dict[str, str]
    runner: str = ""
    planner: str = ""
    takes: tuple[str, ...] = ("data", "workers")
    differs: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reference: tuple[str, ...] = ()

    def load(self, what: str = "runner") -> Callable[..., Any]:
        """Import the function that runs the study, or that tells what it would do.

        Args:
            what: ``runner`` or ``planner``.

        Returns:
            The function.
        """
        module, _, function = getattr(self, what).partition(":")
        return getattr(import_module(module), function)


FAMILY = "Models and tasks of --family DIR (mergescope finetune, or clip8), in the regime of --regime."
"""Setting of the studies that run on somebody's family."""


SAMPLES = {
    "search": (128, 512, 2048),
    "predict": (32, 128, 512),
    "curvature": (16, 32, 256),
    "theorems": (32, 128, 512),
}
"""Samples of a task by preset, of commands whose passes cost more than most; of the others, those of ``search``."""


def _of_family(
    name: str, title: str, claims: str, source: str, *command: str, **options: tuple[str, ...]
) -> Study:
    samples = dict(zip(("quick", "default", "full"), SAMPLES.get(command[0], SAMPLES["search"]), strict=True))
    presets = {preset: f"{count} samples of a task" for preset, count in samples.items()}
    limits: dict[str, tuple[str, ...]] = {
        preset: ("--limit", str(count)) for preset, count in samples.items()
    }
    if command[0] == "geometry":
        presets, limits = {"default": "reads weights only"}, {"default": ()}
    given = {preset: (*limits[preset], *options.get(preset, ())) for preset in presets}
    return Study(name, title, claims, FAMILY, source, presets, command=command, options=given)


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
            "default": "1.5 to 3 minutes",
            "full": "long training, all test digits",
        },
        runner="mergescope.studies.digits:run_preset",
        planner="mergescope.studies.digits:plan_lines",
        takes=("data", "tasks", "workers"),
    ),
    Study(
        name="root-causes",
        title="What makes features linear: training lengths and shared samples?",
        claims=(
            "Features of models that were fine-tuned from a longer pretraining, or on samples more like those of "
            "pretraining, are more linear; the length of fine-tuning and what fine-tuning sets share matter less."
        ),
        setting=(
            "Narrow ResNet-18 on parts of a data set's classes, pretrained on the first and fine-tuned on others; one "
            "thing varies at a time, in four repetitions."
        ),
        source="CTL Figs 11 and 12",
        presets={"quick": "seconds", "cpu": "76 trainings", "paper": "Split CIFAR-100, on a GPU"},
        runner="mergescope.studies.sweeps.root_causes:run_preset",
        takes=("data", "root", "workers", "device"),
        planner="mergescope.studies.sweeps.root_causes:plan_lines",
        aliases=("ctl-fig11", "ctl-fig12"),
        reference=(
            "digitised, +-.01: ResNet-18, Split CIFAR-100 (Fig. 11), Split ImageNet (Fig. 12)",
            "pretraining epochs 0, 5, 10, 20: block 3-1 1-cos .19 .09 .05 .045 (baseline .56 .43 .35 .34), "
            "coef .93 1.00 1.035 1.04; block 4-1 1-cos .27 .165 .11 .10 (.58 .53 .49 .46), coef .87 .93 1.00 1.00",
            "fine-tuning epochs 1 to 20: block 4-1 1-cos .15 .13 .15 .155",
            "similarity to the pretraining data 0, 50, 90, 100 %: block 3-1 1-cos .30 .07 .03 .01, coef .60 .94 .99 "
            "1.00; block 4-1 1-cos .53 .21 .12 .02, coef .165 .70 .79 1.02",
            "similarity of both fine-tuning sets: nearly flat",
        ),
        differs={
            "cpu": (
                "CTL trains a ResNet-18 of 20 base channels on 20 parts of CIFAR-100, 5 classes and 2,500 images each, "
                "and takes Split ImageNet for similarities. Here it has 8 base channels and parts of two classes; "
                "fine-tuning takes 5 epochs, and 10 at most. With a share of replaced samples, held-out data are "
                "replaced in the same share, and the loss is over the classes that occur."
            ),
            "paper": (
                "CTL does not say which images Split ImageNet has; here it is Tiny ImageNet (200 classes, 64 pixels) "
                "in 20 parts. Held-out data are replaced in the same share as training data."
            ),
        },
    ),
    Study(
        name="theorem-5.1",
        title="Is the gap of the loss explained by curvature times squared distance?",
        claims=(
            "The gap is below a(1-a)/2 lambda_max |th_i - th_j|^2, grows with it, and is explained better by the exact "
            "second-order term that the bound replaces."
        ),
        setting="ResNet-20 on one data set, several pretrained checkpoints, pairs fine-tuned with different settings.",
        source="CTL Theorem 5.1 and C.2",
        presets={"quick": "seconds", "cpu": "15 trainings, 18 pairs", "paper": "all of CIFAR-10, on a GPU"},
        runner="mergescope.studies.sweeps.theorem:run_preset",
        takes=("data", "root", "workers", "device"),
        planner="mergescope.studies.sweeps.theorem:plan_lines",
        aliases=("ctl-c2",),
        differs={
            "cpu": (
                "CTL's ResNet-20 has 16 base channels and all of CIFAR-10; here it has 8, and 200 images a class. CTL "
                "does not say where lambda is taken: both places are shown. Gaps are on held-out images."
            ),
        },
    ),
    _of_family(
        "addition", "Do task vectors add up?",
        "One model, the base plus all task vectors, keeps most of the accuracy of the single-task models; more of it "
        "after attention-only fine-tuning than after full or linearised.", "TA; ATTN Table 1; CTL 5", "search",
    ),
    _of_family(
        "negation", "Can a task be forgotten, and nothing else?",
        "Subtracting a task vector lowers the accuracy on its task far below the base's, at 95 % of the accuracy on "
        "the others.", "TA; ATTN, negation; CTL 5", "search", "--negate",
    ),
    _of_family(
        "methods", "Which merge method is best here?",
        "Average, task arithmetic, TIES, DARE, TSV and Iso-C in one protocol, as they are and tuned.",
        "the methods' papers", "search", "--methods", "usual",
    ),
    _of_family(
        "coefficients", "Is one coefficient a task better than one for all?",
        "A surrogate of the outputs finds coefficients from few passes; the grid and random search are next to it.",
        "second-order expansion of outputs in the coefficients", "search", "--coefficients", "--random",
    ),
    _of_family(
        "averaging", "Do averaged weights do what the ensemble does?",
        "Over subsets of three models, accuracy of averaged weights and of averaged logits go together; features of "
        "the average are nearly the average of features (Eq. 1).", "CTL 4.2, Fig. 4", "soup", "--size", "3",
    ),
    _of_family(
        "disentanglement", "Do tasks get in each other's way?",
        "The weight disentanglement error is small around the base, and smaller for regimes that add up better.",
        "TANGENT; ATTN Fig. 3", "disentangle", "--preset", "attn", quick=("--points", "9"),
    ),
    _of_family(
        "stitched-addition", "Does the base understand averaged features?",
        "The base's rest, run on the average of two models' features, keeps accuracy on both tasks.",
        "CTL Fig. 9", "stitch",
    ),
    _of_family(
        "stitched-negation", "Does the base understand subtracted features?",
        "The base's rest, run on twice its features less a model's, forgets as subtracted weights do.",
        "CTL Fig. 10", "stitch", "--negate", quick=("--lambdas", "0", "0.25", "0.5", "0.75", "1"),
    ),
    _of_family(
        "mergeability", "Does anything known before a merge tell how good it will be?",
        "Of many pairs and groups, rules from weights, features and derivatives are judged on left-out tasks against a "
        "constant, the number of models and the base's own accuracy.", "docs/mergeability.md", "mergeability",
        quick=("--groups", "1"),
    ),
    _of_family(
        "prediction", "What would merging do, before it is done?",
        "Second-order terms at the base predict gaps, the interaction of tasks and accuracy over coefficients, as far "
        "as task vectors are short; what is measured is next to them.",
        "exact leading term of CTL Theorem 5.1", "predict", "--measure",
    ),
    _of_family(
        "curvature", "Is the gap bounded, and explained, by curvature?",
        "The gap of the loss is within curvature times squared distance, which is far above it: task vectors point "
        "where the loss is hardly curved.", "CTL Theorem 5.1 and C.2", "curvature",
        quick=("--tolerance", "0.05"),
    ),
    _of_family(
        "theorems", "Do the theorems of CTL say something here?",
        "Where the premises of Theorems 3.3, 4.2 and 4.3 hold, so do their conclusions; and linearity of pairs is "
        "transitive.", "CTL Theorems 3.3, 4.2 and 4.3", "theorems",
    ),
    _of_family(
        "geometry", "Which regimes make task vectors orthogonal?",
        "Cosines between tasks are small, and smaller after attention-only fine-tuning.",
        "ATTN Fig. 5", "geometry", "--by-regime",
    ),
)  # fmt: skip


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
        if name in (study.name, *study.aliases):
            return study
    from mergescope.studies.papers.spec import paper_studies

    names = [name for study in STUDIES for name in (study.name, *study.aliases)]
    names += [study.name for study in paper_studies()]
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
