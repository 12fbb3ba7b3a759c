"""Second derivatives of a loss: Hessian-vector products over whole data, streamed batch by batch.

``H(theta) = d^2/d theta^2  1/N sum_i l(theta; x_i)`` with the losses that
[`evaluate`][mergescope.protocols.evaluation.evaluate] averages: the cross-entropy of a sample over its task's
classes, or of a text the mean over its next tokens.

Products are made by double backward: the gradient's graph is made once a batch, and gone back through once a
vector. With one thread (four-layer ViT; ResNet-20; batches of 64, in forward passes): 11 and 7 for a vector, 7 and 5
to 6 for every further one, against 12 and 10 for a Jacobian-vector product of the gradient. The other ways give wrong
numbers without a word: in torch 2.13 a Jacobian-vector product of a Jacobian-vector product, or a gradient of one,
takes the means and variances of LayerNorm, and of BatchNorm on a batch, as constants; under ``vmap`` (so for
``torch.func.hessian``), LayerNorm with weights has wrong second derivatives as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mergescope.errors import CheckpointError, DataError, MergescopeError, did_you_mean
from mergescope.models.batchnorm import released
from mergescope.models.calling import split_batch, to_device
from mergescope.models.features import Features, NextTokens
from mergescope.models.loading import key_map
from mergescope.models.with_head import WithHead
from mergescope.training.kernels import differentiable_kernels, make_differentiable
from mergescope.training.linearized import Linearized
from mergescope.training.objective import masked, require_labels
from mergescope.training.tangents import called_with
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

BATCHNORM = {
    "eval": "running statistics, as stored with the weights: part of the point, but no coordinates of the Hessian",
    "batch": "the statistics of each batch, through which the loss is differentiated; results depend on the batches",
}
"""What BatchNorm layers that keep running statistics do. Those that keep none use the batch's in either mode."""

ONCE = "once_differentiable"
"""How authors of an operation mark that it has no second derivative."""

EXACT = (torch.float32, torch.float64)
"""What a network must compute in: half precision leaves nothing of a second derivative."""


