"""RAM: reinforced agent merging, which treats entries that one model changed unlike shared ones."""

from __future__ import annotations

import torch

from mergescope.merging.methods.method import Parameter, Values, method
from mergescope.merging.streams import Apply, Chunk, Stream

SOURCE = "Reinforced Agent Merging, 2026 (arXiv:2601.13572)"
EPSILON = Parameter("epsilon", 1e-5, low=0, meaning="smaller entries of a task vector count as unchanged")


@method("ram", parameters=[EPSILON], base="required", source=SOURCE)
def ram(stream: Stream, values: Values) -> Apply:
    """RAM: each entry moves by the mean over the models that changed it.

    ``theta_0 + sum_k c_k tau_k / max(1, sum_k c_k)``, where ``c_k`` is 1 where ``|tau_k| > epsilon``.

    Args:
        stream: the tensor of every model and the base.
        values: ``epsilon``.

    Returns:
        The function that merges a chunk.
    """
    return _merge(stream, values["epsilon"], [1.0] * len(stream.models))


@method(
    "ramplus_tl",
    parameters=[
        EPSILON,
        Parameter("r", 0.1, low=0, meaning="how strongly entries of one model alone are amplified"),
        Parameter("alpha", 0.2, low=0, meaning="largest ratio of shared to own entries that counts"),
    ],
    base="required",
    source=SOURCE,
)
def ramplus_tl(stream: Stream, values: Values) -> Apply:
    """RAM+ (tensor-local): as ``ram``, with a model's own entries amplified to make up for its shared ones.

    Entries that model ``k`` alone changed are multiplied by ``1 + r min(alpha, s_k / u_k)``, where
    ``s_k`` counts the entries of the tensor that it shares and ``u_k`` those it has alone.

    Args:
        stream: the tensor of every model and the base.
        values: ``epsilon``, ``r``, ``alpha``.

    Returns:
        The function that merges a chunk.
    """
    epsilon = values["epsilon"]

    def counts(chunk: Chunk) -> torch.Tensor:
        changed = torch.stack([delta.abs_() > epsilon for delta in chunk.deltas])
        alone = changed & (changed.sum(0) == 1)
        return torch.stack([changed.sum((1, 2)), alone.sum((1, 2))])

    changed, alone = stream.reduce(counts)
    ratios = ((changed - alone) / alone.clamp(min=1)).clamp(max=values["alpha"])
    return _merge(stream, epsilon, (1 + values["r"] * ratios).tolist())


def _merge(stream: Stream, epsilon: float, own_scales: list[float]) -> Apply:
    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        deltas = chunk.deltas
        changed = [delta.abs() > epsilon for delta in deltas]
        count = torch.stack(changed).sum(0)
        result = torch.zeros_like(chunk.base)
        for delta, mask, scale in zip(deltas, changed, own_scales, strict=True):
            part = delta.mul_(mask)
            result.add_(part if scale == 1 else torch.where(count == 1, part * scale, part))
        return result.div_(count.clamp_(min=1)).add_(chunk.base)

    return merge
