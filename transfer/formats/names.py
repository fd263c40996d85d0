"""Names of the tensors of a ResNet in each project, as data.

Each `Names` maps the names of torchvision to those of a project by six templates. One table serves reading and writing.
Sources: the models, loaders and savers of the projects.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from torchvision.models.resnet import Bottleneck

from pretrain.backbone import ARCHITECTURES, INNER_WIDTHS

_STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Names:
    """Templates for the names of a ResNet's tensors.

    The fields of a template are filled as follows.
    Stage: {n0}, {n}, {n1}, {n2}, {n3} count from 0, 1, 2, 3 and 4; {c4} is the place of the stage in a C4 detector.
    Block of a stage: {b} counts from 0.
    Convolution of a block: {i0}, {i} count from 0 and 1; {even} is 0, 2, 4; {odd} is 1, 3, 5; {abc} is a, b, c.
    Tensor of a batch norm: {x}.

    Attributes:
        conv1, bn1: the convolution and the batch norm of the stem.
        conv, bn: those of a block.
        shortcut_conv, shortcut_bn: those of the shortcut of a block.
        x: {torchvision's name: the project's} of the tensors of a batch norm; a tensor that is not stored is absent.
    """

    conv1: str
    bn1: str
    conv: str
    bn: str
    shortcut_conv: str
    shortcut_bn: str
    x: Mapping[str, str] = dataclasses.field(default_factory=lambda: {name: name for name in _STATISTICS})


TORCHVISION = Names(
    conv1="conv1.weight",
    bn1="bn1.{x}",
    conv="layer{n}.{b}.conv{i}.weight",
    bn="layer{n}.{b}.bn{i}.{x}",
    shortcut_conv="layer{n}.{b}.downsample.0.weight",
    shortcut_bn="layer{n}.{b}.downsample.1.{x}",
)
SHORTCUT = dataclasses.replace(
    TORCHVISION, shortcut_conv="layer{n}.{b}.shortcut.0.weight", shortcut_bn="layer{n}.{b}.shortcut.1.{x}"
)
SEQUENTIAL = Names(
    conv1="0.weight",
    bn1="1.{x}",
    conv="{n3}.{b}.conv{i}.weight",
    bn="{n3}.{b}.bn{i}.{x}",
    shortcut_conv="{n3}.{b}.downsample.0.weight",
    shortcut_bn="{n3}.{b}.downsample.1.{x}",
)
SEQUENTIAL_WITHOUT_POOL = Names(
    conv1="0.weight",
    bn1="1.{x}",
    conv="{n2}.{b}.conv{i}.weight",
    bn="{n2}.{b}.bn{i}.{x}",
    shortcut_conv="{n2}.{b}.downsample.0.weight",
    shortcut_bn="{n2}.{b}.downsample.1.{x}",
)
SEQUENTIAL_SMALL = Names(
    conv1="0.weight",
    bn1="1.{x}",
    conv="{n1}.{b}.conv{i}.weight",
    bn="{n1}.{b}.bn{i}.{x}",
    shortcut_conv="{n1}.{b}.shortcut.0.weight",
    shortcut_bn="{n1}.{b}.shortcut.1.{x}",
)
DETECTRON2 = Names(
    conv1="stem.conv1.weight",
    bn1="stem.conv1.norm.{x}",
    conv="res{n1}.{b}.conv{i}.weight",
    bn="res{n1}.{b}.conv{i}.norm.{x}",
    shortcut_conv="res{n1}.{b}.shortcut.weight",
    shortcut_bn="res{n1}.{b}.shortcut.norm.{x}",
)
DETECTRON2_C4 = Names(
    conv1="backbone.stem.conv1.weight",
    bn1="backbone.stem.conv1.norm.{x}",
    conv="{c4}.{b}.conv{i}.weight",
    bn="{c4}.{b}.conv{i}.norm.{x}",
    shortcut_conv="{c4}.{b}.shortcut.weight",
    shortcut_bn="{c4}.{b}.shortcut.norm.{x}",
)
CAFFE2 = Names(
    conv1="conv1_w",
    bn1="res_conv1_bn_{x}",
    conv="res{n1}_{b}_branch2{abc}_w",
    bn="res{n1}_{b}_branch2{abc}_bn_{x}",
    shortcut_conv="res{n1}_{b}_branch1_w",
    shortcut_bn="res{n1}_{b}_branch1_bn_{x}",
    x={"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"},
)
CAFFE2_OLD = dataclasses.replace(CAFFE2, x={"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"})
HUGGING_FACE = Names(
    conv1="embedder.embedder.convolution.weight",
    bn1="embedder.embedder.normalization.{x}",
    conv="encoder.stages.{n0}.layers.{b}.layer.{i0}.convolution.weight",
    bn="encoder.stages.{n0}.layers.{b}.layer.{i0}.normalization.{x}",
    shortcut_conv="encoder.stages.{n0}.layers.{b}.shortcut.convolution.weight",
    shortcut_bn="encoder.stages.{n0}.layers.{b}.shortcut.normalization.{x}",
)
SEPARIUS = Names(
    conv1="net.0.0.weight",
    bn1="net.0.1.0.{x}",
    conv="net.{n}.blocks.{b}.net.{even}.weight",
    bn="net.{n}.blocks.{b}.net.{odd}.0.{x}",
    shortcut_conv="net.{n}.blocks.{b}.projection.shortcut.weight",
    shortcut_bn="net.{n}.blocks.{b}.projection.bn.0.{x}",
)
HAIKU = Names(
    conv1="initial_conv/w",
    bn1="initial_batchnorm/{x}",
    conv="block_group_{n0}/~/block_{b}/~/conv_{i0}/w",
    bn="block_group_{n0}/~/block_{b}/~/batchnorm_{i0}/{x}",
    shortcut_conv="block_group_{n0}/~/block_{b}/~/shortcut_conv/w",
    shortcut_bn="block_group_{n0}/~/block_{b}/~/shortcut_batchnorm/{x}",
    x={
        "weight": "scale",
        "bias": "offset",
        "running_mean": "~/mean_ema/average",
        "running_var": "~/var_ema/average",
    },
)


@functools.cache
def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the tensors of a backbone of `pretrain.backbone` with the 7x7 stem.

    They are computed, because every file is compared with every architecture, and building these takes 0.3 s.
    """
    block, layers, width = ARCHITECTURES[architecture]
    inner_width = INNER_WIDTHS.get(architecture, width)
    found: dict[str, tuple[int, ...]] = {}

    def add(conv: str, bn: str, *shape: int) -> None:
        found[f"{conv}.weight"] = shape
        found.update({f"{bn}.{name}": shape[:1] for name in _STATISTICS[:4]})
        found[f"{bn}.num_batches_tracked"] = ()

    add("conv1", "bn1", width, 3, 7, 7)
    before = width
    for stage, blocks in enumerate(layers):
        inner, out = inner_width << stage, (width << stage) * block.expansion
        for number in range(blocks):
            where = f"layer{stage + 1}.{number}"
            kernels = (1, 3, 1) if block is Bottleneck else (3, 3)
            sizes = (before, *[inner] * (len(kernels) - 1), out)
            for i, kernel in enumerate(kernels):
                add(f"{where}.conv{i + 1}", f"{where}.bn{i + 1}", sizes[i + 1], sizes[i], kernel, kernel)
            if number == 0 and (stage > 0 or before != out):
                add(f"{where}.downsample.0", f"{where}.downsample.1", out, before, 1, 1)
            before = out
    return found


