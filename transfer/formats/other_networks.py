"""Reasons why a file has no backbone of this project: other networks, and weights that cannot be told apart."""

import re
from collections.abc import Iterable
from pathlib import Path

from intl_bench.core.errors import InputError
from transfer.formats.candidates import SHOWN, Container

_LONGEST = 1000  # characters of a key

# Keys of networks that are not in `pretrain.backbone`, and the reason that an error gives.
_OTHER_NETWORKS = (
    (
        r"(^|[./])(attnpool\.|layer[1-4]\.0\.downsample\.-1)",
        "CLIP's ResNet: a stem of three convolutions, average pools in place of strides, and an attention pool",
    ),
    (
        r"(^|[./])(conv1\.\d+\.|stem\.\d|stem\.conv\d*[_.]?[23]|stem\.conv1_1|stem\.conv2)|^(\w+\.)*(?<!layer\d\.\d\.)(?<!layer\d\.\d\d\.)conv[23]\.weight$",
        "a deep stem (ResNet-C or -D)",
    ),
    (r"(^|\.)net\.0\.3\.0\.weight$", "selective kernels (SimCLR v2's sk1) on a deep stem"),
    (r"(^|\.)downsample\.2\.", "an average pool in the shortcuts (ResNet-D)"),
    (r"\.(filt|aa\.\w+|blurpool\.\w+)$", "anti-aliasing in place of strides"),
    (r"\.(se|se_module|sa|eca|attn)\.", "attention in its blocks, such as squeeze-and-excitation"),
    (r"(^|\.)(cls_token|pos_embed|patch_embed\.|blocks\.\d+\.attn)", "a vision transformer"),
    (r"(^|[./])(layer3\.2[3-9]\.|layer2\.[89]\.)", "more blocks than ResNet-101 or -152"),
    (r"(^|[./])(layer3\.6\.|res4[._]6|stages\.2\.layers\.6\.)", "more blocks than ResNet-50"),
)
# Weights that a network computes from other tensors, and how to store the weights themselves.
_COMPUTED = (
    (r"\.\w+_mask$", "weights are pruned; call torch.nn.utils.prune.remove and save again"),
    (r"\.(parametrizations\.|\w+_[guv]$)", "weights have a norm or another parametrization; remove it and save again"),
)
# Files that hold numbers of networks, but not by the names of their tensors.
_NOT_BY_NAME = (
    (
        r"(^|[./])_?flat_param(_\d+)?$",
        "flattened parameters of FSDP, one for many tensors; save a full state dict (StateDictType.FULL_STATE_DICT, or "
        "get_model_state_dict with full_state_dict=True)",
    ),
    (
        r"(^|/)(shadow_params|collected_params)$",
        "averaged weights in a list without names (torch_ema); copy them to the network (ema.copy_to) and save its "
        "state_dict()",
    ),
    (
        r"(^|/)(single_partition_of_fp32_groups|fp32_flat_groups|base_optimizer_state)$",
        "a partition of an optimizer of DeepSpeed; run its zero_to_fp32.py in the folder of the checkpoint",
    ),
    (
        r"(^|[./])(lora_[AB]\.|base_model\.model\.)",
        "changes of a network (LoRA), without it; merge them and save again",
    ),
)


def reason(keys: Iterable[str]) -> str:
    """Return the kind of another network that keys show, or why weights are missing; "" if they show none."""
    every = [key for key in keys if len(key) < _LONGEST]
    for patterns, more in ((_COMPUTED, ""), (_OTHER_NETWORKS, ", which is another network")):
        for pattern, text in patterns:
            for key in every:
                if re.search(pattern, key):
                    return f"{text}: {key[:SHOWN]}{more}"
    return ""


def sample(containers: list[Container]) -> str:
    """Return the first keys of a file, for an error."""
    keys = [str(key)[:SHOWN] for key in containers[0].values]
    for box in containers[1:20]:
        keys += [f"{box.path}/{key}"[:SHOWN] for key in list(box.values)[:3]]
    return ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")


def without_backbone(path: Path, containers: list[Container]) -> InputError:
    """Return the error for a file in which no backbone was found, with what it has instead."""
    every = [f"{box.path}/{key}" if box.path else str(key) for box in containers for key in box.values]
    for pattern, text in _NOT_BY_NAME:
        if any(re.search(pattern, key) for key in every):
            return InputError(f"checkpoint {path}: no backbone by its names: it has {text}")
    because = reason(key for box in containers for key in box.inside)
    detail = because or f"its keys are {sample(containers)}"
    return InputError(
        f"checkpoint {path}: no ResNet-18, -34 or -50 in a known layout: {detail}; name the layout with --from"
    )
