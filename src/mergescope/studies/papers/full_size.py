"""Families of the papers at the papers' size, trained here: data and bases by hub ids, or copies under the root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mergescope.data.registry import FAMILIES as TASK_SETS
from mergescope.data.registry import TASKS
from mergescope.models.nets import MLP
from mergescope.models.resnet import ResNet
from mergescope.studies.papers import data_sets
from mergescope.studies.papers.workshop import Making, Workshop

CLIP = "openai/clip-vit-{}"
"""Hub ids of CLIP's networks."""

Recipe = dict[str, Any]
"""What differs from a preset."""

PARTS, CLASSES = 20, 100
"""Of Split CIFAR-100: so many parts of consecutive classes (MC-SGD)."""


def rotated(
    shop: Workshop,
    name: str,
    turned: Callable[[float], Path],
    pretraining: Recipe | None = None,
    tuning: Recipe | None = None,
) -> Making:
    """CTL's MLP, pretrained on upright digits and fine-tuned on four angles.

    Args:
        shop: where.
        name: of the digits, for directories.
        turned: the task directory of digits turned by an angle.
        pretraining: what differs from MC-SGD's recipe.
        tuning: likewise, of fine-tuning.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family.
    """
    torch.manual_seed(shop.seed)
    start = data_sets.empty_net(MLP(), shop.folder(f"mlp-start{shop.seed}"))
    data = {angle: turned(angle) for angle in (0, 22.5, 45, 67.5, 90)}
    base = yield from shop.base(
        f"mlp-base{shop.seed}", start, {"data": str(data[0])}, pretraining or {}, "mc-sgd"
    )
    tasks = {f"{name}-{angle:g}": str(path) for angle, path in data.items() if angle}
    config = {"base": str(base), "tasks": tasks, "regimes": ["full"], "preset": "mc-sgd", "seed": shop.seed}
    more = {} if tuning is None else {"recipe": tuning}
    return (yield from shop.finetune(f"rotated-{name}{shop.seed}", config | more))


def rotated_mnist(shop: Workshop) -> Making:
    """CTL's Rotated MNIST, all by MC-SGD's recipe.

    Args:
        shop: where.

    Returns:
        The making of the family.
    """
    copy = shop.sources.folder("mnist")
    name = f"mnist-{'hub' if copy is None else data_sets.files_key(copy)}"
    source = copy or TASKS["mnist"].source
    return rotated(
        shop,
        "mnist",
        lambda angle: data_sets.turned_digits(shop.work / f"{name}-{angle:g}", angle, source=source),
    )


def split_cifar100(shop: Workshop) -> Making:
    """CTL's Split CIFAR-100: ResNet-18 of 20 channels, pretrained on 5 classes, fine-tuned on four other fives.

    Args:
        shop: where.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family.
    """
    torch.manual_seed(shop.seed)
    start = data_sets.empty_net(ResNet(classes=CLASSES), shop.folder(f"resnet-start{shop.seed}"))
    size, data = CLASSES // PARTS, shop.sources.task("cifar100")
    first, *others = (
        {"data": data, "classes": list(range(at, at + size))} for at in range(0, 5 * size, size)
    )
    base = yield from shop.base(f"resnet-base{shop.seed}", start, first, {"epochs": 10}, "mc-sgd")
    tasks = {f"classes-{task['classes'][0]}-{task['classes'][-1]}": task for task in others}
    config = {"base": str(base), "tasks": tasks, "regimes": ["full"], "preset": "mc-sgd",
              "recipe": {"lr": 0.05, "epochs": 10}, "seed": shop.seed}  # fmt: skip
    return (yield from shop.finetune(f"split-cifar100{shop.seed}", config))


def one_clip_task(shop: Workshop) -> Making:
    """CLIP ViT-B/32, fine-tuned on CIFAR-100 with six settings of learning rate and label smoothing (CTL Figs 4 to 6).

    Args:
        shop: where.

    Returns:
        The making of the family; its "tasks" are the settings.
    """
    data = shop.sources.task("cifar100")
    settings = [{"lr": lr, "label_smoothing": share} for lr in (3e-6, 1e-5, 3e-5) for share in (0.0, 0.1)]
    tasks = {f"run-{number}": {"data": data, "recipe": recipe} for number, recipe in enumerate(settings, 1)}
    return _clip(shop, f"one-clip-task{shop.seed}", "base-patch32", tasks, ["full"])


def clip_tasks(shop: Workshop, backbone: str = "base-patch32") -> Making:
    """CLIP on the eight image tasks in the asked regimes (ATTN Table 1; TANGENT).

    A root that holds two or more of the data sets decides on the tasks: those that are there.

    Args:
        shop: where.
        backbone: the vision transformer.

    Returns:
        The making of the family.
    """
    here = [name for name in TASK_SETS["clip8"] if shop.sources.folder(name) is not None]
    tasks = {name: shop.sources.task(name) for name in (here if len(here) > 1 else TASK_SETS["clip8"])}
    return _clip(shop, f"clip-{backbone}-{shop.seed}", backbone, tasks, list(shop.regimes))


def _clip(shop: Workshop, name: str, backbone: str, tasks: dict[str, Any], regimes: list[str]) -> Making:
    config = {"base": shop.sources.model(CLIP.format(backbone)), "tasks": tasks, "regimes": regimes,
              "preset": "clip", "head": "zero-shot", "seed": shop.seed}  # fmt: skip
    return (yield from shop.finetune(name, config))
