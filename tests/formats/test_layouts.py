"""Recognition of the files of every project, errors that name a tensor, and the choice of a branch."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layout_cases import CASES, Case, State, caffe2, detectron2, head, msra_source, prefixed, random_state

from intl_bench.core.errors import InputError
from pretrain.backbone import NAMES, build_backbone
from transfer.formats.layouts import LAYOUTS
from transfer.formats.match import Extracted, Found, extract, find
from transfer.formats.names import names, shapes
from transfer.formats.safe_load import ByolState, Content

PATH = Path("file")


@pytest.fixture(scope="module")
def small() -> tuple[State, State]:
    return random_state("resnet10_narrow", 0), random_state("resnet10_narrow", 1)


@pytest.fixture(scope="module")
def large() -> tuple[State, State]:
    return random_state("resnet50", 0), random_state("resnet10_narrow", 1)


def content(root: Any) -> Content:
    if "experiment_state" in root:
        root = {**root, "experiment_state": ByolState(*root["experiment_state"])}
    return Content(path=PATH, sha256="", kind="PyTorch", data=root, metadata={})


def recognize(root: Any, source: str = "auto") -> tuple[Found, Extracted]:
    found = find(content(root), source)
    return found, extract(found, PATH)


def assert_same(state: State, expected: State, *, counters: bool) -> None:
    assert list(state) == list(expected)
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked"):
            assert state[key].dtype == torch.int64
            assert int(state[key]) == (7 if counters else 0)
        else:
            assert state[key].dtype == torch.float32
            assert state[key].is_contiguous()
            assert torch.equal(state[key], tensor), key


@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_recognized_by_its_keys(name: str, small: tuple[State, State]) -> None:
    case = CASES[name](*small)
    found, extracted = recognize(case.root)
    assert found.layout.name == case.layout
    assert case.branch is None or found.branch == case.branch
    assert extracted.architecture == "resnet10_narrow"
    assert_same(extracted.state, small[0], counters=case.counters)
    assert not set(case.aside) - set(extracted.left_aside)
    assert extracted.counters == (0 if case.counters else 12)
    named = find(content(case.root), case.layout)
    assert (named.container, named.prefix, named.branch) == (found.container, found.prefix, found.branch)


# Layouts with other names of bottleneck blocks than torchvision's.
@pytest.mark.parametrize(
    "name",
    [
        "moco v1",
        "simclr separius",
        "byol deepmind",
        "shuffled-dbn variant 2",
        "lightly examples",
        "lightly cifar",
        "hugging face",
        "detectron2 converters",
        "detectron2 c4 detector",
        "detectron2 fpn detector",
    ],
)
def test_bottlenecks(name: str, large: tuple[State, State]) -> None:
    case = CASES[name](*large)
    found, extracted = recognize(case.root)
    assert (found.layout.name, extracted.architecture) == (case.layout, "resnet50")
    assert_same(extracted.state, large[0], counters=case.counters)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_architectures_are_told_apart(name: str) -> None:
    state = random_state(name)
    assert recognize({**state, **head("fc.weight")})[1].architecture == name


def every_key(case: Case, extracted: Extracted) -> int:
    """Count the tensors of the backbone and the keys left aside that are next to them."""
    used = sum(not key.endswith("num_batches_tracked") for key in extracted.state)
    return used + sum(key in case.tensors for key in extracted.left_aside)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("byol deepmind", "vissl")])
def test_every_tensor_is_used_once_or_left_aside(name: str, small: tuple[State, State]) -> None:
    case = CASES[name](*small)
    _, extracted = recognize(case.root)
    assert len(set(extracted.left_aside)) == len(extracted.left_aside)
    counters = 12 - extracted.counters
    assert every_key(case, extracted) + counters == len(case.tensors)


@pytest.mark.parametrize("name", [name for name in CASES if name != "byol deepmind"])
def test_a_missing_extra_or_misshapen_tensor_is_named(name: str, small: tuple[State, State]) -> None:
    """Another copy in the file does not replace a damaged one."""
    case = CASES[name](*small)
    found, _ = recognize(case.root)
    victim = found.prefix + names(found.table, "resnet10_narrow")["layer3.0.conv2.weight"]
    kept = case.tensors[victim]

    del case.tensors[victim]
    with pytest.raises(InputError, match="missing") as caught:
        recognize(case.root)
    assert victim in str(caught.value)

    case.tensors[victim] = kept[:-1]
    with pytest.raises(InputError, match=r"has the shape \(127, 128, 3, 3\); expected \(128, 128, 3, 3\)") as caught:
        recognize(case.root)
    assert victim in str(caught.value)

    case.tensors[victim] = kept
    extra = victim.replace("2.weight", "9.weight").replace("branch2b", "branch9") + ".extra"
    case.tensors[extra] = kept
    with pytest.raises(InputError, match="is not part of the backbone") as caught:
        recognize(case.root)
    assert extra in str(caught.value)


def test_a_missing_tensor_of_the_haiku_tree_is_named(small: tuple[State, State]) -> None:
    case = CASES["byol deepmind"](*small)
    del case.tensors["res_net50/~/block_group_2/~/block_0/~/conv_1"]
    with pytest.raises(InputError, match="res_net50/~/block_group_2/~/block_0/~/conv_1/w is missing"):
        recognize(case.root)


def test_splits_of_a_batch_norm_that_differ_are_averaged(small: tuple[State, State]) -> None:
    case = CASES["lightly cifar split batch norm"](*small)
    mean = small[0]["bn1.running_mean"]
    case.tensors["backbone.1.running_mean"] = torch.cat([mean + shift for shift in torch.arange(8.0)])
    _, extracted = recognize(case.root)
    assert torch.allclose(extracted.state["bn1.running_mean"], mean + 3.5)
    assert extracted.notes == ["the running statistics of SplitBatchNorm averaged over the splits"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("moco v1", "moco:momentum"),
        ("moco v3", "moco-v3:momentum"),
        ("intl multi-crop", "intl:momentum"),
        ("byol deepmind", "byol-deepmind:target"),
        ("dino full", "dino:student"),
        ("w-mse byol", "w-mse:momentum"),
        ("solo-learn", "solo-learn:momentum"),
        ("lightly dino", "lightly:student"),
        ("lightly moco", "lightly:momentum"),
        ("vissl", "vissl:momentum"),
        ("mmpretrain", "openmmlab:momentum"),
        ("stable-pretraining byol", "stable-pretraining:student"),
        ("shuffled-dbn variant 2", "shuffled-dbn-variant2:target"),
        ("moco v1", "torchvision:module.encoder_k."),
    ],
)
def test_a_named_branch_is_read(name: str, source: str, small: tuple[State, State]) -> None:
    case = CASES[name](*small)
    found, extracted = recognize(case.root, source)
    assert_same(extracted.state, small[1], counters=case.counters)
    assert (found.branch == case.branch) is False


def test_a_file_with_only_the_momentum_encoder_is_an_error(small: tuple[State, State]) -> None:
    root = {"state_dict": prefixed("module.encoder_k.", small[0])}
    with pytest.raises(InputError, match=r"only the branch momentum.*--from moco:momentum"):
        find(content(root))


def test_an_unknown_prefix_is_read_if_it_is_the_only_one(small: tuple[State, State]) -> None:
    one = {"weights": {**prefixed("net.body.", small[0]), **head("net.head.weight")}}
    _, extracted = recognize(one)
    assert_same(extracted.state, small[0], counters=True)
    assert extracted.left_aside == ["net.head.weight"]
    two = {"weights": {**prefixed("a.", small[0]), **prefixed("b.", small[1])}}
    with pytest.raises(InputError, match=r"--from torchvision:a\. or --from torchvision:b\."):
        find(content(two))
    assert_same(recognize(two, "torchvision:b.")[1].state, small[1], counters=True)


def test_two_prefixes_of_one_branch_are_an_error(small: tuple[State, State]) -> None:
    state = {**prefixed("module.backbone.", small[0]), **prefixed("backbone.", small[1])}
    with pytest.raises(
        InputError,
        match=r"2 backbones of the layout intl.*torchvision:backbone\. or --from torchvision:module\.backbone\.",
    ):
        find(content({"state_dict": {**state, **head("module.projection.0.weight")}}))


def test_the_user_names_the_layout_of_a_bare_backbone(small: tuple[State, State]) -> None:
    for source in ("dino", "barlow-twins", "vicreg", "zero-cl", "byol", "timm", "swav"):
        found, extracted = recognize(small[0], source)
        assert found.layout.name == source
        assert_same(extracted.state, small[0], counters=True)


@pytest.mark.parametrize("statistics", [("gamma", "beta", "running_mean", "running_var"), ("s", "b", "rm", "riv")])
@pytest.mark.parametrize("nested", [False, True])
def test_msra_weights_with_color_and_scale_folded(
    statistics: tuple[str, str, str, str], nested: bool, small: tuple[State, State]
) -> None:
    """The stored conv1 on BGR in 0..255 minus the mean equals ours on normalized RGB."""
    source = msra_source(small[0])
    arrays = caffe2(source, *statistics)
    arrays["conv1_w_momentum"] = np.ones(2, np.float32)
    arrays["fc1000_w"] = np.ones((2, 2), np.float32)
    found, extracted = recognize({"blobs": arrays} if nested else arrays)
    assert found.layout.name == "detectron2-msra"
    assert found.layout.stride_in_1x1
    assert {"conv1_w_momentum", "fc1000_w"} <= set(extracted.left_aside)
    for key, tensor in small[0].items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(extracted.state[key], tensor, rtol=1e-6, atol=0), key
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 255
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])[..., None, None].double()
    output = torch.conv2d((pixels - mean) / std, extracted.state["conv1.weight"].double(), stride=2, padding=3)
    expected = torch.conv2d((pixels - mean).flip(1), source["conv1.weight"].double(), stride=2, padding=3)
    assert float((output - expected).norm() / expected.norm()) <= 1e-6


def test_batch_norms_fused_into_scales_are_an_error(small: tuple[State, State]) -> None:
    arrays = caffe2(small[0], "s", "b", "rm", "riv")
    fused = {key: value for key, value in arrays.items() if not key.endswith(("_rm", "_riv"))}
    with pytest.raises(InputError, match="res_conv1_bn_rm is missing"):
        recognize(fused)


def _with(state: State, **tensors: tuple[int, ...]) -> State:
    return OrderedDict(state) | {key.replace("__", "."): torch.zeros(shape) for key, shape in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1__0__downsample__0__weight": (32, 32, 1, 1)}, "projection in the first shortcut"),
        (
            {"conv1__0__weight": (32, 3, 3, 3)},
            r"a deep stem \(ResNet-C or -D\): conv1\.0\.weight, which is another network",
        ),
        ({"conv1__weight": (64, 3, 7, 7)}, r"conv1\.weight has the shape \(64, 3, 7, 7\); expected \(32, 3, 7, 7\)"),
        ({"conv1__weight": (32, 3, 5, 5)}, r"conv1\.weight has the shape \(32, 3, 5, 5\)"),
        ({"layer2__0__downsample__2__weight": (64,)}, "average pool in the shortcuts"),
        ({"projector__0__weight": (2, 2)}, "projector.0.weight is not part of the backbone"),
        ({"layer3__6__conv1__weight": (128, 128, 3, 3)}, "more blocks than ResNet-50"),
    ],
)
def test_other_networks_are_named_in_an_error(
    change: dict[str, tuple[int, ...]], message: str, small: tuple[State, State]
) -> None:
    with pytest.raises(InputError, match=message):
        recognize(_with(small[0], **change))


def test_damaged_values_are_named(small: tuple[State, State]) -> None:
    state = dict(small[0])
    state["layer2.0.bn1.running_var"] = torch.full((64,), float("nan"))
    with pytest.raises(InputError, match=r"layer2\.0\.bn1\.running_var has values that are not finite"):
        recognize(state)
    state = dict(small[0], **{"bn1.weight": torch.ones(32, dtype=torch.int32)})
    with pytest.raises(InputError, match=r"bn1\.weight has torch\.int32"):
        recognize(state)


@pytest.mark.parametrize(
    ("root", "source", "message"),
    [
        ({"state_dict": {"cls_token": torch.ones(1)}}, "auto", "vision transformer: cls_token"),
        ({"weight": torch.ones(1)}, "auto", r"no ResNet-18, -34 or -50 in a known layout: its keys are weight"),
        ({}, "moko", r"unknown layout; did you mean moco\?"),
        ({}, "moco:teacher", "moco has the branches query, momentum"),
        ({"a": torch.ones(1)}, "moco", r"no moco backbone \(query\) in it: its keys are a"),
    ],
)
def test_no_backbone_is_one_line_with_a_hint(root: Any, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find(content(root), source)
    assert "\n" not in str(caught.value)


def test_names_are_one_to_one_and_invertible() -> None:
    """For every table and architecture; Detectron2's names also equal those of an independent implementation."""
    for table in {id(table): table for layout in LAYOUTS for table in layout.tables}.values():
        for architecture in NAMES:
            mapping = names(table, architecture)
            assert len(set(mapping.values())) == len(mapping)
            lacking = set(shapes(architecture)) - set(mapping)
            assert all(key.endswith("num_batches_tracked") for key in lacking)
    for architecture, tensors in (("resnet18", 120), ("resnet50", 318)):
        state = {key: torch.empty(0) for key in shapes(architecture)}
        table = next(layout for layout in LAYOUTS if layout.name == "detectron2").tables[0]
        assert list(detectron2(state)) == list(names(table, architecture).values())
        assert len(state) == tensors


@pytest.mark.parametrize("architecture", NAMES)
def test_computed_shapes_are_those_of_the_network(architecture: str) -> None:
    with torch.device("meta"):
        state = build_backbone(architecture).state_dict()
    assert list(shapes(architecture).items()) == [(name, tuple(tensor.shape)) for name, tensor in state.items()]