class Hessian:
    """The Hessian of the mean loss at a point, as products with vectors.

    Coordinates are the network's floating-point parameters that points fill, each once if tied; neither a fixed head
    nor running statistics. The network is in evaluation mode during a pass, and its weights are left alone.

    Args:
        network: the architecture. Attention without second derivatives is replaced, and stays so.
        batches: labelled data, or texts for a causal language model; passed over once for each call.
        point: where.
        fixed: state-dict entries that the point does not fill: a task's own head.
        classes: the task's classes; other logits are masked.
        batchnorm: one of [`BATCHNORM`][].

    Attributes:
        names: of the parameters, in the order of the coordinates.
        size: number of coordinates.
        passes: batches passed so far.
        samples: with a loss, in a pass; 0 before the first.
        notes: what was replaced in the network, and why.

    Raises:
        MergescopeError: there is no such mode, or a network that has no Hessian: linearised, in half precision or
            without memory.
        MismatchError: keys or shapes don't fit.

    Example:
        >>> from mergescope import MLP, Checkpoint
        >>> _ = torch.manual_seed(0)
        >>> net = MLP((2, 2))
        >>> base = Checkpoint(net.state_dict(), name="base")
        >>> found = Hessian(net, [(torch.zeros(3, 2), torch.tensor([0, 1, 1]))], base)
        >>> bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])  # adding to all logits changes no probability
        >>> found.size, bool(found.products(bias[None]).abs().max() < 1e-7)
        (6, True)
    """  # noqa: DOC502 (raised by what this calls)

    def __init__(
        self,
        network: nn.Module,
        batches: Iterable[Any],
        point: Point | TensorSource,
        *,
        fixed: Collection[str] = (),
        classes: Sequence[int] | None = None,
        batchnorm: str = "eval",
    ) -> None:
        require_batchnorm(batchnorm)
        self.point = Point.of(point)
        self._network, self._batches, self._fixed = network, batches, fixed
        self._features, self._classes, self._batchnorm = Features.of(network), classes, batchnorm
        mapping = key_map(network, self.point, fixed)
        entries = network.state_dict(keep_vars=True)
        filled = {id(entries[name]) for name in mapping}
        self._parameters = {
            name: entry
            for name, entry in network.named_parameters()
            if id(entry) in filled and entry.is_floating_point()
        }
        _require_differentiable(network, self._parameters.values())
        self.names = tuple(self._parameters)
        self._sizes = [entry.numel() for entry in self._parameters.values()]
        self.size = sum(self._sizes)
        first = next(iter(self._parameters.values()))
        self._device, self._dtype = first.device, first.dtype
        self._weights = self._tensors(self.point)
        own = {id(entry) for entry in self._parameters.values()}
        self._others = {
            id(entries[name]): self.point.tensor(key).to(entries[name].device, entries[name].dtype)
            for name, key in mapping.items()
            if id(entries[name]) not in own
        }
        self.passes = self.samples = 0
        self._checked = False
        self.notes = make_differentiable(network)

    @property
    def shape(self) -> tuple[int, int]:
        """``(size, size)``."""
        return self.size, self.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the network computes in."""
        return np.dtype(str(self._dtype).removeprefix("torch."))

    def flat(self, direction: Point | TensorSource) -> torch.Tensor:
        """A direction (or any point) as a vector of coordinates.

        Args:
            direction: of the same checkpoints' tensors.

        Returns:
            ``(size,)``, in the network's dtype and on its device.

        Raises:
            MismatchError: keys or shapes don't fit.
        """  # noqa: DOC502 (raised by what this calls)
        return torch.cat([value.flatten() for value in self._tensors(Point.of(direction))])

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        """``H v`` for several vectors, in one pass of the data.

        Args:
            vectors: ``(count, size)``.

        Returns:
            ``(count, size)``; memory is that of both, and of one batch's graph.

        Raises:
            DataError: labels are missing or don't fit, or there is no sample with a loss.
            CheckpointError: a product is NaN or infinite.
            MergescopeError: vectors of another length, or an operation of the network has no second derivative.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise MergescopeError(
                f"Hessian-vector products take vectors (count, {self.size}), got {list(vectors.shape)}. Make them by "
                "flat()."
            )
        vectors = vectors.to(self._device, self._dtype)
        total, samples = torch.zeros_like(vectors), 0
        with self._running():
            for batch in self._batches:
                inputs, labels = (to_device(part, self._device) for part in split_batch(batch))
                samples += self._add(total, vectors, inputs, labels)
                self.passes += 1
        if not samples:
            raise DataError("There is no sample with a loss, so there is no Hessian. Give labelled data.")
        self.samples = samples
        if not torch.isfinite(total).all():
            raise CheckpointError(
                f"Second derivatives of {type(self._network).__name__} are NaN or infinite at {self.point!r}. Look for "
                f"exploded weights in {', '.join(source.name for source in self.point.checkpoints)}."
            )
        return total / samples

    def matvec(self, vector: np.ndarray) -> np.ndarray:
        """``H v``.

        Args:
            vector: ``(size,)`` or ``(size, 1)``.

        Returns:
            ``(size,)``.
        """
        row = torch.from_numpy(np.array(vector, dtype=self.dtype).reshape(1, -1))
        return self.products(row)[0].cpu().numpy()

    def operator(self) -> Any:
        """The Hessian as scipy's ``LinearOperator``, for its eigensolvers.

        Returns:
            A symmetric ``scipy.sparse.linalg.LinearOperator``.

        Raises:
            MergescopeError: scipy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise MergescopeError(
                "A LinearOperator is scipy's, which is not installed: pip install scipy. Without it, use lanczos()."
            ) from error
        return LinearOperator(self.shape, matvec=self.matvec, rmatvec=self.matvec, dtype=self.dtype)

    def _tensors(self, point: Point) -> list[torch.Tensor]:
        entries = self._network.state_dict(keep_vars=True)
        # One of several names of a tied tensor may be all that a checkpoint has.
        keys = {id(entries[name]): key for name, key in key_map(self._network, point, self._fixed).items()}
        return [
            point.tensor(keys[id(entry)]).detach().to(self._device, self._dtype)
            for entry in self._parameters.values()
        ]

    def _add(
        self, total: torch.Tensor, vectors: torch.Tensor, inputs: Any, labels: torch.Tensor | None
    ) -> int:
        weights = [weight.detach().requires_grad_() for weight in self._weights]
        places = map(id, self._parameters.values())
        values = {**self._others, **dict(zip(places, weights, strict=True))}

        def run(*args: Any, **kwargs: Any) -> Any:
            return called_with(self._network, values, args, kwargs)

        network: Any = run
        output = self._features.output(self._features.call(network, inputs), inputs, labels)
        loss, samples = summed_loss(output, labels, self._classes)
        if not samples:
            return 0
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        if not self._checked:
            _require_twice([gradient.grad_fn for gradient in gradients if gradient is not None])
            self._checked = True
        # Weights that the loss does not depend on, or only linearly.
        curved = [
            i for i, gradient in enumerate(gradients) if gradient is not None and gradient.requires_grad
        ]
        if not curved:
            return samples
        for number, (row, vector) in enumerate(zip(total, vectors, strict=True)):
            parts = vector.split(self._sizes)
            second = torch.autograd.grad(
                [gradients[i] for i in curved], weights, [parts[i].view_as(weights[i]) for i in curved],
                retain_graph=number + 1 < len(vectors), allow_unused=True,
            )  # fmt: skip
            for piece, found in zip(row.split(self._sizes), second, strict=True):
                if found is not None:
                    piece.add_(found.flatten())
        return samples

    @contextmanager
    def _running(self) -> Iterator[None]:
        name = type(self._network).__name__
        modes = {module: module.training for module in self._network.modules()}
        norms = [m for m in modes if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._network.eval()
        try:
            if self._batchnorm == "batch":
                for norm in norms:  # statistics of the batch, and none are kept
                    norm.training, norm.track_running_stats = True, False
            with released(norms), differentiable_kernels(name), torch.enable_grad():
                try:
                    yield
                except RuntimeError as error:
                    if not any(
                        words in str(error) for words in ("not implemented", "differentiate twice", ONCE)
                    ):
                        raise
                    raise MergescopeError(
                        f"{name} has no Hessian, since one of its operations has no second derivative: "
                        f"{str(error).splitlines()[0].rstrip('.')}. Choose another implementation of it in the "
                        "network's configuration."
                    ) from error
        finally:
            for norm in norms:
                norm.track_running_stats = True
            for module, mode in modes.items():
                module.training = mode


def summed_loss(
    output: torch.Tensor | NextTokens, labels: torch.Tensor | None, classes: Sequence[int] | None
) -> tuple[torch.Tensor, int]:
    """Cross-entropy summed over the samples of a batch.

    Args:
        output: logits ``(batch, classes)``, or what a causal language model says of texts.
        labels: ``(batch,)``; not looked at for texts.
        classes: the task's classes; other logits are masked.

    Returns:
        The sum (of a text, of the mean over its tokens), and how many samples have a loss.

    Raises:
        DataError: labels are missing or don't fit, or there are no logits.

    Example:
        >>> summed_loss(torch.zeros(2, 4), torch.tensor([0, 1]), (0, 1))
        (tensor(1.3863), 2)
    """
    if isinstance(output, NextTokens):
        counts = output.counts.sum(1)
        present = counts > 0
        texts = output.losses.masked_fill(~output.counts, 0).sum(1)[present] / counts[present]
        return texts.sum(), int(present.sum())
    if labels is None:
        raise DataError("A loss needs labels: yield (inputs, labels).")
    if output.ndim != 2 or labels.shape != output.shape[:1]:
        raise DataError(
            f"A loss needs logits (batch, classes) and a label for each sample, got {list(output.shape)} and "
            f"{list(labels.shape)}. Give a network with a head for this task."
        )
    require_labels(labels, output.shape[-1], classes)
    return F.cross_entropy(masked(output, classes), labels, reduction="sum"), len(labels)


def require_batchnorm(mode: str) -> None:
    """Refuse a mode that does not exist.

    Args:
        mode: what BatchNorm should do.

    Raises:
        MergescopeError: it is none of [`BATCHNORM`][].
    """
    if mode not in BATCHNORM:
        raise MergescopeError(
            f"BatchNorm has no mode {mode!r}.{did_you_mean(mode, BATCHNORM)} Choose one of: "
            f"{'; '.join(f'{name} ({meaning})' for name, meaning in BATCHNORM.items())}."
        )


def _require_twice(nodes: list[Any]) -> None:
    # Where an operation can be differentiated once only, torch ends the gradient's graph by a node that raises an
    # error, but nothing leads through it to the weights: the terms behind it would be left out silently.
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise RuntimeError(f"an autograd function is marked as {ONCE}")
        nodes += [following for following, _ in node.next_functions]


def _require_differentiable(network: nn.Module, parameters: Collection[nn.Parameter]) -> None:
    name = type(network).__name__
    inner = network.backbone if isinstance(network, WithHead) else network
    if isinstance(inner, Linearized):
        raise MergescopeError(
            f"A linearised {type(inner.network).__name__} has no second derivatives of its own. Measure curvature in "
            "the ordinary network."
        )
    if not parameters:
        raise MergescopeError(
            f"{name} has no weight that the points change, so there is no Hessian. Fix the head only."
        )
    if any(entry.is_meta for entry in parameters):
        raise MergescopeError(
            f"{name} has no memory for its weights (it is meant for the streamed executor), and a Hessian needs the "
            "whole network. Load it by load_model()."
        )
    dtypes = {entry.dtype for entry in parameters}
    if len(dtypes) > 1 or not dtypes <= set(EXACT):
        said = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise MergescopeError(
            f"{name} computes in {said}, in which second derivatives are lost. Load it with dtype='float32'."
        )
