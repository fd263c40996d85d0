"""Conversion of whole files: parity with the networks of other projects, and reading by the tasks."""

import importlib.util
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from layout_cases import CASES, State, caffe2, head, msra_source, prefixed, random_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transfer_cases import CPU

from intl_bench.core.errors import BenchError, InputError
from pretrain import train
from pretrain.backbone import build_backbone
from pretrain.checkpoint import Origin, Preprocessing, export_backbone
from pretrain.recipe import Inputs, load_recipe
from pretrain.states import save
from transfer.convert import convert, from_detectron2, load_backbone, read, to_detectron2
from transfer.features import build_backbone_of


@pytest.fixture(scope="module")
def small() -> tuple[State, State]:
    return random_state("resnet10_narrow", 0), random_state("resnet10_narrow", 1)


def write(root: Any, path: Path) -> Path:
    torch.save(root, path)
    return path


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def torchvision_features(name: str, state: State, size: int = 64) -> torch.Tensor:
    model = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    model.load_state_dict(state, strict=True)
    return model.eval()(images(size))


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("name", [name for name in CASES if name != "byol deepmind"])
def test_every_layout_from_file_to_file(name: str, small: tuple[State, State], tmp_path: Path) -> None:
    case = CASES[name](*small)
    path = write(case.root, tmp_path / "source.pth.tar")
    conversion = convert(path, tmp_path / "out.pth", to="torchvision")
    assert conversion.difference <= 1e-6
    assert set(case.aside) <= set(conversion.left_aside)
    assert all("\n" not in line for line in conversion.lines)
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert type(written) is dict
    assert list(written) == list(small[0])
    for key, tensor in small[0].items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(written[key], tensor)
    about = json.loads((tmp_path / "out.pth.json").read_text())
    assert about["source"].split(":")[0] == case.layout
    assert about["backbone"] == {"name": "resnet10_narrow", "stem": "imagenet", "zero_init_residual": False}
    (tmp_path / "out.pth.json").write_text((tmp_path / "out.pth.json").read_text()[:100])
    with pytest.raises(InputError, match=r"out\.pth\.json: damaged: it is not valid JSON"):
        read(tmp_path / "out.pth")


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_features_are_torchvisions(name: str, tmp_path: Path) -> None:
    """The source in torchvision's network gives the features of the written files, there and in our backbone."""
    state = random_state(name)
    path = write({"state_dict": prefixed("module.encoder_q.", state), "epoch": 200}, tmp_path / "a.pth.tar")
    expected = torchvision_features(name, state)
    convert(path, tmp_path / "a.pkl", to="detectron2")
    convert(path, tmp_path / "a.pth", to="timm")
    assert relative(torchvision_features(name, load_backbone(tmp_path / "a.pkl")), expected) <= 1e-6
    assert relative(torchvision_features(name, torch.load(tmp_path / "a.pth", weights_only=True)), expected) <= 1e-6
    checkpoint = read(path)
    with torch.inference_mode():
        assert relative(build_backbone_of(checkpoint).eval()(images()), expected) <= 1e-6
    assert (checkpoint.method, checkpoint.epoch, checkpoint.details) == ("MoCo", 200, {})
    assert checkpoint.architecture.name == name
    assert (checkpoint.origin, checkpoint.source, checkpoint.seed) == (Origin.FOREIGN, "moco", None)


