"""RoIAlign (aligned, adaptive sampling) as a weighted sum of the feature map's positions.

Each bin of a region is the mean of bilinear samples, so it is a sum over few positions whose weights depend on the box
alone. That is torchvision's `roi_align` to rounding, with two differences that matter for speed: bins that a strided
convolution would throw away need not be computed, and the backward pass is a sum too, where `roi_align` on a CPU takes
fifteen times as long as it does forward.
"""

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


def find_bins(boxes: list[Tensor], shape: torch.Size, *, size: int, stride: int, step: int, dtype: torch.dtype) -> Bins:
    """The bins of each image's boxes (r_i, 4), in pixels of the image, on feature maps of a `shape` (N, C, H, W).

    Args:
        size: bins of a box in each direction, of which every `step`-th is kept.
        stride: pixels of the image to one position of the map.
        dtype: of the weights.
    """
    _, _, height, width = shape
    image = torch.repeat_interleave(
        torch.arange(len(boxes), device=boxes[0].device),
        torch.tensor([len(some) for some in boxes], device=boxes[0].device),
    )
    low, high = (torch.cat(boxes).to(dtype) / stride - 0.5).split(2, dim=1)
    x, first_x, many_x = _axis(low[:, 0], high[:, 0], size, step, width)
    y, first_y, many_y = _axis(low[:, 1], high[:, 1], size, step, height)
    side = x.shape[1]
    many = (many_y[:, :, None] * many_x[:, None, :]).flatten()
    ends = many.cumsum(0)
    starts = ends - many
    number = torch.repeat_interleave(many)
    region, row, column = number // side**2, number // side % side, number % side
    nth = torch.arange(len(number), device=number.device) - starts[number]
    across = many_x[region, column]
    at_y, at_x = first_y[region, row] + nth // across, first_x[region, column] + nth % across
    return Bins(
        positions=(image[region] * height + at_y) * width + at_x,
        weights=y[region, row, at_y] * x[region, column, at_x],
        starts=starts,
        side=side,
    )


def _axis(low: Tensor, high: Tensor, size: int, step: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of regions from `low` to `high`, (r,) each: a bin is the mean of ceil(length / size) samples.

    Returns:
        (r, bins, cells) weights; the first cell of each bin that has one, and how many there are, both (r, bins).
    """
    length = (high - low)[:, None, None]
    width = length / size
    samples = width.ceil()  # none where rounding has left no length; such a bin is 0
    bins = torch.arange(0, size, step, device=low.device)[:, None]
    nth = torch.arange(max(1, int(samples.max())) if len(low) else 1, device=low.device)
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
    return weights, first, torch.where(used.any(dim=2), cells - used.flip(2).int().argmax(dim=2) - first, 0)


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
