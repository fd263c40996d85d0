"""RoIAlign (aligned, adaptive sampling) as a weighted sum of the feature map's positions.

Each bin of a region is the mean of bilinear samples, so it is a sum over few positions whose weights depend on the box
alone. That is torchvision's `roi_align` to rounding, with two differences that matter for speed: bins that a strided
convolution would throw away need not be computed, and the backward pass is a sum too, where `roi_align` on a CPU takes
fifteen times as long as it does forward.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Bins(NamedTuple):
    """Every bin's positions in the maps of all images, one after the other, and their weights.

    Attributes:
        positions: (p,) int64, into the maps (N, H, W) flattened.
        weights: (p,).
        starts: (bins,) int64, where each bin's positions begin.
        side: bins of a region in each direction.
    """

    positions: Tensor
    weights: Tensor
    starts: Tensor
    side: int


class _Axis(NamedTuple):
    """One direction of r regions.

    Attributes:
        weights: (r, bins, cells).
        first: (r, bins) int64, the first cell of each bin that has one.
        many: (r, bins) int64, how many cells each bin has.
    """

    weights: Tensor
    first: Tensor
    many: Tensor

    def every(self, step: int) -> "_Axis":
        """The first of each `step` bins."""
        return _Axis(self.weights[:, ::step], self.first[:, ::step], self.many[:, ::step])


def find_bins(
    boxes: list[Tensor], shape: torch.Size, *, size: int, stride: int, steps: Sequence[int], dtype: torch.dtype
) -> list[Bins]:
    """The bins of each image's boxes (r_i, 4), in pixels of the image, on feature maps of a `shape` (N, C, H, W).

    Args:
        boxes: inside the image. One that is longer than the map gets fewer samples than in `roi_align`.
        size: bins of a box in each direction.
        stride: pixels of the image to one position of the map.
        steps: every how many-th of the bins is kept in both directions, for each result.
        dtype: of the weights.
    """
    _, _, height, width = shape
    image = torch.cat([torch.full((len(some),), n, device=some.device) for n, some in enumerate(boxes)])
    low, high = (torch.cat(boxes).to(dtype) / stride - 0.5).split(2, dim=1)
    x, y = (_axis(low[:, n], high[:, n], size, cells) for n, cells in enumerate((width, height)))
    kept = [(x.every(step), y.every(step)) for step in steps]
    many = [(y.many[:, :, None] * x.many[:, None, :]).flatten() for x, y in kept]
    totals = torch.stack([some.sum() for some in many]).cpu().tolist()  # the host waits here alone
    return [_bins(*axes, number, total, image) for axes, number, total in zip(kept, many, totals, strict=True)]


def _bins(x: _Axis, y: _Axis, many: Tensor, total: int, image: Tensor) -> Bins:
    """The bins from their two directions.

    Args:
        many: (regions * side * side,) int64, positions of each bin.
        total: their sum.
        image: (regions,) int64, of each region.
    """
    side, height, width = x.many.shape[1], y.weights.shape[2], x.weights.shape[2]
    starts = many.cumsum(0) - many
    number = torch.repeat_interleave(many, output_size=total)
    region, row, column = number // side**2, number // side % side, number % side
    nth = torch.arange(total, device=number.device) - starts[number]
    across = x.many[region, column]
    at_y, at_x = y.first[region, row] + nth // across, x.first[region, column] + nth % across
    return Bins(
        positions=(image[region] * height + at_y) * width + at_x,
        weights=y.weights[region, row, at_y] * x.weights[region, column, at_x],
        starts=starts,
        side=side,
    )


def _axis(low: Tensor, high: Tensor, size: int, cells: int) -> _Axis:
    """One direction of regions from `low` to `high`, (r,) each: a bin is the mean of ceil(length / size) samples."""
    length = (high - low)[:, None, None]
    width = length / size
    most = -(-cells // size)  # of a region inside the map; to ask for the largest number the host would have to wait
    samples = width.ceil().clamp(max=most)  # none where rounding has left no length; such a bin is 0
    bins = torch.arange(size, device=low.device)[:, None]
    nth = torch.arange(most, device=low.device)
    place = low[:, None, None] + bins * width + (nth + 0.5) * width / samples.clamp(min=1)
    # As in torchvision: a sample farther than one cell outside counts as 0, a nearer one as the cell at the border.
    share = ((nth < samples) & (place >= -1) & (place <= cells)) / samples.clamp(min=1)
    place = place.clamp(0, cells - 1)
    below = place.floor()
    part = place - below
    weights = low.new_zeros((len(low), len(bins), cells))
    weights.scatter_add_(2, below.long(), share * (1 - part))
    weights.scatter_add_(2, (below.long() + 1).clamp(max=cells - 1), share * part)
    used = weights > 0
    first = used.int().argmax(dim=2)
    many = torch.where(used.any(dim=2), cells - used.flip(2).int().argmax(dim=2) - first, 0)
    return _Axis(weights, first, many)


def pool(features: Tensor, bins: Bins) -> Tensor:
    """Maps (N, C, H, W) -> (regions, C, side, side).

    In training the result has the maps' memory format, for channels-last batch norms and convolutions round ten times
    coarser on a CPU and gain little there; in test it is channels-last, which is a quarter faster.
    """
    rows = features.to(bins.weights.dtype).permute(0, 2, 3, 1).flatten(0, 2)
    if not torch.is_grad_enabled():
        # A CPU adds contiguous rows up in a third of the time; in training that is 2% of a step, and not in the order
        # of `roi_align`, whose rounding decides which of the activations near 0 have a gradient.
        rows = rows.contiguous()
    sums = F.embedding_bag(bins.positions, rows, bins.starts, mode="sum", per_sample_weights=bins.weights)
    pooled = sums.to(features.dtype).unflatten(0, (-1, bins.side, bins.side)).permute(0, 3, 1, 2)
    return pooled.contiguous() if torch.is_grad_enabled() and features.is_contiguous() else pooled
