"""Test backbones and projector against the networks of torchvision and of the authors."""

import hashlib

import authors
import pytest
import torch
import torchvision
from authors import GOLDEN
from torch import nn

from pretrain.backbone import NAMES, BackboneConfig, build_backbone
from pretrain.projector import ProjectorConfig, build_projector


def relative(value: torch.Tensor, reference: list) -> float:
    expected = torch.tensor(reference, dtype=torch.float64)
    return float((value.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", GOLDEN["backbones"])
@torch.no_grad()
def test_features_and_keys_are_those_of_the_authors_network(case: str) -> None:
    golden = GOLDEN["backbones"][case]
    name, stem = case.split("/")
    backbone = authors.fill(build_backbone(name, stem=stem), name)
    keys = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(backbone.state_dict().items()))
    assert hashlib.sha256(keys.encode()).hexdigest() == golden["keys_sha256"]
    assert backbone.num_features == golden["width"]
    size = 32 if stem == "cifar" else 64
    images = authors.noise(f"images/{size}", 4, 3, size, size)
    assert list(backbone.conv1(images).shape[1:]) == golden["first_map"]
    for mode in ("eval", "train"):
        features = backbone.train(mode == "train")(images)
        assert features.shape == (4, golden["width"])
        # Batch statistics of a few pixels amplify rounding: the golden numbers differ from float64 by 5e-5, and so do
        # those of other processors.
        tolerance = 1e-5 if mode == "eval" else 1e-3
        assert relative(features[:, :: golden["width"] // 8], golden[mode]) <= tolerance
        assert float(features.double().norm()) == pytest.approx(golden[f"{mode}_norm"], rel=tolerance)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@torch.no_grad()
def test_torchvisions_weights_load_and_give_the_same_features(name: str) -> None:
    reference = authors.fill(getattr(torchvision.models, name)(), name).eval()
    reference.fc = nn.Identity()
    backbone = build_backbone(name).eval()
    backbone.load_state_dict(reference.state_dict(), strict=True)
    images = authors.noise("images/64", 2, 3, 64, 64)
    assert torch.equal(backbone(images), reference(images))


def test_cifar_stem_keeps_the_resolution_of_34() -> None:
    backbone = build_backbone("resnet18", stem="cifar")
    images = torch.ones(1, 3, 32, 32)
    maps = backbone.layer1(backbone.maxpool(backbone.conv1(images)))
    assert maps.shape == (1, 64, 34, 34)
    sizes = []
    for stage in (backbone.layer2, backbone.layer3, backbone.layer4):
        maps = stage(maps)
        sizes.append(maps.shape[-1])
    assert sizes == [17, 9, 5]


def test_initialization_is_the_authors() -> None:
    """Residual branches start at zero for ResNet-50 (16 such weights in the authors' network) but not for ResNet-18.

    The convolution of the CIFAR stem has PyTorch's default initialization; all others have He's normal initialization.
    """
    golden = {case: entry["zero_weights"] for case, entry in GOLDEN["backbones"].items()}
    for name, zero in (("resnet18", False), ("resnet50", True)):
        backbone = build_backbone(name, zero_init_residual=zero)
        count = sum(not p.any() for key, p in backbone.named_parameters() if key.endswith("weight"))
        assert count == golden[f"{name}/imagenet"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cifar = build_backbone("resnet18", stem="cifar")
    bound = (1 / 27) ** 0.5
    assert 0.95 * bound < cifar.conv1.weight.abs().max().item() <= bound
    assert cifar.layer4[1].conv2.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_narrow_backbone(stem: str) -> None:
    """Check the small ResNet of this project: 32 to 256 channels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("resnet10_narrow", stem=stem, zero_init_residual=True)
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(1.2e6, rel=0.05)
    assert backbone.num_features == 256
    assert backbone(torch.ones(2, 3, 32, 32)).shape == (2, 256)
    assert backbone.layer1[0].conv1.weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    assert all(not getattr(backbone, f"layer{i}")[0].bn2.weight.any() for i in range(1, 5))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_classifier(name: str) -> None:
    backbone = build_backbone(name)
    assert not [key for key in backbone.state_dict() if key.startswith("fc")]
    assert backbone.eval()(torch.ones(1, 3, 64, 64)).shape == (1, backbone.num_features)


def test_unknown_backbone_and_stem_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name=resnet51: expected resnet18, .*resnet50"):
        build_backbone("resnet51")
    with pytest.raises(ValueError, match=r"stem=tiny: expected imagenet, cifar"):
        BackboneConfig(stem="tiny")


@torch.no_grad()
def test_projector_is_the_authors() -> None:
    golden = GOLDEN["projector"]
    projector = authors.fill(build_projector(24, ProjectorConfig(hidden=32, out=16)), "projector")
    assert {key: list(value.shape) for key, value in projector.state_dict().items()} == golden["keys"]
    assert relative(projector(authors.noise("features", 8, 24)), golden["output"]) <= 1e-5


def test_projector_of_one_layer_is_linear_and_of_none_refused() -> None:
    (only,) = build_projector(24, ProjectorConfig(hidden=32, out=16, layers=1))
    assert only.weight.shape == (16, 24)
    for settings in ({"layers": 0}, {"hidden": 0}, {"out": -1}):
        with pytest.raises(ValueError, match=r"=(0|-1): expected at least 1"):
            ProjectorConfig(**settings)
