"""ResNet-101, -152 and wide ResNets: converted to every target, scored, and told apart from other networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from layout_cases import detectron2, head, hugging_face, prefixed
from test_wrappings import recognize, tiny
from torch import nn

from intl_bench.cli import main
from intl_bench.core.errors import InputError
from pretrain.backbone import ARCHITECTURES, BackboneConfig, build_backbone
from pretrain.checkpoint import Checkpoint, Origin
from transfer.convert import convert, load_backbone
from transfer.detection.task import from_checkpoint
from transfer.formats.names import shapes

DEEP = ("resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2", "resnet50w2")
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", [name for name in DEEP if name != "resnet50w2"])
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        expected = getattr(torchvision.models, name)().state_dict()
    assert shapes(name) == {key: tuple(value.shape) for key, value in expected.items() if not key.startswith("fc.")}


def test_shapes_of_a_doubled_width() -> None:
    """SwAV's `resnet50w2` (src/resnet50.py): 128 channels after the stem, 4096 features."""
    found, usual = shapes("resnet50w2"), shapes("resnet50")
    assert found.keys() == usual.keys()
    assert found["conv1.weight"] == (128, 3, 7, 7)
    for key, shape in usual.items():
        doubled = [size if size in (1, 3, 7) and place > 0 else 2 * size for place, size in enumerate(shape)]
        assert found[key] == tuple(doubled), key
    with torch.device("meta"):
        assert build_backbone("resnet50w2").num_features == 4096


@pytest.mark.parametrize("name", DEEP)
def test_they_are_recognized(name: str) -> None:
    state = tiny(name, 1)
    for root in ({"state_dict": prefixed("module.encoder_q.", state)}, {"model": detectron2(state)}):
        _, extracted = recognize(root)
        assert extracted.architecture == name
        assert torch.equal(extracted.state["layer4.2.bn3.weight"], state["layer4.2.bn3.weight"])
    _, extracted = recognize({**prefixed("resnet.", hugging_face(state)), **head("classifier.1.weight")})
    assert extracted.architecture == name


@pytest.mark.parametrize("to", ["torchvision", "timm", "safetensors", "detectron2"])
def test_a_resnet_101_is_converted(to: str, tmp_path: Path, capsys: Capture) -> None:
    state = tiny("resnet101", 1)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "out"), "--to", to]) == 0
    assert "resnet101 (imagenet stem)" in (output := capsys.readouterr().out)
    assert ("MODEL.RESNETS.DEPTH 101" in output) == (to == "detectron2")
    read = load_backbone(tmp_path / "out")
    assert all(torch.equal(read[key], value) for key, value in state.items() if not key.endswith("tracked"))


def test_features_are_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.wide_resnet50_2().eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    lines = convert(tmp_path / "a.pth", tmp_path / "out.pkl", "detectron2").lines
    assert "WIDTH_PER_GROUP 128, MODEL.RESNETS.STEM_OUT_CHANNELS 64, MODEL.RESNETS.RES2_OUT_CHANNELS 256" in lines[-1]
    ours, model.fc = build_backbone("wide_resnet50_2").eval(), nn.Identity()
    ours.load_state_dict(load_backbone(tmp_path / "out.pkl"))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(ours(images), model(images), rtol=1e-5, atol=1e-6)


def test_every_block_starts_as_the_identity_if_asked() -> None:
    for name in ("resnet50w2", "resnet10_narrow"):
        state = build_backbone(name, zero_init_residual=True).state_dict()
        last = "bn3" if "bn3" in str(list(state)) else "bn2"
        assert all(not value.any() for key, value in state.items() if key.endswith(f".{last}.weight"))


def test_detectors_refuse_wider_convolutions_alone() -> None:
    for name in ARCHITECTURES:
        fields: dict[str, Any] = {"backbone": {}, "origin": Origin.FOREIGN, "preprocessing": None, "seed": None}
        architecture = BackboneConfig(name=name)
        checkpoint = Checkpoint(path=Path("a.pth"), sha256="", method="", architecture=architecture, **fields)
        if name.startswith("wide_"):
            with pytest.raises(InputError, match=r"a wide_resnet\S+; the detectors have no .* linear, knn or finetune"):
                from_checkpoint(checkpoint)
        else:
            assert from_checkpoint(checkpoint)["model"]["blocks"] == ARCHITECTURES[name][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attnpool.k_proj.weight": (2,), "conv2.weight": (2,)}, "CLIP's ResNet: a stem of three convolutions"),
        ({"conv2.weight": (32, 32, 3, 3), "conv3.weight": (2,)}, r"a deep stem \(ResNet-C or -D\): conv2\.weight"),
        ({"layer2.0.aa.filt": (2,)}, "anti-aliasing in place of strides"),
        ({"layer1.0.se.fc1.weight": (2,)}, "attention in its blocks, such as squeeze-and-excitation"),
        ({"layer3.23.conv1.weight": (2,)}, "more blocks than ResNet-101 or -152"),
        ({"layer1.0.conv2.weight": (64, 2, 3, 3)}, r"layer1\.0\.conv2\.weight has the shape \(64, 2, 3, 3\)"),
        ({"layer1.0.bn1.weight": (0,)}, "empty, as of ZeRO stage 3 of DeepSpeed"),
    ],
)
def test_other_networks_are_refused_with_what_differs(change: dict[str, Any], message: str) -> None:
    state = tiny("resnet50", 1) | {key: torch.ones(shape) for key, shape in change.items()}
    with pytest.raises(InputError, match=message) as caught:
        recognize({"state_dict": prefixed("visual.", state)} if "CLIP" in message else state)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_of_a_deep_network_is_no_other_network() -> None:
    state = tiny("resnet101", 1)
    del state["layer3.20.conv2.weight"]
    with pytest.raises(InputError, match=r"is not a resnet101: layer3\.20\.conv2\.weight is missing$"):
        recognize(state)
