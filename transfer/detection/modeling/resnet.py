"""Residual networks with Detectron2's parameter names, in two parts: the trunk, and the last stage on regions."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from intl_bench.core.errors import InputError
from transfer.detection.config import ModelConfig
from transfer.detection.modeling.pooling import Bins, compute_bins, images_of, pool

_BOTTOM_UP = "backbone.bottom_up."  # the place of the network in a detector with a pyramid


class ConvNorm(nn.Conv2d):
    """A convolution without bias, followed by a batch norm, the child `norm`.

    The default padding is half the kernel. The weights have Detectron2's initialization: normal with variance
    2 / fan-out.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int | None = None) -> None:
        padding = kernel // 2 if padding is None else padding
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))

    def project(self, x: Tensor) -> Tensor:
        """Apply a 1x1 convolution without the norm and with stride 1."""
        return F.conv2d(x, self.weight)


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions. The first one has the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut = ConvNorm(inputs, width, 1, stride=stride) if inputs != width else None
        self.conv1 = ConvNorm(inputs, width, 3, stride=stride)
        self.conv2 = ConvNorm(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self._end(F.relu_(self.conv1(x)), shortcut)

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the maps that the two branches of the block are pooled from; see `Res5`."""
        assert self.shortcut is not None
        return features, self.shortcut.project(features)

    def forward_regions(self, maps: tuple[Tensor, Tensor], all_bins: Bins, second_bins: Bins) -> Tensor:
        """Apply the block, with stride 2, to regions pooled from `maps`; see `Res5`."""
        assert self.shortcut is not None
        shortcut = self.shortcut.norm(pool(maps[1:], second_bins))
        return self._end(F.relu_(self.conv1(pool(maps[:1], all_bins))), shortcut)

    def _end(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return F.relu_(self.conv2(x).add_(shortcut))


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions with 4 * width outputs.

    The 3x3 convolution has the stride, as in torchvision.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut = ConvNorm(inputs, 4 * width, 1, stride=stride) if inputs != 4 * width else None
        self.conv1 = ConvNorm(inputs, width, 1)
        self.conv2 = ConvNorm(width, width, 3, stride=stride)
        self.conv3 = ConvNorm(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self._end(F.relu_(self.conv1(x)), shortcut)

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the maps that the two branches of the block are pooled from; see `Res5`."""
        assert self.shortcut is not None
        return self.conv1.project(features), self.shortcut.project(features)

    def forward_regions(self, maps: tuple[Tensor, Tensor], all_bins: Bins, second_bins: Bins) -> Tensor:
        """Apply the block, with stride 2, to regions pooled from `maps`; see `Res5`."""
        assert self.shortcut is not None
        shortcut = self.shortcut.norm(pool(maps[1:], second_bins))
        return self._end(F.relu_(self.conv1.norm(pool(maps[:1], all_bins))), shortcut)

    def _end(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return F.relu_(self.conv3(F.relu_(self.conv2(x))).add_(shortcut))


def stage_channels(config: ModelConfig, stage: int) -> int:
    """Return the number of output channels of stage 2, 3, 4 or 5."""
    return (config.width << (stage - 2)) * (4 if config.bottleneck else 1)


def build_stage(config: ModelConfig, stage: int) -> nn.Sequential:
    """Build the blocks of stage 2, 3, 4 or 5. The first block of stage 3, 4 and 5 halves the resolution."""
    block = Bottleneck if config.bottleneck else BasicBlock
    inputs = config.width if stage == 2 else stage_channels(config, stage - 1)
    width, outputs = config.width << (stage - 2), stage_channels(config, stage)
    blocks = [block(inputs, width, 1 if stage == 2 else 2)]
    blocks += [block(outputs, width, 1) for _ in range(config.blocks[stage - 2] - 1)]
    return nn.Sequential(*blocks)


class Stem(nn.Module):
    """The first convolution: 7x7 with stride 2 and a max-pool, or the CIFAR stem of `pretrain.backbone`.

    The CIFAR stem is 3x3 with stride 1 and padding 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cifar = config.stem == "cifar"
        kernel, stride, padding = (3, 1, 2) if self.cifar else (7, 2, 3)
        self.conv1 = ConvNorm(3, config.width, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        return x if self.cifar else F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Trunk(nn.Module):
    """The stages up to conv4: normalized images (N, 3, H, W) -> features [(N, C, H / stride, W / stride)]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stem = Stem(config)
        self.res2, self.res3, self.res4 = (build_stage(config, stage) for stage in (2, 3, 4))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.res4(self.res3(self.res2(self.stem(images))))]


def freeze(backbone: nn.Module, stages: int) -> None:
    """Freeze the stem and the first stages of a backbone with loaded weights, as Detectron2's `ResNet.freeze`.

    Their weights get no gradient. Their batch norms become fixed scales and shifts by the running statistics.

    Args:
        stages: 1 freezes the stem, 2 also res2, and so on.
    """
    trunk = getattr(backbone, "bottom_up", backbone)  # of a pyramid
    for name in ("stem", "res2", "res3", "res4")[:stages]:
        stage = trunk.get_submodule(name).requires_grad_(False)
        for convolution in [module for module in stage.modules() if isinstance(module, ConvNorm)]:
            norm = FrozenBatchNorm2d(convolution.norm.num_features, convolution.norm.eps)
            norm.load_state_dict(convolution.norm.state_dict())
            convolution.add_module("norm", norm)


class Res5(nn.Sequential):
    """The last stage on regions of the feature map, with a norm at its end, as in the transfer of MoCo and INTL.

    Pooling is linear and the same for every channel, and the 1x1 convolutions of the first block have no bias. So these
    convolutions can be applied before pooling, once to the map instead of to every region (`project`). The shortcut has
    stride 2, so only every second bin in both directions is pooled for it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(OrderedDict(build_stage(config, 5).named_children()))
        self.norm = nn.BatchNorm2d(stage_channels(config, 5))
        self.size, (self.stride,) = config.pool_size, config.strides

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the two maps that regions are pooled from, from features (N, C, H, W)."""
        first = self[0]
        assert isinstance(first, (BasicBlock, Bottleneck))
        return first.project(features)

    def forward(self, maps: tuple[Tensor, Tensor], boxes: list[Tensor]) -> Tensor:  # type: ignore[override]
        """Apply the stage to regions of the maps that `project` returns.

        Args:
            boxes: the boxes (r_i, 4) of each image, in pixels of the image.

        Returns:
            (sum of r_i, 2 C, s, s) with s = size / 2, rounded up.
        """
        # Half precision has too few digits for positions in an image.
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        images = images_of(boxes)
        all_bins, second_bins = compute_bins(
            torch.cat(boxes),
            images,
            torch.zeros_like(images),
            [maps[0].shape],
            [self.stride],
            size=self.size,
            steps=(1, 2),
            dtype=dtype,
        )
        first, *others = self
        assert isinstance(first, (BasicBlock, Bottleneck))
        x = first.forward_regions(maps, all_bins, second_bins)
        for module in others:
            x = module(x)
        return x


def load_backbone(detector: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the weights of a backbone into a detector of either engine.

    Args:
        state: weights named stem.*, res2.*, ..., res5.*. In a C4 detector, the weights of res5 go to the last stage on
            regions. A frozen norm has no counter of batches and leaves that of its weights out.

    Raises:
        InputError: a weight is missing, unknown or of another shape.
    """
    own = detector.state_dict()
    if any(key.startswith(_BOTTOM_UP) for key in own):
        named = {f"{_BOTTOM_UP}{key}": value for key, value in state.items()}
        wanted = {key: value for key, value in own.items() if key.startswith(_BOTTOM_UP)}
    else:
        named = {
            f"roi_heads.{key}" if key.startswith("res5.") else f"backbone.{key}": value for key, value in state.items()
        }
        wanted = {
            key: value
            for key, value in own.items()
            if key.startswith(("backbone.", "roi_heads.res5.")) and ".res5.norm." not in key
        }
    frozen = {key for key in named if key.endswith(".num_batches_tracked") and key not in wanted}
    require_matching_weights({key: value for key, value in named.items() if key not in frozen}, wanted)
    detector.load_state_dict(named, strict=False)


def require_matching_weights(
    given: dict[str, Tensor],
    wanted: dict[str, Tensor],
    *,
    what: str = "backbone weights",
    remedy: str = "set model.* as in pre-training",
) -> None:
    """Compare the names and shapes of given weights with those of a model.

    Counters of batches (`num_batches_tracked`) may be missing.

    Args:
        what: what is given, for messages.
        remedy: what to do, for messages.

    Raises:
        InputError: a weight is missing, unknown or of another shape. The message names the first one.
    """
    needed = {key for key in wanted if not key.endswith(".num_batches_tracked")}
    for problem, keys in (("missing", needed - set(given)), ("unknown", set(given) - set(wanted))):
        if keys:
            raise InputError(
                f"{what}: {len(keys)} {problem}, such as {min(keys)}; expected the weights of this detector; {remedy}"
            )
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            raise InputError(
                f"{what}: {key} has shape {tuple(value.shape)}, expected {tuple(wanted[key].shape)}; {remedy}"
            )
