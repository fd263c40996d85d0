"""Anchors of the region proposal network."""

import torch
from torch import Tensor, nn

from transfer.detection.config import ModelConfig


class Anchors(nn.Module):
    """Anchors of one feature map: boxes of every size and aspect ratio around the points of a grid.

    The point of a position is (stride * column, stride * row). The stride is that of the network for every image size.
    An aspect ratio is height / width. Sizes are not rounded. The order of the boxes is row, column, size, ratio.
    """

    cells: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stride = config.stride
        cells = []
        for size in config.anchor_sizes:
            for ratio in config.aspect_ratios:
                width = (size**2 / ratio) ** 0.5
                height = ratio * width
                cells.append([-width / 2, -height / 2, width / 2, height / 2])
        self.register_buffer("cells", torch.tensor(cells), persistent=False)

    def forward(self, height: int, width: int) -> Tensor:
        """Compute the anchors of a feature map (height, width).

        Returns:
            (height * width * anchors per point, 4) float32.
        """
        y = torch.arange(height, dtype=torch.float32, device=self.cells.device) * self.stride
        x = torch.arange(width, dtype=torch.float32, device=self.cells.device) * self.stride
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).repeat(1, 1, 2)
        return (points[:, :, None] + self.cells).reshape(-1, 4)
