"""Three small tasks on one network that is really trained, for protocols that need models that know something."""

import copy
from functools import lru_cache

import numpy as np
import torch

import mergescope as ms

TASKS = ("one", "two", "three")


def blobs(seed, samples, task, noise=0.6):
    """Five classes around prototypes; each task mirrors some directions and moves all samples, task 0 does neither."""
    fixed = torch.Generator().manual_seed(0)
    prototypes, moves = torch.randn(5, 16, generator=fixed), torch.randn(4, 16, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (samples,), generator=generator)
    inputs = prototypes[labels] + noise * torch.randn(samples, 16, generator=generator)
    mirrored = torch.ones(16)
    mirrored[4 * task - 4 : 4 * task] = -1.0 if task else 1.0
    return inputs * mirrored + (moves[task] if task else 0.0), labels


def split(*place, **settings):
    inputs, labels = blobs(*place, **settings)
    return ms.Split(inputs, labels, np.arange(len(labels)))


@lru_cache(maxsize=1)
def tuned():
    """A network, its pretrained weights, and a model for each task."""
    torch.manual_seed(0)
    net = ms.MLP((16, 24, 24, 5))
    ms.fit(net, split(1, 400, 0), ms.Recipe("adamw", lr=3e-3, epochs=6), seed=0, progress=False)
    base = ms.Checkpoint(copy.deepcopy(net.state_dict()), name="base")
    models = {}
    for number, task in enumerate(TASKS):
        own = copy.deepcopy(net)
        recipe = ms.Recipe("adamw", lr=3e-3, epochs=6)
        ms.fit(own, split(10 + number, 400, number + 1), recipe, seed=number, progress=False)
        models[task] = ms.Checkpoint(own.state_dict(), name=task)
    return net.eval(), base, models


def held_out(seed=20, samples=120, labelled=True, batch=200, net=None):
    """Each task's validation or test data."""
    out = {}
    for number, task in enumerate(TASKS):
        inputs, labels = blobs(seed + number, samples, number + 1)
        pairs = list(zip(inputs.split(batch), labels.split(batch), strict=True))
        batches = pairs if labelled else [x for x, _ in pairs]
        out[task] = ms.HeldOut(task, batches, net or tuned()[0], task)
    return out
