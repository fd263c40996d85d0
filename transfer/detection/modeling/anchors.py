"""Anchors of the region proposal network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transfer.detection.config import ModelConfig


class Anchors(nn.Module):
    """Anchors of the feature maps: boxes of every size and aspect ratio around the points of a grid.

    A single map has all sizes, the levels of a pyramid have one each. The point of a position is (stride * column,
    stride * row). The stride is that of the network for every image size. An aspect ratio is height / width. Sizes are
    not rounded. The order of the boxes is map, row, column, size, ratio.

    Attributes:
        cells: (maps, anchors per position, 4), the anchors around the point (0, 0).
    """

    cells: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.strides = config.strides
        cells = []
        for size in config.anchor_sizes:
            for ratio in config.aspect_ratios:
                width = (size**2 / ratio) ** 0.5
                height = ratio * width
                cells.append([-width / 2, -height / 2, width / 2, height / 2])
        self.register_buffer("cells", torch.tensor(cells).view(len(self.strides), -1, 4), persistent=False)

    def forward(self, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Compute the anchors of feature maps of some shapes (height, width).

        Returns:
            (sum of height * width * anchors per position, 4) float32.
        """
        found = []
        for (height, width), stride, cells in zip(shapes, self.strides, self.cells, strict=True):
            y = torch.arange(height, dtype=torch.float32, device=cells.device) * stride
            x = torch.arange(width, dtype=torch.float32, device=cells.device) * stride
            points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).repeat(1, 1, 2)
            found.append((points[:, :, None] + cells).reshape(-1, 4))
        return torch.cat(found)
