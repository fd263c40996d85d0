"""Files as projects of 2019 to 2026 write them, through `intl-bench convert`: every tensor, and the printed lines.

The keys follow the code of the projects: lightly-train (_checkpoint.py), stable-pretraining (backbone/utils.py),
MMPretrain (selfsup/base.py, with its data_preprocessor), mmengine (hooks/ema_hook.py), OpenMixup (mim_resnet.py), SparK
(pretrain/utils/misc.py, pretrain/encoder.py), CLIP (clip/model.py), transformers (modeling_timm_wrapper.py), DINO and
iBOT (main_dino.py, main_ibot.py), ema-pytorch (ema_pytorch.py), torchvision's references (classification/train.py),
DeepSpeed (engine.py), Composer (core/state.py), SupContrast (networks/resnet_big.py).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from layout_cases import State, head, hugging_face, prefixed, random_state, renamed, sequential

from intl_bench.cli import main
from transfer.convert import read

Capture = pytest.CaptureFixture[str]
A, B = random_state("resnet10_narrow", 0), random_state("resnet10_narrow", 1)


def children(state: State) -> State:
    return sequential(state, 4, "downsample")


def inside(state: State, wrapper: str) -> State:
    """Wrap every stage."""
    return renamed(state, (r"(.*)(layer\d)\.(.*)", rf"\1\2.{wrapper}.\3"))


class Project(NamedTuple):
    """A file of a project, the backbone that is read, its layout, and a text that is printed."""

    root: Any
    expected: State
    source: str
    printed: str = ""
    options: tuple[str, ...] = ()


MOMENTUM = {**prefixed("backbone.", children(A)), **prefixed("backbone_momentum.", children(B))}
PAIR = {**prefixed("student_backbone.", children(A)), **prefixed("teacher_backbone.", children(B))}
LIGHTLY = head("projection_head.layers.0.weight")
LIGHTNING = {"epoch": 99, "global_step": 500400, "pytorch-lightning_version": "2.1.0", "hyper_parameters": {"lr": 0.1}}
TRAIN = r"embedding_model.wrapped_model._features."

PROJECTS: dict[str, Callable[[], Project]] = {
    "lightly-train SimCLR": lambda: Project(
        {"state_dict": prefixed(TRAIN, A), "lightly_train": {"version": "0.14.1"}, **LIGHTNING}, A, "lightly-train"
    ),
    "lightly-train of timm": lambda: Project(
        {"state_dict": prefixed("embedding_model.model_wrapper._model.", A), "lightly_train": {}}, A, "lightly-train"
    ),
    "lightly-train distillation": lambda: Project(
        {"state_dict": prefixed(f"student_{TRAIN}", A), "lightly_train": {}}, A, "lightly-train:student"
    ),
    "lightly-train export": lambda: Project({**A, **head("fc.weight", "fc.bias")}, A, "torchvision"),
    "stable-pretraining": lambda: Project(
        {
            "state_dict": {**prefixed("backbone.teacher.", A), **prefixed("backbone.student.", B)},
            "spt_run_dir": "runs/1",
            **LIGHTNING,
        },
        A,
        "stable-pretraining",
        "--from stable-pretraining:student reads state_dict/backbone.student.",
    ),
    "stable-pretraining export": lambda: Project(prefixed("resnet.", hugging_face(A)), A, "hugging-face"),
    "MMPretrain 1.x": lambda: Project(
        {"meta": {}, "state_dict": {**prefixed("backbone.", A), **head("data_preprocessor.mean", "head.fc.bias")}},
        A,
        "openmmlab",
    ),
    "MMPretrain student": lambda: Project(
        {"meta": {}, "state_dict": {**prefixed("student.backbone.", A), **head("student.neck.fc.weight")}},
        A,
        "torchvision",
    ),
    "mmengine EMA": lambda: Project(
        {
            "meta": {},
            "state_dict": prefixed("backbone.", A),
            "ema_state_dict": {**prefixed("module.backbone.", B), "steps": torch.tensor(3)},
        },
        A,
        "openmmlab",
        "2 backbones in the file: the one at state_dict/backbone. is read; --from openmmlab:ema reads ema_state_dict/",
    ),
    "OpenMixup A2MIM": lambda: Project(
        {"meta": {}, "state_dict": {**prefixed("backbone.", A), **head("backbone.mask_token", "neck.decoder.weight")}},
        A,
        "openmmlab",
        "left aside: ",
    ),
    "SparK": lambda: Project(
        {
            "module": {**prefixed("sparse_encoder.sp_cnn.", A), **head("dense_decoder.dec.0.weight", "mask_tokens.0")},
            "is_pretrain": True,
            "args": "Namespace()",
        },
        A,
        "torchvision",
    ),
    "transformers' timm wrapper": lambda: Project(
        {**prefixed("timm_model.", A), **head("timm_model.fc.weight")}, A, "torchvision"
    ),
    "open_clip with timm": lambda: Project(
        {"state_dict": {**prefixed("module.visual.trunk.", A), **head("module.visual.head.proj.weight")}},
        A,
        "torchvision",
    ),
    "DINO": lambda: Project(
        {
            "student": prefixed("module.backbone.", A),
            "teacher": prefixed("backbone.", B),
            "args": argparse.Namespace(arch="resnet50"),
        },
        B,
        "dino",
        "--from dino:student reads student/module.backbone.",
    ),
    "iBOT without wrappers": lambda: Project(
        {"student": A, "teacher": B, "ibot_loss": head("center")},
        B,
        "torchvision",
        "the one at teacher is read; --from torchvision:student reads student",
    ),
    "student and teacher two levels deep": lambda: Project(
        {"model": {"student": prefixed("backbone.", A), "teacher": prefixed("backbone.", B)}}, B, "dino"
    ),
    "student alone": lambda: Project({"model": {"student": A}, "epoch": 3}, A, "torchvision"),
    "torchvision's references": lambda: Project(
        {"model": A, "model_ema": {**prefixed("module.", B), "n_averaged": torch.tensor(3)}, "args": None},
        A,
        "torchvision",
        "the one at model is read; --from torchvision:ema reads model_ema/module.",
    ),
    "torchvision's references, EMA": lambda: Project(
        {"model": A, "model_ema": prefixed("module.", B)}, B, "torchvision:ema", options=("--from", "torchvision:ema")
    ),
    "timm with EMA": lambda: Project(
        {"state_dict": A, "state_dict_ema": B, "arch": "resnet18", "metric": 70.0},
        B,
        "timm",
        "the one at state_dict_ema is read; --from timm:online reads state_dict",
    ),
    "ema-pytorch": lambda: Project(
        {**prefixed("online_model.", A), **prefixed("ema_model.", B), "initted": torch.tensor(True)},
        A,
        "torchvision",
        "--from torchvision:ema reads ema_model.",
    ),
    "two encoders": lambda: Project(
        {"encoder": A, "momentum_encoder": B}, A, "torchvision", "--from torchvision:momentum reads momentum_encoder"
    ),
    "module_ema": lambda: Project({"module": A, "module_ema": B}, A, "torchvision", "--from torchvision:ema"),
    "torch.compile of blocks": lambda: Project(
        {"state_dict": prefixed("model.", inside(A, "_orig_mod"))}, A, "torchvision"
    ),
    "activation checkpointing": lambda: Project(
        {"model": prefixed("module.", inside(A, "_checkpoint_wrapped_module"))}, A, "torchvision"
    ),
    "FSDP full state": lambda: Project(
        prefixed("_fsdp_wrapped_module.backbone.", inside(A, "_fsdp_wrapped_module")), A, "torchvision"
    ),
    "Fabric": lambda: Project({"model": prefixed("_forward_module._lightning_module.net.", A)}, A, "torchvision"),
    "DeepSpeed": lambda: Project(
        {"module": prefixed("backbone.", A), "buffer_names": [], "ds_version": "0.15.0"}, A, "torchvision"
    ),
    "Composer": lambda: Project(
        {"state": {"model": prefixed("module.", A), "optimizers": {}}, "rng": []}, A, "torchvision"
    ),
    "SwAV in a trainer": lambda: Project(
        {"checkpoint": {"state_dict": {**prefixed("module.", A), **head("module.prototypes.weight")}}}, A, "swav"
    ),
    "lightly flat": lambda: Project(
        {**MOMENTUM, **LIGHTLY},
        A,
        "lightly-sequential",
        "--from lightly-sequential:momentum reads backbone_momentum.",
    ),
    "lightly under model": lambda: Project({"model": {**MOMENTUM, **LIGHTLY}, "epoch": 3}, A, "lightly-sequential"),
    "lightly flat, momentum": lambda: Project(
        {**MOMENTUM, **LIGHTLY},
        B,
        "lightly-sequential:momentum",
        options=("--from", "lightly-sequential:momentum"),
    ),
    "lightly flat pair": lambda: Project(
        PAIR, B, "lightly-sequential", "--from lightly-sequential:student reads student_backbone."
    ),
    "lightly pair under model": lambda: Project({"model": PAIR}, B, "lightly-sequential"),
    "children without max-pool": lambda: Project(
        {**prefixed("f.", sequential(A, 3, "downsample")), **head("g.0.weight")}, A, "sequential"
    ),
    "SupContrast": lambda: Project(
        {
            "opt": argparse.Namespace(model="resnet18"),
            "model": {
                **prefixed("encoder.module.", renamed(A, (r"(.*)\.downsample\.(.*)", r"\1.shortcut.\2"))),
                **head("head.0.weight"),
            },
        },
        A,
        "shortcut",
    ),
    "half precision": lambda: Project(
        {"model": {k: v.half().float().half() if v.is_floating_point() else v for k, v in A.items()}},
        {k: v.half().float() if v.is_floating_point() else v for k, v in A.items()},
        "torchvision",
        "stored as float16",
    ),
}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_file_of_the_project_is_converted(name: str, tmp_path: Path, capsys: Capture) -> None:
    project = PROJECTS[name]()
    path, out = tmp_path / "source.pth", tmp_path / "out.pth"
    torch.save(project.root, path)
    assert main(["convert", str(path), str(out), "--to", "torchvision", *project.options]) == 0
    output = capsys.readouterr()
    assert f"source.pth: {project.source}, resnet10_narrow" in output.out
    assert project.printed in output.out
    assert output.err == ""
    written = torch.load(out, weights_only=True)
    assert list(written) == list(A)
    assert all(torch.equal(written[key], value) for key, value in project.expected.items())
    assert read(out).source == project.source


def test_scoring_names_the_other_backbone_too(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"model": A, "model_ema": B}, tmp_path / "a.pth")
    read(tmp_path / "a.pth")
    assert "2 backbones in the file: the one at model is read; --from torchvision:ema" in capsys.readouterr().err
    read(tmp_path / "a.pth", "torchvision:ema")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({**prefixed("visual.", A), **head("visual.attnpool.c_proj.weight", "visual.conv2.weight")}, "CLIP's ResNet"),
        ({**A, **head("conv2.weight", "conv3.weight")}, "a deep stem (ResNet-C or -D)"),
        ({"model": {"_fsdp_wrapped_module._flat_param": torch.ones(3)}}, "flattened parameters of FSDP"),
        ({"ema": {"shadow_params": [torch.ones(3)]}}, "averaged weights in a list without names"),
        ({**A, "layer1.0.module.conv1.weight": torch.ones(3)}, "are the same name without their wrappers"),
        ({"a": A, "b": B}, "choose --from torchvision:a or --from torchvision:b"),
    ],
)
def test_what_is_refused_is_one_line(change: Any, message: str, tmp_path: Path, capsys: Capture) -> None:
    torch.save(change, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "out.pth"), "--to", "torchvision"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()
