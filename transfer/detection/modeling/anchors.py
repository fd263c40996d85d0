"""The anchors of one feature map."""

import torch
from torch import Tensor, nn

from transfer.detection.config import ModelConfig


class Anchors(nn.Module):
    """Boxes of every size and aspect ratio (height / width) around the points (stride * column, stride * row).

    Sizes are exact, not rounded, and the stride is the network's, whatever the size of the image. The order is row,
    column, size, ratio.
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
        """(height * width * anchors of a point, 4) float32 boxes of a feature map (height, width)."""
        y = torch.arange(height, dtype=torch.float32, device=self.cells.device) * self.stride
        x = torch.arange(width, dtype=torch.float32, device=self.cells.device) * self.stride
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).repeat(1, 1, 2)
        return (points[:, :, None] + self.cells).reshape(-1, 4)
