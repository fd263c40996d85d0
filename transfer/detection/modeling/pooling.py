"""RoIAlign (aligned, adaptive sampling) as a weighted sum over positions of the feature map.

A bin of a region is the mean of bilinear samples. So it is a weighted sum over a few positions, and the weights depend
only on the box. The result equals that of torchvision's `roi_align` up to rounding. It is faster for two reasons. Bins
that a strided convolution does not use are not computed. The backward pass is a sum too; on a CPU the backward pass of
`roi_align` takes fifteen times as long as its forward pass.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from intl_bench.core.copies import send


class Bins(NamedTuple):
    """The positions and weights of all bins, one bin after the other.

    Attributes:
        positions: (p,) int64, indices of the flattened maps (N, H, W), one map after the other.
        weights: (p,), weight of each position.
        starts: (bins,) int64, index of the first position of each bin.
        side: number of bins of a region in each direction.
    """

    positions: Tensor
    weights: Tensor
    starts: Tensor
    side: int


class _Axis(NamedTuple):
    """The bins of r regions in one direction, x or y.

    Attributes:
        weights: (r, bins, cells), weight of each cell of the map in this direction.
        first: (r, bins) int64, the first cell with a positive weight.
        counts: (r, bins) int64, number of cells from the first to the last with a positive weight.
    """

    weights: Tensor
    first: Tensor
    counts: Tensor

    def take_every(self, step: int) -> "_Axis":
        """Keep the bins 0, step, 2 step, ... of each region."""
        return _Axis(self.weights[:, ::step], self.first[:, ::step], self.counts[:, ::step])


def images_of(boxes: list[Tensor]) -> Tensor:
    """Return the index of the image of each box, given the boxes of each image; (sum of r_i,) int64."""
    return torch.cat([torch.full((len(own),), n, device=own.device) for n, own in enumerate(boxes)])


def compute_bins(
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    shapes: Sequence[torch.Size],
    strides: Sequence[int],
    *,
    size: int,
    steps: Sequence[int],
    dtype: torch.dtype,
) -> list[Bins]:
    """Compute the bins of boxes on feature maps, each box on one of them.

    Args:
        boxes: (r, 4), boxes inside their image, in pixels of the image. A box longer than the map gets fewer samples
            than in `roi_align`.
        images, levels: (r,) int64, image and map of each box.
        shapes: (N, C, H, W) of each map.
        strides: for each map, the distance in image pixels between two of its positions.
        size: number of bins of a box in each direction.
        steps: the step between the kept bins in both directions, for each result.
        dtype: type of the weights.

    Returns:
        One `Bins` for each step.
    """
    starts = itertools.accumulate((n * height * width for n, _, height, width in shapes), initial=0)
    table = [(*shape[2:], stride, start) for shape, stride, start in zip(shapes, strides, starts, strict=False)]
    heights, widths, stride, start = send(torch.tensor(table), boxes.device)[levels].unbind(1)
    low, high = (boxes.to(dtype) / stride[:, None] - 0.5).split(2, dim=1)
    x, y = (
        _compute_axis(low[:, n], high[:, n], size, cells, max(shape[3 - n] for shape in shapes))
        for n, cells in enumerate((widths, heights))
    )
    kept = [(x.take_every(step), y.take_every(step)) for step in steps]
    counts = [(y.counts[:, :, None] * x.counts[:, None, :]).flatten() for x, y in kept]
    totals = torch.stack([own.sum() for own in counts]).cpu().tolist()  # the only place where the host waits
    start = start + images * heights * widths
    return [_join_axes(*axes, own, total, start, widths) for axes, own, total in zip(kept, counts, totals, strict=True)]


def _join_axes(x: _Axis, y: _Axis, counts: Tensor, total: int, start: Tensor, width: Tensor) -> Bins:
    """Combine the two directions to bins.

    Args:
        counts: (regions * side * side,) int64, number of positions of each bin.
        total: sum of the counts.
        start, width: (regions,) int64, first position and width of the map of each region in its image.
    """
    side = x.counts.shape[1]
    starts = counts.cumsum(0) - counts
    bin_index = torch.repeat_interleave(counts, output_size=total)
    region, row, column = bin_index // side**2, bin_index // side % side, bin_index % side
    nth = torch.arange(total, device=bin_index.device) - starts[bin_index]
    across = x.counts[region, column]
    at_y, at_x = y.first[region, row] + nth // across, x.first[region, column] + nth % across
    return Bins(
        positions=start[region] + at_y * width[region] + at_x,
        weights=y.weights[region, row, at_y] * x.weights[region, column, at_x],
        starts=starts,
        side=side,
    )


def _compute_axis(low: Tensor, high: Tensor, size: int, cells: Tensor, largest: int) -> _Axis:
    """Compute one direction of regions from `low` to `high`, (r,) each, in cells of maps with `cells` (r,) of them.

    A bin is the mean of ceil(length / size) samples.

    Args:
        largest: number of cells of the largest map.
    """
    cells = cells[:, None, None]
    length = (high - low)[:, None, None]
    width = length / size
    # An upper bound for regions inside the map. The host would have to wait for the actual largest number.
    samples = width.ceil().clamp(max=-(-cells // size))  # 0 if the length was rounded to 0; such a bin is 0
    bins = torch.arange(size, device=low.device)[:, None]
    nth = torch.arange(-(-largest // size), device=low.device)
    place = low[:, None, None] + bins * width + (nth + 0.5) * width / samples.clamp(min=1)
    # As in torchvision, a sample more than one cell outside the map is 0. A nearer one has the value at the border.
    share = ((nth < samples) & (place >= -1) & (place <= cells)) / samples.clamp(min=1)
    place = place.clamp(min=0).clamp(max=cells - 1)
    below = place.floor()
    part = place - below
    weights = low.new_zeros((len(low), len(bins), largest))
    weights.scatter_add_(2, below.long(), share * (1 - part))
    weights.scatter_add_(2, (below.long() + 1).clamp(max=cells - 1), share * part)
    used = weights > 0
    first = used.int().argmax(dim=2)
    counts = torch.where(used.any(dim=2), largest - used.flip(2).int().argmax(dim=2) - first, 0)
    return _Axis(weights, first, counts)


def pool(maps: Sequence[Tensor], bins: Bins) -> Tensor:
    """Sum the weighted positions of each bin in the maps, each (N, C, H, W).

    Returns:
        (regions, C, side, side). In training the result has the memory format of the maps, because channels-last batch
        norms and convolutions on a CPU have ten times the rounding error and gain little speed. In test the result is
        channels-last, which is a quarter faster.
    """
    parts = [own.permute(0, 2, 3, 1).flatten(0, 2) for own in maps]
    rows = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(bins.weights.dtype)
    if not torch.is_grad_enabled():
        # A CPU sums contiguous rows in a third of the time. In training this would save 2% of a step and would change
        # the order of the sum. Its rounding decides which of the activations near 0 have a gradient.
        rows = rows.contiguous()
    sums = F.embedding_bag(bins.positions, rows, bins.starts, mode="sum", per_sample_weights=bins.weights)
    pooled = sums.to(maps[0].dtype).unflatten(0, (-1, bins.side, bins.side)).permute(0, 3, 1, 2)
    return pooled.contiguous() if torch.is_grad_enabled() and maps[0].is_contiguous() else pooled
