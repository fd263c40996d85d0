"""Checkpoints as the projects write them, made from a ResNet with torchvision's names.

Nesting, prefixes, names and other keys follow the savers of the projects, not the tables under test. Other copies of
the backbone in a file have other values.
"""

import argparse
import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.backbone import build_backbone

State = dict[str, Tensor]


def random_state(name: str, seed: int = 0, stem: str = "imagenet") -> State:
    """Return the tensors of a backbone; no tensor of a batch norm has its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_backbone(name, stem=stem).state_dict()
        for key, tensor in state.items():
            if key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif key.endswith("num_batches_tracked"):
                tensor.fill_(7)
    return dict(state)


def prefixed(prefix: str, state: State) -> State:
    """Return tensors with a prefix before each name."""
    return OrderedDict((prefix + key, value) for key, value in state.items())


def renamed(state: State, *rules: tuple[str, Any]) -> State:
    """Rename each key by the first rule (pattern, replacement) that matches the whole key; no rule keeps the key."""
    found = OrderedDict()
    for key, value in state.items():
        for pattern, replacement in rules:
            new, matched = re.subn(f"^{pattern}$", replacement, key)
            if matched:
                found[new] = value
                break
        else:
            found[key] = value
    assert len(found) == len(state)
    return found


def head(*names: str) -> State:
    """Return small tensors that are not part of a backbone."""
    return OrderedDict((name, torch.ones(2)) for name in names)


def without_counters(state: State) -> State:
    """Return tensors without `num_batches_tracked`."""
    return OrderedDict((k, v) for k, v in state.items() if not k.endswith("num_batches_tracked"))


def detectron2(state: State) -> State:
    """Rename tensors as Detectron2 does."""

    def stage(match: re.Match[str]) -> str:
        number, block, rest = int(match[1]) + 1, match[2], match[3]
        rest = re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)
        rest = re.sub(r"^downsample\.0\.", "shortcut.", rest)
        rest = re.sub(r"^downsample\.1\.", "shortcut.norm.", rest)
        return f"res{number}.{block}.{rest}"

    return renamed(
        state,
        (r"conv1\.weight", "stem.conv1.weight"),
        (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
        (r"layer(\d)\.(\d+)\.(.*)", stage),
    )


def caffe2(state: State, scale: str, shift: str, mean: str, variance: str) -> dict[str, np.ndarray]:
    """Rename tensors as Caffe2 does, with these names of the tensors of a batch norm."""
    names = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}

    def stage(match: re.Match[str]) -> str:
        where, rest = f"res{int(match[1]) + 1}_{match[2]}", match[3]
        kind, last = rest.rsplit(".", 1)
        if kind == "downsample.0":
            return f"{where}_branch1_w"
        if kind == "downsample.1":
            return f"{where}_branch1_bn_{names[last]}"
        letter = "abc"[int(kind[-1]) - 1]
        return f"{where}_branch2{letter}_w" if kind.startswith("conv") else f"{where}_branch2{letter}_bn_{names[last]}"

    found = renamed(
        without_counters(state),
        (r"conv1\.weight", "conv1_w"),
        (r"bn1\.(\w+)", lambda match: f"res_conv1_bn_{names[match[1]]}"),
        (r"layer(\d)\.(\d+)\.(.*)", stage),
    )
    return {key: value.numpy() for key, value in found.items()}


def hugging_face(state: State) -> State:
    """Rename tensors as transformers does."""

    def stage(match: re.Match[str]) -> str:
        where = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}"
        kind, last = match[3].rsplit(".", 1)
        if kind.startswith("downsample"):
            return f"{where}.shortcut.{'convolution' if kind[-1] == '0' else 'normalization'}.{last}"
        part = "convolution" if kind.startswith("conv") else "normalization"
        return f"{where}.layer.{int(kind[-1]) - 1}.{part}.{last}"

    return renamed(
        state,
        (r"conv1\.weight", "embedder.embedder.convolution.weight"),
        (r"bn1\.(\w+)", r"embedder.embedder.normalization.\1"),
        (r"layer(\d)\.(\d+)\.(.*)", stage),
    )


def separius(state: State) -> State:
    """Rename tensors as Separius's converter of SimCLR v2 does."""

    def stage(match: re.Match[str]) -> str:
        where = f"net.{match[1]}.blocks.{match[2]}"
        kind, last = match[3].rsplit(".", 1)
        if kind.startswith("downsample"):
            return f"{where}.projection.shortcut.weight" if kind[-1] == "0" else f"{where}.projection.bn.0.{last}"
        place = 2 * (int(kind[-1]) - 1)
        return f"{where}.net.{place}.weight" if kind.startswith("conv") else f"{where}.net.{place + 1}.0.{last}"

    return renamed(
        state,
        (r"conv1\.weight", "net.0.0.weight"),
        (r"bn1\.(\w+)", r"net.0.1.0.\1"),
        (r"layer(\d)\.(\d+)\.(.*)", stage),
    )