@functools.cache
def names(table: Names, architecture: str) -> dict[str, str]:
    """Return {torchvision's name: the project's} for an architecture, without the tensors that are not stored."""
    found = {}
    for name in shapes(architecture):
        *where, last = name.split(".")
        fields: dict[str, Any] = {"x": table.x.get(last)}
        batch_norm = where[-1].startswith("bn") or where[-2:] == ["downsample", "1"]
        if batch_norm and fields["x"] is None:
            continue
        if len(where) == 1:
            template = table.bn1 if batch_norm else table.conv1
        else:
            stage, number = int(where[0].removeprefix("layer")), 1
            if where[2] == "downsample":
                template = table.shortcut_bn if batch_norm else table.shortcut_conv
            else:
                template, number = table.bn if batch_norm else table.conv, int(where[2][-1])
            fields |= {"n0": stage - 1, "n": stage, "n1": stage + 1, "n2": stage + 2, "n3": stage + 3}
            fields |= {"b": where[1]}
            fields |= {"i0": number - 1, "i": number, "even": 2 * number - 2, "odd": 2 * number - 1}
            fields |= {"abc": "abc"[number - 1]}
            fields |= {"c4": "roi_heads.res5" if stage == 4 else f"backbone.res{stage + 1}"}
        found[name] = template.format(**fields)
    assert len(set(found.values())) == len(found)
    return found


@functools.cache
def known(table: Names) -> frozenset[str]:
    """Return the project's names of the tensors of all architectures."""
    return frozenset(name for architecture in ARCHITECTURES for name in names(table, architecture).values())