@pytest.mark.parametrize("name", ["resnet10_narrow", "resnet18", "resnet34", "resnet50"])
def test_detectron2_names_there_and_back(name: str) -> None:
    state = random_state(name)
    renamed = to_detectron2(state)
    assert len(renamed) == len(state)
    assert {key.split(".")[0] for key in renamed} == {"stem", "res2", "res3", "res4", "res5"}
    back = from_detectron2(renamed)
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())
    frozen = {key: value for key, value in renamed.items() if not key.endswith("num_batches_tracked")}
    assert len(frozen) == {"resnet10_narrow": 60, "resnet18": 100, "resnet34": 180, "resnet50": 265}[name]
    thawed = from_detectron2(frozen)
    assert list(thawed) == list(state)
    assert all(torch.equal(thawed[key], back[key]) for key in back if not key.endswith("tracked"))
    with pytest.raises(InputError, match=r"fc\.weight is not part of the backbone"):
        to_detectron2({**state, "fc.weight": torch.ones(2)})
    del frozen["res3.0.shortcut.norm.bias"]
    with pytest.raises(InputError, match=r"res3\.0\.shortcut\.norm\.bias is missing"):
        from_detectron2(frozen)


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_detectron2_files(ending: str, small: tuple[State, State], tmp_path: Path) -> None:
    path = write({**small[0], **head("fc.weight")}, tmp_path / "a.pth")
    out = tmp_path / f"out.{ending}"
    conversion = convert(path, out, to="detectron2")
    if ending == "pkl":
        content = pickle.loads(out.read_bytes())
        assert all(value.dtype == np.float32 for value in content["model"].values())
    else:
        content = torch.load(out, weights_only=True)
    assert content["matching_heuristics"] is True
    assert len(content["model"]) == 60
    assert any("PIXEL_STD [58.395, 57.12, 57.375]" in line for line in conversion.lines)
    again = load_backbone(out)
    assert all(torch.equal(again[key], tensor) for key, tensor in small[0].items() if not key.endswith("tracked"))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_detectron2s_own_network_gives_the_same_features(depth: int, ending: str, tmp_path: Path) -> None:
    """Its checkpointer loads the file as `MODEL.WEIGHTS`; no weight keeps its initial value."""
    pytest.importorskip("detectron2")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    state = random_state(f"resnet{depth}")
    path = write(prefixed("module.", {**state, **head("fc.weight")}), tmp_path / "source.pth")
    conversion = convert(path, tmp_path / f"out.{ending}", to="detectron2")
    assert any("Detectron2's own ResNet" in line for line in conversion.lines)
    assert conversion.difference <= 1e-6
    cfg = get_cfg()
    (line,) = (line for line in conversion.lines if line.startswith("in Detectron2 set "))
    settings = re.split(r", (?=[A-Z])", line.removeprefix("in Detectron2 set "))
    cfg.merge_from_list([word for setting in settings for word in setting.split(" ", 1)])
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    network = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(network).load(str(tmp_path / f"out.{ending}"))
    with torch.inference_mode():
        features = network(images())["res5"].mean((2, 3))
    assert relative(features, torchvision_features(f"resnet{depth}", state)) <= 1e-6