def sequential(state: State, first: int, shortcut: str) -> State:
    """Rename tensors as `nn.Sequential` does, if it has the first stage at the index `first`."""
    return renamed(
        state,
        (r"conv1\.(\w+)", r"0.\1"),
        (r"bn1\.(\w+)", r"1.\1"),
        (
            r"layer(\d)\.(.*)",
            lambda match: f"{int(match[1]) - 1 + first}.{match[2].replace('downsample', shortcut)}",
        ),
    )


class _ByolExperimentState(NamedTuple):
    """Content of a pickle of DeepMind's BYOL. The reader does not have this class."""

    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


def haiku(state: State, network: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return parameters and running statistics as trees of haiku: kernels (H, W, I, O), vectors (1, 1, 1, C)."""
    params: dict[str, dict[str, Any]] = {}
    stats: dict[str, dict[str, Any]] = {}
    for key, value in without_counters(state).items():
        *where, last = key.split(".")
        if len(where) == 1:
            module = {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[where[0]]
        else:
            module = f"block_group_{int(where[0][-1]) - 1}/~/block_{where[1]}/~/"
            if where[2] == "downsample":
                module += ("shortcut_conv", "shortcut_batchnorm")[int(where[3])]
            else:
                module += ("conv" if where[2][0] == "c" else "batchnorm") + f"_{int(where[2][-1]) - 1}"
        module = f"{network}/~/{module}"
        array = value.permute(2, 3, 1, 0).numpy() if value.ndim == 4 else value.numpy().reshape(1, 1, 1, -1)
        if last.startswith("running"):
            name = "mean_ema" if last.endswith("mean") else "var_ema"
            stats[f"{module}/~/{name}"] = {"average": array, "hidden": array, "counter": np.int64(3)}
        else:
            own = "w" if value.ndim == 4 else {"weight": "scale", "bias": "offset"}[last]
            params.setdefault(module, {})[own] = array
    params["projector/linear"] = {"w": np.ones((2, 2), np.float32)}
    params["classifier"] = {"b": np.ones(2, np.float32)}
    return params, stats


def msra_source(state: State) -> State:
    """Return tensors of a network that expects BGR in 0..255 with the standard deviation 1, with equal features."""
    std = 255 * torch.tensor([0.229, 0.224, 0.225])
    return {**state, "conv1.weight": (state["conv1.weight"] / std[None, :, None, None]).flip(1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A checkpoint and how it must be recognized.

    Attributes:
        root: the content of the file.
        tensors: the dictionary in `root` that holds the backbone.
        aside: keys that must be left aside.
        branch: None if any branch is right.
        counters: whether the file has `num_batches_tracked`.
    """

    root: dict[str, Any]
    layout: str
    tensors: dict[str, Any]
    aside: tuple[str, ...]
    branch: str | None = None
    counters: bool = True


def _simple(layout: str, **fields: Any) -> Callable[[State, State], Case]:
    """Return the maker of a case with one dictionary of tensors.

    Args:
        fields: `prefix` of the backbone's names; `nest`, the keys from the top to the dictionary; `rename`, a function
            of tensors; `copies` and `copies_first`, prefixes of other copies after and before the backbone; `heads`,
            keys next to the backbone; `top`, other entries at the top; `branch` and `counters` of the case.
    """

    def make(state: State, other: State) -> Case:
        rename = fields.get("rename", lambda value: value)
        inside = OrderedDict(prefixed(fields.get("prefix", ""), rename(state)))
        for prefix in fields.get("copies", ()):
            inside.update(prefixed(prefix, rename(other)))
        if "copies_first" in fields:
            inside = OrderedDict(prefixed(fields["copies_first"], rename(other)) | inside)
        inside.update(head(*fields.get("heads", ())))
        root: dict[str, Any] = dict(fields.get("top", {}))
        if "nest" in fields:
            value: Any = inside
            for part in reversed(fields["nest"].split("/")):
                value = {part: value}
            for key, item in value.items():
                root[key] = {**root.get(key, {}), **item}
        else:
            inside.update(root)
            root = inside
        aside = (*fields.get("heads", ()), *fields.get("top", ()))
        aside += tuple(f"{prefix}{key}" for prefix in fields.get("copies", ()) for key in rename(other))
        tensors = inside
        if "nest" in fields:
            tensors = root
            for part in fields["nest"].split("/"):
                tensors = tensors[part]
        return Case(
            root=root,
            layout=layout,
            tensors=tensors,
            aside=aside,
            branch=fields.get("branch"),
            counters=fields.get("counters", True),
        )

    return make


_TRAINING = {"epoch": 200, "arch": "resnet50", "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
_LIGHTNING = {"epoch": 99, "global_step": 500400, "pytorch-lightning_version": "2.1.0", "optimizer_states": []}
_SPT = {**_LIGHTNING, "spt_run_dir": "runs/1"}


def _moved_first(state: State) -> State:
    """Sort as TensorFlow does: the projection of a block before its convolutions."""
    return OrderedDict(sorted(state.items(), key=lambda item: (item[0].split(".")[:2], "downsample" not in item[0])))


def _weights_first(state: State) -> State:
    """Sort as byol-convert does: all parameters, then all running statistics."""
    kept = without_counters(state)
    return OrderedDict(sorted(kept.items(), key=lambda item: "running" in item[0]))


def _dino(state: State, other: State) -> Case:
    heads = head("module.head.mlp.0.weight", "module.head.last_layer.weight_g")
    teacher = OrderedDict(prefixed("module.backbone.", state) | heads)
    root = {
        "student": OrderedDict(prefixed("module.backbone.", other) | heads),
        "teacher": teacher,
        "optimizer": {},
        "epoch": 100,
        "args": argparse.Namespace(arch="resnet50", lr=0.03),
        "dino_loss": head("center"),
    }
    aside = ("student", "optimizer", "epoch", "args", "dino_loss", "module.head.mlp.0.weight")
    return Case(root=root, layout="dino", tensors=teacher, aside=aside, branch="teacher")


def _detectron2_detector(state: State, other: State) -> Case:
    """C4 detector of MoCo: res5 in the head, frozen batch norms without counters, one more norm after res5."""
    model = OrderedDict(
        (f"roi_heads.{key}" if key.startswith("res5.") else f"backbone.{key}", value)
        for key, value in detectron2(without_counters(state)).items()
    )
    heads = head(
        "roi_heads.res5.norm.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "proposal_generator.rpn_head.conv.bias",
    )
    model.update(heads)
    root = {"model": model, "optimizer": {}, "scheduler": {}, "iteration": 89999}
    return Case(
        root=root,
        layout="detectron2-c4",
        tensors=model,
        aside=(*heads, "optimizer", "scheduler", "iteration"),
        counters=False,
    )


def _detectron2_pickle(state: State, other: State) -> Case:
    model = {key: value.numpy() for key, value in detectron2(state).items()}
    model["stem.fc.weight"] = np.ones((2, 2), np.float32)
    root = {"model": model, "__author__": "MOCO", "matching_heuristics": True}
    return Case(root=root, layout="detectron2", tensors=model, aside=("stem.fc.weight", "__author__"))


def _byol(state: State, other: State) -> Case:
    params, stats = haiku(state, "res_net50")
    other_params, other_stats = haiku(other, "res_net50")
    root = {
        "experiment_state": _ByolExperimentState(params, other_params, stats, other_stats, None),
        "step": 1,
        "rng": np.zeros(2, np.uint32),
    }
    aside = ("projector/linear/w", "classifier/b", "step", "rng")
    return Case(root=root, layout="byol-deepmind", tensors=params, aside=aside, branch="online", counters=False)


def _split_bn(state: State) -> State:
    split = sequential(state, 2, "shortcut")
    return OrderedDict((k, v.repeat(8) if ".running_" in k else v) for k, v in split.items())


def _vissl(state: State, other: State) -> Case:
    trunk = prefixed("_feature_blocks.", state)
    model = {"trunk": trunk, "heads": head("0.clf.0.weight")}
    loss = {"moco_encoder.trunk._feature_blocks." + key: value for key, value in other.items()}
    root = {
        "phase_idx": 199,
        "iteration": 1000,
        "classy_state_dict": {"base_model": {"model": model, "meta": {"x": 1}}, "loss": loss},
    }
    aside = ("phase_idx", "classy_state_dict/loss", "classy_state_dict/base_model/meta")
    aside += ("classy_state_dict/base_model/model/heads",)
    return Case(root=root, layout="vissl", tensors=trunk, aside=aside)


CASES: dict[str, Callable[[State, State], Case]] = {
    "moco v1": _simple(
        "moco",
        nest="state_dict",
        prefix="module.encoder_q.",
        heads=("module.encoder_q.fc.weight", "module.queue"),
        copies=("module.encoder_k.",),
        top=_TRAINING,
        branch="query",
    ),
    "moco v2 released": _simple(
        "moco",
        nest="state_dict",
        prefix="module.encoder_q.",
        heads=("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias"),
        top={"epoch": 200, "arch": "resnet50"},
    ),
    "moco without ddp": _simple(
        "moco", nest="state_dict", prefix="encoder_q.", heads=("queue",), copies_first="encoder_k.", top=_TRAINING
    ),
    "moco v3": _simple(
        "moco-v3",
        nest="state_dict",
        prefix="module.base_encoder.",
        heads=("module.base_encoder.fc.4.running_mean", "module.predictor.0.weight"),
        copies=("module.momentum_encoder.",),
        top={**_TRAINING, "scaler": {}},
    ),
    "simsiam": _simple(
        "simsiam",
        nest="state_dict",
        prefix="module.encoder.",
        heads=("module.encoder.fc.1.running_mean", "module.predictor.0.weight"),
        top=_TRAINING,
    ),
    "simclr tonylins": _simple(
        "simclr-tonylins", nest="state_dict", rename=_moved_first, heads=("fc.weight", "fc.bias")
    ),
    "simclr separius": _simple(
        "simclr-separius", nest="resnet", rename=separius, heads=("fc.weight",), top={"head": head("layers.0.weight")}
    ),
    "byol deepmind": _byol,
    "byol chigur": _simple("byol", rename=_weights_first, heads=("fc.weight",), counters=False),
    "swav released": _simple(
        "swav", prefix="module.", heads=("module.projection_head.0.weight", "module.prototypes.weight")
    ),
    "swav own": _simple(
        "swav", nest="state_dict", prefix="module.", heads=("module.projection_head.0.weight",), top=_TRAINING
    ),
    "deepcluster v2": _simple(
        "deepcluster-v2",
        prefix="module.",
        heads=("module.prototypes.prototypes0.weight", "module.projection_head.1.bias"),
    ),
    "dino full": _dino,
    "barlow twins": _simple(
        "barlow-twins",
        nest="model",
        prefix="module.backbone.",
        heads=("module.projector.0.weight", "module.bn.running_mean", "module.bn.running_var"),
        top={"epoch": 1000, "optimizer": {}},
    ),
    "vicreg": _simple(
        "vicreg",
        nest="model",
        prefix="module.backbone.",
        heads=("module.projector.0.weight",),
        top={"epoch": 1000, "optimizer": {}},
    ),
    "zero-cl": _simple(
        "zero-cl",
        nest="model",
        prefix="module.backbone.",
        heads=("module.projector.0.weight", "module.bn.running_mean", "module.whiten_bn.running_mean"),
        top={"epoch": 1000, "optimizer": {}},
    ),
    "w-mse": _simple("w-mse", prefix="model.module.", heads=("head.0.weight",)),
    "w-mse byol": _simple("w-mse", prefix="model.module.", heads=("head.0.weight",), copies=("model_t.module.",)),
    "cw-rgp imagenet": _simple(
        "cw-rgp", nest="state_dict", prefix="module.model.", heads=("module.head.0.weight",), top=_TRAINING
    ),
    "cw-rgp base": _simple(
        "cw-rgp", nest="state_dict", prefix="model.module.", heads=("head.0.weight",), top=_TRAINING
    ),
    "shuffled-dbn variant 1": _simple(
        "shuffled-dbn",
        nest="state_dict",
        prefix="backbone.",
        copies=("encoder.0.",),
        heads=("projector.0.weight",),
        top={"epoch": 800},
    ),
    "shuffled-dbn variant 2": _simple(
        "shuffled-dbn-variant2",
        nest="state_dict",
        prefix="backbone.",
        copies=("online_encoder.0.", "target_encoder.0."),
        rename=lambda s: renamed(s, (r"(.*)\.downsample\.(.*)", r"\1.shortcut.\2")),
        top={"epoch": 800},
    ),
    "intl": _simple(
        "intl",
        nest="state_dict",
        prefix="module.backbone.",
        heads=("module.projection.0.weight", "module.projection.1.running_mean"),
        top=_TRAINING,
    ),
    "intl multi-crop": _simple(
        "intl",
        nest="state_dict",
        prefix="module.backbone.",
        copies_first="module.momentum_backbone.",
        heads=("module.projection.0.weight", "module.momentum_projection.0.weight"),
        top=_TRAINING,
    ),
    "solo-learn": _simple(
        "solo-learn",
        nest="state_dict",
        prefix="backbone.",
        copies=("momentum_backbone.",),
        heads=("classifier.weight", "classifier.bias", "momentum_classifier.weight", "projector.0.weight", "queue"),
        top=_LIGHTNING,
    ),
    "solo-learn old": _simple(
        "solo-learn",
        nest="state_dict",
        prefix="encoder.",
        copies=("momentum_encoder.",),
        heads=("classifier.weight", "projector.0.weight", "predictor.0.weight"),
        top=_LIGHTNING,
    ),
    "lightly dino": _simple(
        "lightly",
        nest="state_dict",
        prefix="backbone.",
        copies=("student_backbone.",),
        heads=("projection_head.layers.0.weight", "student_projection_head.layers.0.weight"),
        top=_LIGHTNING,
    ),
    "lightly moco": _simple(
        "lightly",
        nest="state_dict",
        prefix="backbone.",
        copies=("key_backbone.",),
        heads=("projection_head.layers.0.weight", "online_classifier.linear.weight"),
        top=_LIGHTNING,
    ),
    "lightly examples": _simple(
        "lightly-sequential",
        nest="state_dict",
        prefix="backbone.",
        rename=lambda s: sequential(s, 4, "downsample"),
        copies=("backbone_momentum.",),
        heads=("projection_head.layers.0.weight",),
        top=_LIGHTNING,
    ),
    "lightly examples bare": _simple("lightly-sequential", rename=lambda s: sequential(s, 4, "downsample")),
    "lightly cifar": _simple(
        "lightly-cifar",
        nest="state_dict",
        prefix="backbone.",
        rename=lambda s: sequential(s, 2, "shortcut"),
        heads=("projection_head.layers.0.weight",),
        top=_LIGHTNING,
    ),
    "lightly cifar split batch norm": _simple(
        "lightly-cifar", nest="state_dict", prefix="backbone.", rename=_split_bn, copies=("backbone_momentum.",)
    ),
    "vissl": _vissl,
    "vissl feature evaluation": _simple(
        "vissl", nest="classy_state_dict/base_model/model/trunk", prefix="base_model._feature_blocks."
    ),
    "vissl converted": _simple("vissl", nest="model_state_dict", prefix="_feature_blocks."),
    "mmselfsup 0.x": _simple(
        "openmmlab",
        nest="state_dict",
        prefix="backbone.",
        copies=("encoder_q.0.", "encoder_k.0."),
        heads=("neck.fc0.weight", "queue"),
        top={"meta": {"epoch": 200}},
    ),
    "mmpretrain": _simple(
        "openmmlab",
        nest="state_dict",
        prefix="backbone.",
        copies=("target_net.module.0.",),
        heads=("head.fc.weight", "target_net.steps"),
        top={"meta": {"seed": 0}, "message_hub": {}},
    ),
    "mmpretrain extracted": _simple("openmmlab", nest="state_dict", top={"meta": {}}),
    "torchvision": _simple("torchvision", heads=("fc.weight", "fc.bias")),
    "torchvision old": _simple("torchvision", rename=without_counters, heads=("fc.weight",), counters=False),
    "linear classifier": _simple(
        "torchvision", nest="state_dict", prefix="module.", heads=("module.fc.weight",), top=_TRAINING
    ),
    "timm training": _simple(
        "timm",
        nest="state_dict_ema",
        heads=("fc.weight",),
        top={**_TRAINING, "version": 2, "metric": 79.0, "args": argparse.Namespace(model="resnet50")},
        branch="ema",
    ),
    "hugging face": _simple("hugging-face", prefix="resnet.", rename=hugging_face, heads=("classifier.1.weight",)),
    "hugging face bare": _simple("hugging-face", rename=hugging_face),
    "detectron2 converters": _detectron2_pickle,
    "detectron2 c4 detector": _detectron2_detector,
    "detectron2 fpn detector": _simple(
        "detectron2",
        nest="model",
        prefix="backbone.bottom_up.",
        rename=lambda s: detectron2(without_counters(s)),
        heads=("backbone.fpn_lateral2.weight", "roi_heads.box_head.fc1.weight"),
        top={"iteration": 1},
        counters=False,
    ),
    "stable-pretraining": _simple(
        "stable-pretraining",
        nest="state_dict",
        prefix="backbone.",
        heads=("projector.0.weight", "callbacks_modules.probe.weight"),
        top=_SPT,
        branch="online",
    ),
    "stable-pretraining byol": _simple(
        "stable-pretraining",
        nest="state_dict",
        prefix="backbone.teacher.",
        copies=("backbone.student.",),
        heads=("backbone.ema_coefficient", "projector.student.0.weight", "callbacks_metrics.x"),
        top=_SPT,
        branch="teacher",
    ),
    "stable-pretraining hugging face": _simple(
        "stable-pretraining", nest="state_dict", prefix="backbone.", rename=hugging_face, top=_SPT
    ),
    "compiled ddp": _simple(
        "intl", nest="state_dict", prefix="_orig_mod.module.backbone.", heads=("_orig_mod.module.projection.0.weight",)
    ),
}
