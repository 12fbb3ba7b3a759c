"""Losses and Hessians the slow way: sample by sample, and every entry of the matrix."""

import copy

import torch
from torch.func import functional_call
from torch.nn import functional as F

import mergescope as ms


def doubled(net, names=("base", "a", "b", "c"), scale=0.1, seed=1):
    """A copy of a network in float64, and checkpoints around it."""
    net = copy.deepcopy(net).double().eval()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name in names:
        state = {}
        for key, value in net.state_dict().items():
            moved = torch.randn(value.shape, generator=generator).double() * scale if found else 0.0
            floating = value.is_floating_point() and not key.endswith("running_var")
            state[key] = value + moved if floating else value.clone()
        found.append(ms.Checkpoint(state, name=name))
    return net, found


def double_batches(batches):
    return [(x.double(), y) for x, y in batches]


def mean_loss(net, batches, classes=None):
    """Of classes: over all samples; of texts: over texts of the mean over next tokens."""
    losses = []
    for batch in batches:
        if isinstance(batch, dict) and "labels" not in batch:
            logits = net(**batch).logits
            for row, ids, mask in zip(logits, batch["input_ids"], batch["attention_mask"], strict=True):
                row, ids = row[mask == 1], ids[mask == 1]
                if len(ids) > 1:
                    losses.append(F.cross_entropy(row[:-1], ids[1:]))
            continue
        if isinstance(batch, dict):
            labels = batch["labels"]
            logits = net(**{key: value for key, value in batch.items() if key != "labels"}).logits
        else:
            logits, labels = net(batch[0]), batch[1]
        logits = getattr(logits, "logits", logits)
        for row, label in zip(logits, labels, strict=True):
            kept = list(range(len(row))) if classes is None else sorted(classes)
            losses.append(F.cross_entropy(row[kept], torch.tensor(kept.index(int(label)))))
    return torch.stack(losses).mean()


def loss_at(net, point, batches, classes=None):
    """The loss as a function of all parameters in one vector, and that vector at a point."""
    names = [name for name, _ in net.named_parameters()]
    state = {key: value.double() for key, value in point.state_dict().items()}
    sizes = [state[name].numel() for name in names]
    rest = {key: value for key, value in state.items() if key not in names and value.ndim}

    def loss(flat):
        pieces = flat.split(sizes)
        swapped = {name: piece.view(state[name].shape) for name, piece in zip(names, pieces, strict=True)}
        return mean_loss(Called(net, {**rest, **swapped}), batches, classes)

    return loss, torch.cat([state[name].flatten() for name in names])


def exact_hessian(net, point, batches, classes=None):
    """By torch; not for networks with LayerNorm, for which torch 2.13 gives wrong ones under vmap."""
    loss, flat = loss_at(net, point, batches, classes)
    return torch.func.hessian(loss)(flat).detach().numpy()


def differenced_products(net, point, vectors, batches, step=1e-5):
    """``H v`` by differences of the gradient."""
    loss, flat = loss_at(net, point, batches)

    def gradient(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]

    return torch.stack([
        (gradient(flat + step * v) - gradient(flat - step * v)) / (2 * step) for v in vectors
    ])


class Called:
    """A network with other weights."""

    def __init__(self, net, weights):
        self.net, self.weights = net, weights

    def __call__(self, *args, **kwargs):
        return functional_call(self.net, self.weights, args, kwargs)


def differenced_curvature(net, point, direction, batches, classes=None, step=1e-2):
    """``d^T H d`` by a difference of gradients."""
    net, slopes = copy.deepcopy(net), []
    for factor in (step, -step):
        net.load_state_dict((point + factor * direction).state_dict())
        weights = dict(net.named_parameters())
        gradients = torch.autograd.grad(
            mean_loss(net, batches, classes), list(weights.values()), allow_unused=True
        )
        slopes.append(
            sum(
                float((direction.tensor(name) * gradient).sum())
                for name, gradient in zip(weights, gradients, strict=True)
                if gradient is not None
            )
        )
    return (slopes[0] - slopes[1]) / (2 * step)
