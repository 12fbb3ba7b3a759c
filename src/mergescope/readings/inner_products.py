"""Inner products between the features of points: all that cos, coef and gap need."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch

from mergescope.errors import MergescopeError
from mergescope.readings.reading import Batch, place_among, require_layer, require_same_start

CHUNK_BYTES = 4 << 20
"""Float64 copies of features are made in chunks of samples of at most this many bytes: a CPU's cache."""

GPU_CHUNK_BYTES = 64 << 20
"""The same on a GPU, where many small products wait for each other's launch."""


class InnerProducts:
    """The Gram matrix ``G_pq = <f_p(x), f_q(x)>`` per sample and layer, in float64.

    ``f_p(x)`` is the flattened feature of point ``p``. cos, coef and gap of CTL (4.1) and
    of its Eq. 1 to 3 are functions of ``G``; the features themselves are not kept. A small gap
    is a difference of large numbers, so products are formed of ``d_p = f_p - f_o``, where ``o`` is
    the first point: [`differences`][mergescope.InnerProducts.differences] gives these, and
    ``G_pq = |f_o|^2 + <f_o, d_p> + <f_o, d_q> + <d_p, d_q>``. Storage is
    ``8 * samples * layers * (pairs + 2 * points)`` bytes.

    Args:
        groups: sets of points that occur together in a test; only inner products inside a group
            are stored. By default all points form one group.
        local: of the features that layers give when each is fed the reference's input to it.

    Example:
        >>> reading = InnerProducts()
        >>> reading.start(["a", "b"], ["layer"])
        >>> f = [torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])]
        >>> reading.update(Batch({"layer": f}, f, None))
        >>> reading.gram("layer", ["a", "b"])
        array([[[25.,  3.],
                [ 3.,  1.]]])
    """

    needs_features = True

    def __init__(self, groups: Iterable[Iterable[Hashable]] | None = None, *, local: bool = False) -> None:
        self.local = local
        self._groups = None if groups is None else [list(group) for group in groups]
        self.points: list[Hashable] = []
        self.layers: list[str] = []

    def start(self, points: Sequence[Hashable], layers: Sequence[str]) -> None:
        """Fix points and layers.

        Args:
            points: the trace's points, in order.
            layers: the captured layers.

        Raises:
            MergescopeError: the reading was started before, or a group names an unknown point.
        """
        if self.points:
            raise MergescopeError("A reading belongs to one trace: make a new InnerProducts() for each.")
        self.points, self.layers = list(points), list(layers)
        self._index = {point: i for i, point in enumerate(self.points)}
        groups = [self.points] if self._groups is None else self._groups
        unknown = [point for group in groups for point in group if point not in self._index]
        if unknown:
            raise MergescopeError(f"InnerProducts: not points of this trace: {unknown}.")
        pairs = {
            tuple(sorted((self._index[p], self._index[q]))) for group in groups for p in group for q in group
        }
        self._grouped = pairs
        self._pairs = sorted(pairs | {(0, place) for place in range(len(self.points))})
        self._column = {pair: i for i, pair in enumerate(self._pairs)}
        self._rows = torch.tensor([i for i, _ in self._pairs])
        self._cols = torch.tensor([j for _, j in self._pairs])
        self._parts: dict[str, list[np.ndarray]] = {layer: [] for layer in self.layers}
        self._squares: dict[str, list[np.ndarray]] = {layer: [] for layer in self.layers}
        self._units: dict[str, list[np.ndarray]] = {}

    def update(self, batch: Batch) -> None:
        """Add the inner products of a batch.

        Args:
            batch: features of all points.
        """
        for layer, features in (batch.local if self.local else batch.features).items():
            if layer in batch.units:
                self._units.setdefault(layer, []).append(batch.units[layer])
            samples, dim = features[0].shape
            device = features[0].device
            chunk = CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES
            step = max(1, min(samples, chunk // (8 * dim * len(features))))
            rows, cols = self._rows.to(device), self._cols.to(device)
            wide = torch.empty((step, len(features), dim), dtype=torch.float64, device=device)
            for begin in range(0, samples, step):
                stacked = wide[: min(step, samples - begin)]
                for place, feature in enumerate(features):
                    stacked[:, place].copy_(feature[begin : begin + step])
                # The features' own lengths: a dead feature's is exactly 0, and by differences would not be.
                self._squares[layer].append(torch.linalg.vector_norm(stacked, dim=2).square_().cpu().numpy())
                stacked[:, 1:] -= stacked[:, :1]
                gram = stacked @ stacked.mT  # (samples, points, points), of f_o, d_1, d_2, ...
                self._parts[layer].append(gram[:, rows, cols].cpu().numpy())

    def merge(self, other: InnerProducts) -> None:
        """Append the samples of a later part of the pass.

        Args:
            other: a reading of the same points, layers and groups.

        Raises:
            MergescopeError: its points, layers or groups differ.
        """
        require_same_start(self, other)
        if self._grouped != other._grouped or self.local != other.local:
            raise MergescopeError("Only InnerProducts of the same groups can be merged.")
        for layer in self.layers:
            self._parts[layer] += other._parts[layer]
            self._squares[layer] += other._squares[layer]
            if layer in other._units:
                mine, later = self._units.setdefault(layer, []), other._units[layer]
                after = max((int(part.max()) + 1 for part in mine if len(part)), default=0)
                # Parts of one pass count on; a reading that was filled by itself counts from 0.
                anew = min((int(part.min()) for part in later if len(part)), default=after) < after
                mine += [part + after for part in later] if anew else later

    def units(self, layer: str) -> np.ndarray | None:
        """The sample that each row of a layer belongs to.

        Args:
            layer: one of ``layers``.

        Returns:
            ``(rows,)``, or None if every sample gives one row.
        """
        return np.concatenate(self._units[layer]) if layer in self._units else None

    def gram(self, layer: str, points: Sequence[Hashable]) -> np.ndarray:
        """The Gram matrices of some points.

        Args:
            layer: one of ``layers``.
            points: which points, in the order wanted.

        Returns:
            ``(samples, len(points), len(points))``, float64.

        Raises:
            MergescopeError: a pair of these points was in no group.
            LayerError: the layer was not captured.
            PointError: a point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        places = self._places(points)
        products = self._products(layer, [0, *places])
        along = products[:, 0, 1:] * (np.array(places) != 0)  # <f_o, d_p>; d_o is 0
        gram = self._differences(products, places)
        gram += products[:, :1, :1] + along[:, :, None] + along[:, None, :]
        squares = self._joined(self._squares[layer], len(self.points))[:, places]
        same = np.equal.outer(places, places)
        gram[:, same] = np.broadcast_to(squares[:, :, None], gram.shape)[:, same]
        return gram

    def differences(self, layer: str, points: Sequence[Hashable]) -> np.ndarray:
        """The Gram matrices of some points' features less those of the trace's first point.

        Sums ``sum_pq w_p w_q G_pq`` whose weights add up to 0, such as gaps and distances, are the
        same with these in place of [`gram`][mergescope.InnerProducts.gram], without its cancellation.

        Args:
            layer: one of ``layers``.
            points: which points, in the order wanted.

        Returns:
            ``(samples, len(points), len(points))``, float64.

        Raises:
            MergescopeError: a pair of these points was in no group.
            LayerError: the layer was not captured.
            PointError: a point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        places = self._places(points)
        return self._differences(self._products(layer, [0, *places]), places)

    @staticmethod
    def _differences(products: np.ndarray, places: Sequence[int]) -> np.ndarray:
        # Row and column of the first point hold products with its feature; its difference is 0.
        other = (np.array(places) != 0).astype(float)
        return products[:, 1:, 1:] * np.multiply.outer(other, other)

    def _places(self, points: Sequence[Hashable]) -> list[int]:
        places = [place_among(point, self._index) for point in points]
        for i in places:
            for j in places:
                if (min(i, j), max(i, j)) not in self._grouped:
                    names = sorted({str(self.points[i]), str(self.points[j])})
                    raise MergescopeError(
                        f"The inner product of {names} was not traced: put both in one group."
                    )
        return places

    def _products(self, layer: str, places: Sequence[int]) -> np.ndarray:
        require_layer(layer, self.layers)
        columns = [[self._column[min(i, j), max(i, j)] for j in places] for i in places]
        return self._joined(self._parts[layer], len(self._pairs))[:, columns]

    @staticmethod
    def _joined(parts: list[np.ndarray], width: int) -> np.ndarray:
        # Put together once, since every test asks for every layer; batches that come later go behind.
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0] if parts else np.empty((0, width))
