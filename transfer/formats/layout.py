"""What a layout of checkpoints is: the place of a backbone in a file, the names of its tensors, its preprocessing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transfer.formats.names import TORCHVISION, Names

IMAGENET = {"channels": "RGB", "scale": "0..1", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclasses.dataclass(frozen=True)
class Place:
    """Place of a backbone in a file.

    Attributes:
        container: the keys from the top of the file to the dictionary of tensors, joined by "/"; "" is the top.
        prefix: a regular expression for what precedes the backbone's names, matched from the start of a key.
    """

    container: str
    prefix: str = ""

    @property
    def keys(self) -> list[str]:
        return self.container.split("/") if self.container else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Description of a project's checkpoints.

    Attributes:
        name: the value of `--from`.
        display: the method's name in tables.
        branches: {name: places} of the complete copies of the backbone in a file, such as a momentum encoder.
        default: branches by preference; the first one that the file has is read. Empty: the first of `branches`.
        tables: names of the tensors. The table that matches most names of a file is used.
        marks: regular expressions, searched in the list of keys, one key a line. The layout is recognized if all are
            found, except that one with a leading "!" must not be. Keys at the top of the file have a leading "/".
        heads: a regular expression for the tensors under the prefix that are not part of the backbone.
        adapt: the change of the tensors by `transfer.formats.match`: "haiku", "msra", "split_bn" or "" (none).
        preprocessing: what the network expects of pixels, and a `note` for people.
        small_stem: the stem (`pretrain.backbone.STEMS`) of a network with a 3x3 conv1. Keys tell neither its padding
            nor whether a max-pool follows.
        per_data_set: whether the project normalizes small images by the mean and std of their data set instead.
        differs: how the network differs from torchvision's with the same weights; "" if it does not.
        stride_in_1x1: whether the stride of a bottleneck block is in its first 1x1 convolution.
        anywhere: whether a backbone with the names of its first table has this layout in every place of a file, if no
            other layout is recognized.
    """

    name: str
    display: str
    branches: Mapping[str, tuple[Place, ...]]
    default: tuple[str, ...] = ()
    tables: tuple[Names, ...] = (TORCHVISION,)
    marks: tuple[str, ...] = ()
    heads: str = r"fc\..*"
    adapt: str = ""
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=lambda: IMAGENET)
    small_stem: str = "cifar"
    per_data_set: bool = True
    differs: str = ""
    stride_in_1x1: bool = False
    anywhere: bool = False
