"""Layouts of ResNet checkpoints, as data: the place and the names of the backbone, and its preprocessing of images.

docs/add_a_layout.md tells how to add a layout. Facts that keys do not tell (padding of the stem, order and scale of the
color channels) follow the code of the project. Sources: the loaders and savers of the projects.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from pretrain.checkpoint import BRANCHES
from transfer.formats.names import (
    CAFFE2,
    CAFFE2_OLD,
    DETECTRON2,
    DETECTRON2_C4,
    HAIKU,
    HUGGING_FACE,
    SEPARIUS,
    SEQUENTIAL,
    SEQUENTIAL_SMALL,
    SHORTCUT,
    TORCHVISION,
    Names,
)

IMAGENET = {"channels": "RGB", "scale": "0..1", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_SWAV = {**IMAGENET, "std": [0.228, 0.224, 0.225]}
_UNNORMALIZED = {**IMAGENET, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
_TIMM = {**IMAGENET, "note": "see pretrained_cfg of the weights; some tags use mean 0.5 and std 0.5"}


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


_M = r"(?:_orig_mod\.|module\.)*"  # wrappers: DistributedDataParallel, torch.compile
_ROOT, _STATE = Place(""), Place("state_dict")
_BACKBONE = Place("state_dict", r"backbone\.")


def _at(container: str, *prefixes: str) -> tuple[Place, ...]:
    return tuple(Place(container, prefix) for prefix in prefixes)


_SAME = "TensorFlow's SAME padding (at the bottom and right) in strided convolutions and the max-pool"
_SAME_POOL = "TensorFlow's SAME padding (at the bottom and right) in the max-pool"
_VISSL_DINO = r"momentum_teacher\.(?:module\.)?trunk\.(?:base_model\.)?(?:_feature_blocks\.)?"
_1X1 = "stride in the first 1x1 convolution of a bottleneck instead of the 3x3"

# In the order of recognition: layouts with specific marks come before layouts with general ones.
LAYOUTS = (
    Layout(
        name="intl-bench",
        display="intl-bench",
        branches={name: _at("method", re.escape(prefix)) for name, prefix in BRANCHES.items()},
        marks=(r"^/format$", r"^/steps_per_epoch$"),
    ),
    Layout(
        name="byol-deepmind",
        display="BYOL",
        branches={"online": _at("online", r"res_net\d+/~/"), "target": _at("target", r"res_net\d+/~/")},
        tables=(HAIKU,),
        heads=r".*_ema/(hidden|counter)",
        adapt="haiku",
        differs=_SAME,
    ),
    Layout(
        name="simclr-separius",
        display="SimCLR",
        branches={"online": _at("resnet", "")},
        tables=(SEPARIUS,),
        preprocessing=_UNNORMALIZED,
        differs=_SAME_POOL,
    ),
    Layout(
        name="detectron2-msra",
        display="Supervised (MSRA)",
        branches={"online": (_ROOT, Place("blobs"), Place("model"))},
        tables=(CAFFE2, CAFFE2_OLD),
        heads=r".*_momentum|fc1000_.*|pred_.*|lr|weight_order",
        adapt="msra",
        differs=_1X1,
        stride_in_1x1=True,
    ),
    Layout(
        name="detectron2-c4",
        display="Detectron2",
        branches={"online": _at("model", "")},
        tables=(DETECTRON2_C4,),
        heads=r"(?!backbone\.|roi_heads\.res5\.\d).*",
    ),
    Layout(
        name="detectron2",
        display="Detectron2",
        branches={"online": (*_at("model", "", r"backbone\.bottom_up\."), _ROOT)},
        tables=(DETECTRON2,),
        heads=r"stem\.fc\..*|linear\..*|fc\..*",
    ),
    Layout(
        name="hugging-face",
        display="Supervised (Hugging Face)",
        branches={"online": (Place("", r"(?:resnet\.)?"),)},
        tables=(HUGGING_FACE,),
        heads=r"classifier\..*",
        preprocessing={**IMAGENET, "note": "see preprocessor_config.json"},
    ),
    Layout(
        name="vissl",
        display="VISSL",
        branches={
            "online": (
                *_at("classy_state_dict/base_model/model/trunk", r"(?:base_model\.)?_feature_blocks\."),
                *_at("classy_state_dict/base_model/model", r"trunk\.(?:base_model\.)?_feature_blocks\."),
                *_at("model_state_dict", r"(?:trunk\.)?(?:base_model\.)?_feature_blocks\."),
            ),
            "momentum": tuple(
                Place(container, prefix)
                for container in ("classy_state_dict/loss", "loss")
                for prefix in (r"moco_encoder\.trunk\._feature_blocks\.", _VISSL_DINO)
            ),
        },
        preprocessing={**IMAGENET, "note": "weights converted from Caffe2 may expect BGR"},
    ),
    Layout(
        name="stable-pretraining",
        display="stable-pretraining",
        branches={
            "teacher": _at("state_dict", r"backbone\.teacher\.(?:resnet\.)?"),
            "online": _at("state_dict", r"backbone\.(?:resnet\.)?"),
            "student": _at("state_dict", r"backbone\.student\.(?:resnet\.)?"),
        },
        default=("teacher", "online"),  # forward() of the project evaluates the teacher
        tables=(TORCHVISION, HUGGING_FACE),
        marks=(r"^callbacks_(modules|metrics)\.|ema_coefficient$|^/spt_run_dir$",),
        heads=r"fc\..*|classifier\..*|teacher\..*|student\..*|(base_|final_)?ema_coefficient",
        small_stem="cifar_pad1",
    ),
    Layout(
        name="lightly-sequential",
        display="lightly",
        branches={
            "online": (_BACKBONE, _ROOT, _STATE),
            "momentum": _at("state_dict", r"(?:backbone_momentum|momentum_backbone|teacher_backbone)\."),
        },
        tables=(SEQUENTIAL,),
        marks=(r"^(backbone\.)?7\.0\.conv1\.",),
        heads=r"9\..*|fc\..*",
        small_stem="cifar_pad1",
        per_data_set=False,
    ),
    Layout(
        name="lightly-cifar",
        display="lightly",
        branches={"online": (_BACKBONE, _ROOT, _STATE), "momentum": _at("state_dict", r"backbone_momentum\.")},
        tables=(SEQUENTIAL_SMALL,),
        marks=(r"^(backbone\.)?2\.0\.conv1\.",),
        adapt="split_bn",
        small_stem="cifar_pad1",
        per_data_set=False,
    ),
    Layout(
        name="shuffled-dbn",
        display="Shuffled-DBN",
        branches={"online": (_BACKBONE,), "target": _at("state_dict", r"target_encoder\.0\.")},
        marks=(r"^(online_)?encoder\.0\.", r"!^backbone\..*\.shortcut\."),
        small_stem="cifar_pad1",
        per_data_set=False,
    ),
    Layout(
        name="shuffled-dbn-variant2",
        display="Shuffled-DBN",
        branches={"online": (_BACKBONE,), "target": _at("state_dict", r"target_encoder\.0\.")},
        tables=(SHORTCUT,),
        marks=(r"^backbone\.layer\d\.0\.shortcut\.",),
        small_stem="cifar_pad1_pool",
        per_data_set=False,
    ),
    Layout(
        name="moco",
        display="MoCo",
        branches={
            "query": _at("state_dict", rf"{_M}encoder_q\."),
            "momentum": _at("state_dict", rf"{_M}encoder_k\."),
        },
        marks=(rf"^{_M}encoder_[qk]\.(conv1|layer1)\.", r"!^backbone\."),
    ),
    Layout(
        name="moco-v3",
        display="MoCo v3",
        branches={
            "query": _at("state_dict", rf"{_M}base_encoder\."),
            "momentum": _at("state_dict", rf"{_M}momentum_encoder\."),
        },
        marks=(rf"^{_M}base_encoder\.",),
    ),
    Layout(
        name="simsiam",
        display="SimSiam",
        branches={"online": _at("state_dict", rf"{_M}encoder\.")},
        marks=(rf"^{_M}predictor\.", rf"^{_M}encoder\.", r"!^classifier\.", r"!^projector\."),
    ),
    Layout(
        name="openmmlab",
        display="OpenMMLab",
        branches={
            "online": (_BACKBONE, _STATE),
            "momentum": _at("state_dict", r"(?:encoder_k|target_net|momentum_encoder)\.(?:module\.)?0\."),
        },
        marks=(r"^/meta$",),
        small_stem="cifar_pad1",
    ),
    Layout(
        name="solo-learn",
        display="solo-learn",
        branches={
            "online": _at("state_dict", r"(?:backbone|encoder)\."),
            "momentum": _at("state_dict", r"momentum_(?:backbone|encoder)\."),
        },
        marks=(r"^classifier\.(weight|bias)$", r"^(backbone|encoder)\."),
    ),
    Layout(
        name="lightly",
        display="lightly",
        branches={
            "backbone": (_BACKBONE,),  # the teacher in DINO of lightly
            "teacher": _at("state_dict", r"teacher_backbone\."),
            "student": _at("state_dict", r"student_backbone\."),
            "momentum": _at("state_dict", r"(?:key_backbone|backbone_momentum)\."),
        },
        marks=(r"^(projection_head|prediction_head|online_classifier|prototypes|(student|teacher|key)_\w+)\.",),
        small_stem="cifar_pad1",
        per_data_set=False,
    ),
    Layout(
        name="intl",
        display="INTL",
        branches={
            "online": _at("state_dict", rf"{_M}backbone\."),
            "momentum": _at("state_dict", rf"{_M}momentum_backbone\."),
        },
        marks=(rf"^{_M}projection\.\d",),
    ),
    Layout(
        name="dino",
        display="DINO",
        branches={
            "teacher": (*_at("teacher", rf"{_M}backbone\."), _ROOT),
            "student": _at("student", rf"{_M}backbone\."),
        },
        marks=(r"^/teacher$", r"^/student$"),
    ),
    Layout(
        name="zero-cl",
        display="Zero-CL",
        branches={"online": (*_at("model", rf"{_M}backbone\."), _ROOT)},
        marks=(rf"^{_M}whiten_bn\.",),
    ),
    Layout(
        name="barlow-twins",
        display="Barlow Twins",
        branches={"online": (*_at("model", rf"{_M}backbone\."), _ROOT)},
        marks=(rf"^{_M}projector\.", rf"^{_M}bn\.running_mean$"),
    ),
    Layout(
        name="vicreg",
        display="VICReg",
        branches={"online": (*_at("model", rf"{_M}backbone\."), _ROOT)},
        marks=(rf"^{_M}projector\.",),
    ),
    Layout(
        name="deepcluster-v2",
        display="DeepCluster v2",
        branches={"online": (*_at("", _M), *_at("state_dict", _M))},
        marks=(rf"^{_M}prototypes\.prototypes\d\.",),
        heads=r"projection_head\..*|prototypes\..*|fc\..*",
        preprocessing=_SWAV,
    ),
    Layout(
        name="swav",
        display="SwAV",
        branches={"online": (*_at("", _M), *_at("state_dict", _M))},
        marks=(rf"^{_M}(projection_head|prototypes)\.",),
        heads=r"projection_head\..*|prototypes\..*|fc\..*",
        preprocessing=_SWAV,
    ),
    Layout(
        name="w-mse",
        display="W-MSE",
        branches={
            "online": _at("", r"model\.(?:module\.)?"),
            "momentum": _at("", r"model_t\.(?:module\.)?"),
        },
        marks=(r"^head\.",),
        small_stem="cifar_pad1",
    ),
    Layout(
        name="cw-rgp",
        display="CW-RGP",
        branches={"online": _at("state_dict", r"(?:module\.)?model\.(?:module\.)?")},
        marks=(r"^(module\.)?head\.",),
        small_stem="cifar_pad1",
    ),
    Layout(
        name="simclr-tonylins",
        display="SimCLR",
        branches={"online": (_STATE,)},
        marks=(r"^layer2\.0\.downsample\.0\.weight$(?s:.*)^layer2\.0\.conv1\.weight$",),  # the order of TensorFlow
        preprocessing=_UNNORMALIZED,
        differs=_SAME_POOL,
    ),
    Layout(
        name="byol",
        display="BYOL",
        branches={"online": (_ROOT, _STATE)},
        # The converter writes all weights, then all running statistics, and no counters.
        marks=(r"^layer4\.0\.conv1\.weight$(?s:.*)^layer1\.0\.bn1\.running_mean$", r"!num_batches_tracked$"),
        differs=_SAME,
    ),
    Layout(
        name="timm",
        display="Supervised (timm)",
        branches={"ema": _at("state_dict_ema", _M), "online": (*_at("state_dict", _M), *_at("", _M))},
        default=("ema", "online"),
        marks=(r"^/(state_dict_ema|metric)$",),
        preprocessing=_TIMM,
    ),
    # Without marks: torchvision's names, and no key that tells the project.
    Layout(
        name="torchvision",
        display="torchvision names",
        branches={"online": (*_at("", _M), *_at("state_dict", _M), *_at("model", _M))},
    ),
)
