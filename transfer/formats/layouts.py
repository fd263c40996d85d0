"""Layouts of ResNet checkpoints, as data: the place and the names of the backbone, and its preprocessing of images.

docs/add_a_layout.md tells how to add a layout. Facts that keys do not tell (padding of the stem, order and scale of the
color channels) follow the code of the project. Sources: the loaders and savers of the projects.
"""

import dataclasses
import re

from pretrain.checkpoint import BRANCHES
from transfer.formats.layout import IMAGENET, Layout, Place
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
    SEQUENTIAL_WITHOUT_POOL,
    SHORTCUT,
    TORCHVISION,
)

_SWAV = {**IMAGENET, "std": [0.228, 0.224, 0.225]}
_UNNORMALIZED = {**IMAGENET, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
_TIMM = {**IMAGENET, "note": "see pretrained_cfg of the weights; some tags use mean 0.5 and std 0.5"}

_M = r"(?:_orig_mod\.|module\.)*"  # wrappers: DistributedDataParallel, torch.compile
_ROOT, _STATE = Place(""), Place("state_dict")
_BACKBONE = dataclasses.replace(_STATE, prefix=r"backbone\.")


def _at(container: str, *prefixes: str) -> tuple[Place, ...]:
    return tuple(Place(container, prefix) for prefix in prefixes)


_SAME = "TensorFlow's SAME padding (at the bottom and right) in strided convolutions and the max-pool"
_SAME_POOL = "TensorFlow's SAME padding (at the bottom and right) in the max-pool"
_VISSL_DINO = r"momentum_teacher\.(?:module\.)?trunk\.(?:base_model\.)?(?:_feature_blocks\.)?"
_LIGHTLY_TRAIN = r"\.(?:model_wrapper|wrapped_model|_model_wrapper|_wrapped_model)\.(?:_features|_model)\."
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
        marks=(r"^roi_heads\.res5\.0\.",),
        heads=r"(?!backbone\.|roi_heads\.res5\.\d).*",
    ),
    Layout(
        name="detectron2",
        display="Detectron2",
        branches={"online": (*_at("model", "", r"backbone\.bottom_up\."), _ROOT)},
        tables=(DETECTRON2,),
        anywhere=True,
        heads=r"stem\.fc\..*|linear\..*|fc\..*",
    ),
    Layout(
        name="hugging-face",
        display="Supervised (Hugging Face)",
        branches={"online": (Place("", r"(?:resnet\.)?"),)},
        tables=(HUGGING_FACE,),
        anywhere=True,
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
    # lightly-train: _checkpoint.py, _models/embedding_model.py, _models/torchvision/resnet.py, _models/timm/timm.py.
    # DINO trains a copy of the exported teacher; the other methods train the exported network.
    Layout(
        name="lightly-train",
        display="LightlyTrain",
        branches={
            "online": _at("state_dict", rf"embedding_model{_LIGHTLY_TRAIN}"),
            "teacher": _at("state_dict", rf"teacher_embedding_model{_LIGHTLY_TRAIN}"),
            "student": _at("state_dict", rf"student_embedding_model{_LIGHTLY_TRAIN}"),
            "query": _at("state_dict", rf"query_embedding_model{_LIGHTLY_TRAIN}"),
            "momentum": _at("state_dict", rf"(?:key|momentum)_embedding_model{_LIGHTLY_TRAIN}"),
        },
        default=("online", "teacher", "query", "student"),
        tables=(TORCHVISION, SEQUENTIAL),
        marks=(r"^/lightly_train$",),
        preprocessing={**IMAGENET, "note": "see lightly_train/normalize_args"},
        small_stem="cifar_pad1",
        per_data_set=False,
    ),
    Layout(
        name="lightly-sequential",
        display="lightly",
        branches={
            "online": (_BACKBONE, _ROOT, _STATE),
            "momentum": _at("state_dict", r"(?:backbone_momentum|momentum_backbone|teacher_backbone)\."),
        },
        tables=(SEQUENTIAL,),
        anywhere=True,
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
        anywhere=True,
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
        heads=r"fc\..*|mask_(token|gamma)",  # the latter in A2MIM of OpenMixup (backbones/mim_resnet.py)
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
    # Without marks: names that many projects use, and no key that tells the project.
    # `nn.Sequential` of the children of a torchvision ResNet without its max-pool: leftthomas/SimCLR, model.py.
    Layout(
        name="sequential",
        display="nn.Sequential",
        branches={"online": ()},
        tables=(SEQUENTIAL_WITHOUT_POOL,),
        anywhere=True,
        small_stem="cifar_pad1",
    ),
    # kuangliu/pytorch-cifar, models/resnet.py, and HobbitLong/SupContrast, networks/resnet_big.py.
    Layout(
        name="shortcut",
        display="pytorch-cifar names",
        branches={"online": ()},
        tables=(SHORTCUT,),
        anywhere=True,
        heads=r"(fc|linear)\..*",
        small_stem="cifar_pad1",
    ),
    Layout(
        name="torchvision",
        display="torchvision names",
        anywhere=True,
        branches={"online": (*_at("", _M), *_at("state_dict", _M), *_at("model", _M))},
    ),
)
