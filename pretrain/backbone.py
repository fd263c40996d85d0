"""Backbones: ResNets with the parameter names of torchvision, stems for CIFAR, and a small ResNet for CPUs."""

import dataclasses
from typing import Annotated, NamedTuple

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from intl_bench.core.ranges import Checked, Choice

__all__ = ["ARCHITECTURES", "INNER_WIDTHS", "NAMES", "STEMS", "Backbone", "BackboneConfig", "Stem", "build_backbone"]


class Stem(NamedTuple):
    """The first convolution of a ResNet; `max_pool` tells whether a 3x3 max-pool with stride 2 follows."""

    kernel: int
    stride: int
    padding: int
    max_pool: bool


# "cifar": the authors replace conv1 by a 3x3 convolution with padding 1, and keep the extra padding layer of 1 of their
# ResNet in front of it. Images of 32x32 become maps of 34x34, as with padding=2 of solo-learn. Other projects pad by 1.
# Their backbones have the same weights but other features, and therefore use the stems "cifar_pad1*".
STEMS = {
    "imagenet": Stem(7, 2, 3, True),
    "cifar": Stem(3, 1, 2, False),
    "cifar_pad1": Stem(3, 1, 1, False),
    "cifar_pad1_pool": Stem(3, 1, 1, True),
}

# name: block, blocks per stage, channels of the first stage
ARCHITECTURES: dict[str, tuple[type[BasicBlock | Bottleneck], list[int], int]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2], 64),
    "resnet34": (BasicBlock, [3, 4, 6, 3], 64),
    "resnet50": (Bottleneck, [3, 4, 6, 3], 64),
    "resnet101": (Bottleneck, [3, 4, 23, 3], 64),
    "resnet152": (Bottleneck, [3, 8, 36, 3], 64),
    "resnet50w2": (Bottleneck, [3, 4, 6, 3], 128),
    "wide_resnet50_2": (Bottleneck, [3, 4, 6, 3], 64),
    "wide_resnet101_2": (Bottleneck, [3, 4, 23, 3], 64),
    "resnet10_narrow": (BasicBlock, [1, 1, 1, 1], 32),
}
NAMES = tuple(ARCHITECTURES)
# Channels of the 3x3 convolutions of the first stage, where they are not those of the stage.
INNER_WIDTHS = {"wide_resnet50_2": 128, "wide_resnet101_2": 128}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig(Checked):
    """Settings of a backbone.

    Attributes:
        name: of the network.
        stem: the first layers. "imagenet": 7x7, stride 2, max-pool. The others are 3x3 with stride 1, for small images:
            "cifar" as in the code of INTL's authors, "cifar_pad1" with padding 1, "cifar_pad1_pool" with a max-pool.
        zero_init_residual: whether every residual block starts as the identity. The authors use it for ResNet-50, not
            for ResNet-18.
    """

    name: Annotated[str, Choice(NAMES)] = "resnet50"
    stem: Annotated[str, Choice(tuple(STEMS))] = "imagenet"
    zero_init_residual: bool = False


class Backbone(ResNet):
    """A torchvision ResNet without the classifier: images (N, 3, H, W) -> features (N, num_features)."""

    def __init__(self, config: BackboneConfig) -> None:
        block, layers, width = ARCHITECTURES[config.name]
        inner = INNER_WIDTHS.get(config.name, 64)
        super().__init__(block, layers, zero_init_residual=config.zero_init_residual, width_per_group=inner)
        if width != 64:
            self._rebuild(block, layers, width, config.zero_init_residual)
        if config.stem != "imagenet":
            kernel, stride, padding, max_pool = STEMS[config.stem]
            # As in the authors' code, this convolution keeps PyTorch's default initialization.
            self.conv1 = nn.Conv2d(3, width, kernel_size=kernel, stride=stride, padding=padding, bias=False)
            if not max_pool:
                self.maxpool = nn.Identity()
        self.num_features: int = width * 8 * block.expansion
        self.fc = nn.Identity()

    def _rebuild(self, block: type[BasicBlock | Bottleneck], layers: list[int], width: int, zero_init: bool) -> None:
        """Replace the stages by stages that start with `width` channels; torchvision fixes 64 for basic blocks."""
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, blocks in enumerate(layers):
            setattr(
                self,
                f"layer{stage + 1}",
                self._make_layer(block, width << stage, blocks, stride=1 if stage == 0 else 2),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)


def build_backbone(name: str, *, stem: str = "imagenet", zero_init_residual: bool = False) -> Backbone:
    """Build a backbone with the parameter names of torchvision and new random weights.

    Args:
        name: a key of `ARCHITECTURES`, such as resnet18, resnet50, or resnet10_narrow (1.2 M parameters, for CPUs).
            resnet50w2 has twice the channels everywhere (SwAV's name), wide_resnet50_2 only in its 3x3 convolutions.
        stem: "imagenet" (7x7, stride 2, max-pool), "cifar" (3x3, stride 1, padding 2, no max-pool); see `STEMS`.
        zero_init_residual: see `BackboneConfig`.

    Raises:
        ValueError: the name or the stem is unknown.
    """
    return Backbone(BackboneConfig(name=name, stem=stem, zero_init_residual=zero_init_residual))