def test_a_written_file_with_other_features_is_an_error(
    small: tuple[State, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check reads the written file; this writer changes one tensor by one part in a thousand."""
    path = write(small[0], tmp_path / "a.pth")
    right = torch.save

    def wrong(content: State, stream: Any) -> None:
        right({**content, "layer4.0.conv2.weight": content["layer4.0.conv2.weight"] * 1.001}, stream)

    monkeypatch.setattr(torch, "save", wrong)
    with pytest.raises(BenchError, match="do not use it"):
        convert(path, tmp_path / "out.pth", to="torchvision")
    assert not (tmp_path / "out.pth.json").exists()


def test_a_network_without_finite_features_is_refused(small: tuple[State, State], tmp_path: Path) -> None:
    """Each weight is finite. The variance of a batch norm is not what its weights have been trained with."""
    huge = {**small[0], "layer4.0.bn2.weight": small[0]["layer4.0.bn2.weight"] * 1e38}
    path = write({name: value * (1e30 if "bn1" in name else 1) for name, value in huge.items()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="features of random images are not finite"):
        convert(path, tmp_path / "out.pth", to="torchvision")
    assert not (tmp_path / "out.pth").exists()


def test_a_network_with_only_zeros_converts(small: tuple[State, State], tmp_path: Path) -> None:
    path = write({name: value * 0 for name, value in small[0].items()}, tmp_path / "a.pth")
    assert convert(path, tmp_path / "out.pth", to="torchvision").difference == 0


@pytest.mark.parametrize(
    ("case", "stem", "module_change"),
    [
        ("intl", "cifar", (2, False)),
        ("solo-learn", "cifar", (2, False)),
        ("zero-cl", "cifar", (2, False)),
        ("w-mse", "cifar_pad1", (1, False)),
        ("cw-rgp base", "cifar_pad1", (1, False)),
        ("shuffled-dbn variant 1", "cifar_pad1", (1, False)),
        ("shuffled-dbn variant 2", "cifar_pad1_pool", (1, True)),
        ("lightly cifar", "cifar_pad1", (1, False)),
        ("mmpretrain", "cifar_pad1", (1, False)),
        ("stable-pretraining", "cifar_pad1", (1, False)),
    ],
)
def test_small_stems_are_those_of_the_authors(
    case: str, stem: str, module_change: tuple[int, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network with the first layers of the authors gives our features; a message states the assumed stem."""
    padding, pooled = module_change
    state = random_state("resnet10_narrow", stem="cifar")
    path = write(CASES[case](state, state).root, tmp_path / "a.pth")
    checkpoint = read(path)
    assert checkpoint.architecture.stem == stem
    assert f"assumed {stem}" in capsys.readouterr().err
    reference = build_backbone("resnet10_narrow")
    reference.conv1 = nn.Conv2d(3, 32, 3, padding=padding, bias=False)
    if not pooled:
        reference.maxpool = nn.Identity()
    reference.load_state_dict(state)
    with torch.inference_mode():
        expected = reference.eval()(images(32))
        assert relative(build_backbone_of(checkpoint).eval()(images(32)), expected) <= 1e-6
    with pytest.raises(InputError, match=rf"has the {stem} stem.*use --to safetensors"):
        convert(path, tmp_path / "out.pkl", to="detectron2")
    convert(path, tmp_path / "out.st", to="safetensors")
    assert read(tmp_path / "out.st").architecture.stem == stem


def test_safetensors_keep_what_keys_cannot_tell(
    small: tuple[State, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(CASES["swav released"](*small).root, tmp_path / "swav.pth.tar")
    convert(path, tmp_path / "out.safetensors", to="safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as stream:
        about = json.loads(stream.metadata()["config"])
    assert about["source"] == "swav"
    assert about["preprocessing"]["std"] == [0.228, 0.224, 0.225]
    assert len(about["source_sha256"]) == 64
    assert all(torch.equal(v, small[0][k]) for k, v in load_file(tmp_path / "out.safetensors").items())
    assert read(tmp_path / "out.safetensors").method == "SwAV"
    # The file beside a PyTorch file keeps it too, as long as the digest is the same.
    convert(path, tmp_path / "out.pth", to="torchvision")
    assert read(tmp_path / "out.pth").source == "swav"
    write(small[1], tmp_path / "out.pth")
    assert read(tmp_path / "out.pth").source == "torchvision"
    assert "belongs to another file than out.pth" in capsys.readouterr().err


def test_damaged_facts_beside_a_file_are_an_error(small: tuple[State, State], tmp_path: Path) -> None:
    path = write(CASES["swav released"](*small).root, tmp_path / "swav.pth")
    convert(path, tmp_path / "out.pth", to="torchvision")
    facts = tmp_path / "out.pth.json"
    before = facts.read_bytes()
    for damaged in (before.replace(b"0.228", b"0.229"), before[:-20], before.replace(b'"std"', b'"stt"')):
        facts.write_bytes(damaged)
        with pytest.raises(InputError, match=r"out\.pth\.json: damaged"):
            read(tmp_path / "out.pth")
    facts.write_bytes(b"{}")  # a file of somebody else
    assert read(tmp_path / "out.pth").source == "torchvision"


def test_padding_of_tensorflow_and_unnormalized_input_are_reported(
    small: tuple[State, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byol = write(CASES["byol chigur"](*small).root, tmp_path / "byol.pth")
    checkpoint = read(byol)
    assert checkpoint.preprocessing == Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert "SAME padding" in capsys.readouterr().err
    load_backbone(byol)
    assert "SAME padding" in capsys.readouterr().err
    simclr = convert(
        write(CASES["simclr tonylins"](*small).root, tmp_path / "simclr.pth"), tmp_path / "o.pkl", to="detectron2"
    )
    assert simclr.about["preprocessing"]["std"] == [1, 1, 1]
    assert read(tmp_path / "o.pkl").preprocessing == Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert any("PIXEL_MEAN [0.0, 0.0, 0.0], MODEL.PIXEL_STD [255.0, 255.0, 255.0]" in line for line in simclr.lines)
    assert any(line.startswith("warning:") and "max-pool" in line for line in simclr.lines)


@pytest.mark.slow
def test_msra_weights_convert_but_tasks_refuse_their_strides(tmp_path: Path) -> None:
    state = random_state("resnet50")
    path = tmp_path / "R-50.pkl"
    path.write_bytes(
        pickle.dumps(caffe2(msra_source(state), "gamma", "beta", "running_mean", "running_var"), protocol=2)
    )
    conversion = convert(path, tmp_path / "out.pth", to="detectron2")
    assert any("STRIDE_IN_1X1 True" in line for line in conversion.lines)
    assert any(line.startswith("conv1 changed from BGR in 0..255") for line in conversion.lines)
    for foreign in (path, tmp_path / "out.pth"):
        with pytest.raises(InputError, match="stride in the first 1x1 convolution"):
            read(foreign)


def test_other_number_formats_become_float32(small: tuple[State, State], tmp_path: Path) -> None:
    halved = {k: v.half() if v.is_floating_point() else v for k, v in small[0].items()}
    path = write(halved, tmp_path / "half.pth")
    conversion = convert(path, tmp_path / "out.pth", to="torchvision")
    assert "stored as float16" in conversion.lines[0]
    assert all(v.dtype == torch.float32 for k, v in load_backbone(path).items() if not k.endswith("tracked"))
    last = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in small[0].items()}
    assert all(v.is_contiguous() for v in load_backbone(write(last, tmp_path / "last.pth")).values())


TINY = ["data.size=160", "batch_size=80", "epochs=2", "seed=3", "projector.hidden=32", "projector.out=32"]


def trained(folder: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    """Train the demo for 3 of its 4 steps, on noise; return the checkpoint and its state."""
    training = train.build_training(load_recipe("demo", [*TINY, *overrides]), CPU, 160, 10)
    training.inputs = Inputs(data="ab" * 32)
    for step in range(3):
        training.optimize(list(torch.randn(2, 80, 3, 32, 32, generator=torch.Generator().manual_seed(step))))
    save(folder / "checkpoint.pt", training.state())
    return folder / "checkpoint.pt", training.state()


def test_our_own_checkpoints_and_exports(tmp_path: Path) -> None:
    path, state = trained(tmp_path)
    checkpoint = read(path)
    assert (checkpoint.origin, checkpoint.method, checkpoint.seed) == (Origin.TRAINED, "INTL", 3)
    assert (checkpoint.epoch, checkpoint.progress) == (1, "step 3 of 4")
    assert checkpoint.details["images"] == 160
    assert checkpoint.preprocessing == Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29))
    assert all(torch.equal(v, state["method"][f"backbone.{k}"]) for k, v in checkpoint.backbone.items())
    convert(path, tmp_path / "out.pkl", to="detectron2")
    convert(path, tmp_path / "out.safetensors", to="safetensors")
    convert(tmp_path / "out.safetensors", tmp_path / "again.pth", to="torchvision")
    export_backbone(tmp_path / "backbone.safetensors", checkpoint)
    for name in ("out.pkl", "out.safetensors", "again.pth", "backbone.safetensors"):
        other = read(tmp_path / name)
        assert other.origin == Origin.EXPORTED
        assert other.weights_sha256 == checkpoint.weights_sha256
        assert other.pretraining() == checkpoint.pretraining()
        assert (other.method, other.seed, other.epoch) == ("INTL", 3, 1)
        assert other.details == {"images": 160, "classes": 10, "bad_images": 0, "momentum_target": False}


@pytest.mark.parametrize(
    "method",
    [
        "{name: intl, momentum_target: true, base_momentum: 1}",
        "{name: byol, base_momentum: 1}",
        "{name: mocov2, queue: 80, base_momentum: 1, final_momentum: 1}",
        "{name: dino, outputs: 64, base_momentum: 1}",
    ],
)
def test_the_momentum_encoder_of_a_run_is_read(method: str, tmp_path: Path) -> None:
    """With a momentum of 1 it keeps the initial weights, which the online backbone does not."""
    if "intl" not in method:
        pytest.importorskip("lightly")
    initial = train.build_training(load_recipe("demo", [*TINY, f"method={method}"]), CPU, 160, 10).method.backbone
    path, _ = trained(tmp_path, f"method={method}")
    online, momentum = read(path), read(path, "intl-bench:momentum")
    for name, parameter in initial.named_parameters():
        assert torch.equal(momentum.backbone[name], parameter)
    assert not torch.equal(online.backbone["conv1.weight"], momentum.backbone["conv1.weight"])
    assert (online.branch, momentum.branch) == ("online", "momentum")
    assert momentum.pretraining() == {**online.pretraining(), "branch": "momentum"}


def test_the_momentum_encoder_of_earlier_versions_is_read(tmp_path: Path) -> None:
    """Its keys began with `target.`."""
    path, state = trained(tmp_path, "method={name: intl, momentum_target: true}")
    momentum = read(path, "intl-bench:momentum")
    state["method"] = {key.replace("momentum_encoder.", "target."): value for key, value in state["method"].items()}
    save(path, {**state, "format": 2})
    assert "target.0.conv1.weight" in state["method"]
    assert read(path, "intl-bench:momentum").weights_sha256 == momentum.weights_sha256


def test_files_of_earlier_versions_still_load(small: tuple[State, State], tmp_path: Path) -> None:
    """Format 1 had no fingerprint; an export held only the recipe in its header, a conversion only the layout."""
    path, state = trained(tmp_path)
    del state["inputs"]
    torch.save({"format": 1, **state}, path)
    assert read(path).inputs == Inputs(data=None)
    tensors = {key: value.contiguous() for key, value in read(path).backbone.items()}
    header = {"format": "pt", "config": json.dumps(state["config"])}
    save_file(tensors, tmp_path / "old.safetensors", metadata=header)
    exported = read(tmp_path / "old.safetensors")
    assert (exported.method, exported.seed, exported.epoch, exported.progress) == ("INTL", 3, 2, "complete")
    about = {
        "backbone": {"name": "resnet10_narrow", "stem": "imagenet", "zero_init_residual": False},
        "source": "swav",
        "display": "SwAV",
        "preprocessing": {"channels": "RGB", "scale": "0..1", "mean": [0.5] * 3, "std": [0.2] * 3},
    }
    save_file(small[0], tmp_path / "b.safetensors", metadata={"format": "pt", "config": json.dumps(about)})
    foreign = read(tmp_path / "b.safetensors")
    assert (foreign.method, foreign.source, foreign.seed, foreign.recipe) == ("SwAV", "swav", None, None)
    assert foreign.preprocessing == Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def test_epochs_that_are_numbered_from_0_are_counted(small: tuple[State, State], tmp_path: Path) -> None:
    state = prefixed("backbone.", small[0]) | prefixed("classifier.", {"weight": torch.eye(2), "bias": torch.ones(2)})
    lightning = {"state_dict": state, "epoch": 399, "pytorch-lightning_version": "1.6.4"}
    assert read(write(lightning, tmp_path / "solo.ckpt")).epoch == 400
    assert read(write({"state_dict": state, "epoch": 400}, tmp_path / "other.ckpt")).epoch == 400
    assert read(write({"state_dict": state}, tmp_path / "none.ckpt")).epoch is None
    timm = {"state_dict": small[0], "epoch": 299, "arch": "resnet18", "version": 2, "metric": 70.0}
    assert read(write(timm, tmp_path / "timm.pth.tar"), "timm").epoch == 300
    reference = {"model": small[0], "epoch": 89, "lr_scheduler": {}, "args": None, "optimizer": {}}
    assert read(write(reference, tmp_path / "torchvision.pth")).epoch == 90


def test_a_wrong_target_is_one_line(small: tuple[State, State], tmp_path: Path) -> None:
    path = write(small[0], tmp_path / "a.pth")
    for out, to, message in (
        (tmp_path / "b.pth", "onnx", "--to onnx: expected one of detectron2"),
        (tmp_path, "timm", "it is a folder"),
        (path, "timm", "it is the source; give another file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            convert(path, out, to=to)
        assert "\n" not in str(caught.value)
    assert torch.equal(torch.load(path)["conv1.weight"], small[0]["conv1.weight"])


def test_without_detectron2_only_our_backbone_is_compared(small: tuple[State, State], tmp_path: Path) -> None:
    if importlib.util.find_spec("detectron2") is not None:
        pytest.skip("Detectron2 is installed")
    path = write(random_state("resnet18"), tmp_path / "a.pth")
    assert not any("own ResNet" in line for line in convert(path, tmp_path / "b.pkl", to="detectron2").lines)


# If a project is installed, the names of its networks are compared with the tables.


def test_names_of_installed_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    for name in ("resnet18", "resnet50"):
        path = write(timm.create_model(name).state_dict(), tmp_path / "timm.pth")
        assert read(path, "timm").architecture.name == name
    path = write(timm.create_model("resnet50d").state_dict(), tmp_path / "deep.pth")
    with pytest.raises(InputError, match="a deep stem"):
        read(path)


def test_names_of_installed_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
    model = transformers.ResNetForImageClassification(config).eval()
    checkpoint = read(write(model.state_dict(), tmp_path / "hf.bin"))
    assert (checkpoint.architecture.name, checkpoint.source) == ("resnet18", "hugging-face")
    with torch.inference_mode():
        expected = model.resnet(images()).pooler_output.flatten(1)
        assert relative(build_backbone_of(checkpoint).eval()(images()), expected) <= 1e-6
