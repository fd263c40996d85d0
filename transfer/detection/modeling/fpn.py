"""The feature pyramid and the heads of Mask R-CNN R50-FPN, with the names and the initialization of Detectron2.

Norms are batch norms. The pyramid always has them. The heads have them with `box_head: 4conv1fc` (SoCo, PyContrast and
InstanceLoc), and not with `2fc` (OpenSelfSup, and Detectron2's own configurations).
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer.detection.config import ModelConfig
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.pooling import compute_bins, images_of, pool
from transfer.detection.modeling.resnet import ConvNorm, Stem, build_stage, stage_channels
from transfer.detection.modeling.roi_heads import BoxPredictor, MaskHead, RoIHeads

_STAGES = (2, 3, 4, 5)
_CONVOLUTIONS = 4
# A region with an area of 224 x 224 pixels is pooled from the level with stride 16 (Lin et al. 2017, equation 1).
_USUAL_SIDE, _USUAL_LEVEL = 224, 4


def _initialize(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw weights as `c2_xavier_fill` of fvcore does: uniform with variance 1 / fan-in. The bias, if any, is 0."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class BottomUp(nn.Module):
    """The whole network: normalized images (N, 3, H, W) -> features of the stages 2 to 5."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stem = Stem(config)
        self.res2, self.res3, self.res4, self.res5 = (build_stage(config, stage) for stage in _STAGES)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, found = self.stem(images), []
        for stage in (self.res2, self.res3, self.res4, self.res5):
            x = stage(x)
            found.append(x)
        return found


class Pyramid(nn.Module):
    """The feature pyramid: normalized images (N, 3, H, W) -> p2, p3, p4, p5 and p6, all with `fpn_channels`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bottom_up = BottomUp(config)
        for stage in _STAGES:
            lateral = ConvNorm(stage_channels(config, stage), config.fpn_channels, 1)
            output = ConvNorm(config.fpn_channels, config.fpn_channels, 3)
            for name, layer in ((f"fpn_lateral{stage}", lateral), (f"fpn_output{stage}", output)):
                _initialize(layer)
                self.add_module(name, layer)

    def forward(self, images: Tensor) -> list[Tensor]:
        above: Tensor | None = None
        levels: list[Tensor] = []
        for stage, features in reversed(list(zip(_STAGES, self.bottom_up(images), strict=True))):
            x = self.get_submodule(f"fpn_lateral{stage}")(features)
            if above is not None:
                x = x + F.interpolate(above, size=x.shape[2:], mode="nearest")
            levels.insert(0, self.get_submodule(f"fpn_output{stage}")(x))
            above = x
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]


class BoxHead(nn.Sequential):
    """The layers between a pooled region (r, C, s, s) and the predictor (r, F)."""

    def __init__(self, config: ModelConfig) -> None:
        convolutions, linear = (_CONVOLUTIONS, 1) if config.box_head == "4conv1fc" else (0, 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for n in range(1, convolutions + 1):
            layers[f"conv{n}"] = ConvNorm(config.fpn_channels, config.fpn_channels, 3)
            layers[f"conv{n}_relu"] = nn.ReLU(inplace=True)
        layers["flatten"] = nn.Flatten()
        width = config.fpn_channels * config.pool_size**2
        for n in range(1, linear + 1):
            layers[f"fc{n}"] = layer = nn.Linear(width, config.fc_channels)
            _initialize(layer)
            layers[f"fc{n}_relu"] = nn.ReLU(inplace=True)
            width = config.fc_channels
        super().__init__(layers)


class PyramidMaskHead(MaskHead):
    """Four convolutions before the mask head of R50-C4."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.mask_channels, config)
        channels, normed = config.fpn_channels, config.box_head == "4conv1fc"
        for n in range(1, _CONVOLUTIONS + 1):
            layer: nn.Conv2d = ConvNorm(channels, config.mask_channels, 3)
            if not normed:
                layer = nn.Conv2d(channels, config.mask_channels, 3, padding=1)
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
            self.add_module(f"mask_fcn{n}", layer)
            channels = config.mask_channels

    def forward(self, features: Tensor) -> Tensor:
        for n in range(1, _CONVOLUTIONS + 1):
            features = F.relu_(self.get_submodule(f"mask_fcn{n}")(features))
        return super().forward(features)


class PyramidHeads(RoIHeads):
    """The heads of R50-FPN. Each region is pooled from the level of its size, for boxes and for masks separately."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.box_head = BoxHead(config)
        self.box_predictor = BoxPredictor(config.fc_channels, config.num_classes)
        self.mask_head = PyramidMaskHead(config) if config.masks else None

    def prepare(self, features: list[Tensor]) -> Sequence[Tensor]:
        return features[: len(_STAGES)]

    def pool(self, maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        return self._pool(maps, boxes, self.config.pool_size)

    def summarize(self, pooled: Tensor) -> Tensor:
        vectors: Tensor = self.box_head(pooled)
        return vectors

    def pool_for_masks(self, maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        return self._pool(maps, boxes, 2 * self.config.pool_size)

    def _pool(self, maps: Sequence[Tensor], boxes: list[Tensor], size: int) -> Tensor:
        """Pool every region from the level of its size, (sum of r_i, C, size, size) in the order of the boxes."""
        strides, joined = self.config.strides[: len(maps)], torch.cat(boxes)
        (bins,) = compute_bins(
            joined,
            images_of(boxes),
            assign_levels(joined, strides),
            [level.shape for level in maps],
            strides,
            size=size,
            steps=(1,),
            # Half precision has too few digits for positions in an image.
            dtype=torch.promote_types(maps[0].dtype, torch.float32),
        )
        return pool(maps, bins)


def assign_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Assign each box (r, 4) to a level of the pyramid.

    Args:
        strides: of the levels, powers of 2.

    Returns:
        (r,) int64, index of the level.
    """
    sides = box_ops.area(boxes).sqrt()
    first = int(math.log2(strides[0]))
    levels = torch.floor(_USUAL_LEVEL + torch.log2(sides / _USUAL_SIDE + 1e-8))
    return levels.clamp(first, first + len(strides) - 1).long() - first
