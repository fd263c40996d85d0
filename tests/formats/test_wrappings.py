"""A backbone is read in every wrapping: wrappers inside keys, nested dictionaries, other copies beside it."""

import dataclasses
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from layout_cases import State, detectron2, head, hugging_face, prefixed, random_state, renamed, sequential

from intl_bench.core.errors import InputError
from transfer.convert import load_backbone
from transfer.formats.candidates import unwrapped
from transfer.formats.match import Extracted, Found, extract, find
from transfer.formats.names import shapes
from transfer.formats.safe_load import Content

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "_module")


def tiny(name: str, first: float) -> State:
    """Return a backbone whose tensors are views of one number each, all different, with finite features."""
    return OrderedDict(
        (
            key,
            torch.tensor(7)
            if key.endswith("tracked")
            else torch.tensor((first + number / 1024) / math.prod(shape[1:])).expand(shape),
        )
        for number, (key, shape) in enumerate(shapes(name).items())
    )


A, B = tiny("resnet18", 1), tiny("resnet18", 2)
TINY = {"resnet18": (A, B), "resnet10_narrow": (tiny("resnet10_narrow", 1), tiny("resnet10_narrow", 2))}


def recognize(root: Any, source: str = "auto") -> tuple[Found, Extracted]:
    found = find(Content(path=Path("file"), sha256="", kind="PyTorch", data=root, metadata={}), source)
    return found, extract(found, Path("file"))


def assert_read(root: Any, expected: State, source: str = "auto") -> Found:
    found, extracted = recognize(root, source)
    assert extracted.state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(extracted.state[key].float(), value.float()), key
    return found


def wrapped(state: State, wrapper: str, depth: int) -> State:
    """Insert the name of a wrapper before the part number `depth` of every key that has that part."""
    found = OrderedDict()
    for key, value in state.items():
        parts = key.split(".")
        found[".".join([*parts[:depth], wrapper, *parts[depth:]] if depth < len(parts) - 1 else parts)] = value
    return found


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_inside_keys_are_left_out(wrapper: str, depth: int) -> None:
    state = prefixed("backbone.", A)
    found = assert_read({"state_dict": wrapped(state, wrapper, depth)}, A)
    assert not any(wrapper in key for key in found.stored)


def test_only_some_blocks_may_be_wrapped() -> None:
    state = renamed(A, (r"layer([13])\.(\d)\.(.*)", r"layer\1.\2._checkpoint_wrapped_module.\3"))
    assert_read(prefixed("module.", state), A)
    assert_read(renamed(A, (r"layer1\.0\.conv1\.weight", "layer1.0.module.conv1.weight")), A)


def test_a_name_that_occurs_with_and_without_a_wrapper_is_refused() -> None:
    for key in ("layer1.0._orig_mod.conv1.weight", "module.conv1.weight", "layer1.module.0.conv1.weight"):
        with pytest.raises(InputError, match=r"are the same name without their wrappers.*expected one of them"):
            recognize(A | {key: B[unwrapped(key)]})
    with pytest.raises(InputError, match=r"choose --from torchvision:top or --from torchvision:module\."):
        recognize({**A, **prefixed("module.", B)})
    assert_read({**A, **prefixed("module.", B)}, A, "torchvision:top")
    assert_read({**A, **prefixed("module.", B)}, B, "torchvision:module.")


def test_a_missing_tensor_inside_wrappers_is_named_and_no_copy_replaces_it() -> None:
    damaged = wrapped(prefixed("encoder.", A), "_orig_mod", 1)
    del damaged["encoder._orig_mod.layer3.0.conv2.weight"]
    with pytest.raises(InputError, match=r"encoder\._orig_mod\.layer3\.0\.conv2\.weight is missing"):
        recognize({"model": damaged, "model_ema": B})


def test_layouts_are_recognized_through_wrappers() -> None:
    state = {**prefixed("module.encoder_q._orig_mod.", A), **prefixed("module.encoder_k._orig_mod.", B)}
    found = assert_read({"state_dict": state, "epoch": 3}, A)
    assert (found.layout.name, found.branch) == ("moco", "query")
    assert list(found.others.values()) == ["moco:momentum"]
    assert_read({"state_dict": state}, B, "moco:momentum")
    swav = {**prefixed("module.", A), **head("module.prototypes.weight")}
    assert assert_read({"checkpoint": {"state_dict": swav}}, A).layout.name == "swav"
    assert assert_read({"a": {"b": {"c": {"state_dict": swav}}}}, A, "swav").layout.name == "swav"


@pytest.mark.parametrize(
    ("root", "expected", "choice"),
    [
        ({"model": A, "model_ema": prefixed("module.", B)}, A, {"torchvision:ema": B}),
        ({"state_dict": A, "state_dict_ema": B}, B, {"timm:online": A, "timm:ema": B}),
        ({"encoder": A, "momentum_encoder": B}, A, {"torchvision:momentum": B, "torchvision:momentum_encoder": B}),
        ({"model": {"student": A, "teacher": B}}, B, {"torchvision:student": A, "auto:student": A}),
        ({"student": prefixed("backbone.", A), "teacher": prefixed("backbone.", B)}, B, {"dino:student": A}),
        ({**prefixed("online_model.", A), **prefixed("ema_model.", B)}, A, {"torchvision:ema": B}),
        ({"state": {"model": {**prefixed("net.", A), **prefixed("net_ema.", B)}}}, A, {"torchvision:ema": B}),
        ({**A, **prefixed("ema.", B)}, A, {"torchvision:ema": B}),
        (
            {"meta": {}, "state_dict": prefixed("backbone.", A), "ema_state_dict": prefixed("module.backbone.", B)},
            A,
            {"openmmlab:ema": B, "openmmlab:ema_state_dict": B},
        ),
    ],
)
def test_one_of_two_backbones_is_read_and_the_other_is_named(
    root: Any, expected: State, choice: dict[str, State]
) -> None:
    found = assert_read(root, expected)
    ((place, source),) = found.others.items()
    assert place != found.place
    assert_read(root, A if expected is B else B, source)
    for name, state in choice.items():
        assert_read(root, state, name)


def test_two_names_of_one_network_are_one_backbone() -> None:
    assert not assert_read({"model": A, "net": {"a": A}}, A).others
    assert assert_read({"first": {"net": A}, "second": {"net": A}}, A)


def test_backbones_without_a_role_are_refused_with_their_names() -> None:
    root = {"first": {"net": A}, "second": {"net": B}}
    with pytest.raises(InputError, match=r"--from torchvision:first/net or --from torchvision:second/net"):
        recognize(root)
    assert_read(root, B, "torchvision:second/net")
    with pytest.raises(
        InputError, match=r"unknown branch; moco has .*; the file has --from torchvision:first/net and "
    ):
        recognize(root, "moco:teacher")
    with pytest.raises(InputError, match=r"no moco backbone \(query\) .*; the file has --from torchvision:first/net"):
        recognize(root, "moco")
    with pytest.raises(InputError, match=r"no torchvision backbone \(third\) .*; the file has "):
        recognize(root, "torchvision:third")


@pytest.mark.parametrize(
    "others",
    [
        {"teacher": B, "teacher_ema": tiny("resnet18", 3)},
        {"teacher": B, "second_teacher": tiny("resnet18", 3)},
        {"teacher": TINY["resnet10_narrow"][1]},  # a distillation trains the student
    ],
)
def test_a_teacher_is_read_only_as_the_other_half_of_a_pair(others: dict[str, State]) -> None:
    root = {"student": A, **others}
    with pytest.raises(InputError, match=r"--from torchvision:student"):
        recognize(root)
    assert_read(root, A, "torchvision:student")


def test_a_layout_does_not_take_another_branch_for_its_own() -> None:
    with pytest.raises(InputError, match=r"no moco backbone \(query\)"):
        recognize({"state_dict": prefixed("module.encoder_k.", A)}, "moco")
    with pytest.raises(InputError, match=r"no dino backbone \(teacher\)"):
        recognize({"student": A}, "dino")


@pytest.mark.parametrize("key", ["_flat_param", "_fsdp_wrapped_module._flat_param", "layer1.0.flat_param_0"])
def test_flattened_parameters_are_refused_by_their_name(key: str) -> None:
    with pytest.raises(InputError, match=r"flattened parameters of FSDP.*full state dict"):
        recognize({"model": {key: torch.ones(9)}})


def test_dictionaries_with_any_keys_are_searched() -> None:
    """Slashes, numbers, empty names, and dictionaries that contain themselves."""
    root: dict[Any, Any] = {"a/b": {"c/": {"": A}}, 3: {"x": 1}, None: 2}
    root["self"] = root
    assert "a/b" in assert_read(root, A).place


# ---- any wrapping


NAMES: dict[str, Any] = {
    "torchvision": lambda state: state,
    "shortcut": lambda state: renamed(state, (r"(.*)\.downsample\.(.*)", r"\1.shortcut.\2")),
    "Sequential": lambda state: sequential(state, 4, "downsample"),
    "Sequential without max-pool": lambda state: sequential(state, 3, "downsample"),
    "small Sequential": lambda state: sequential(state, 2, "shortcut"),
    "Hugging Face": hugging_face,
    "Detectron2": detectron2,
}
CONTAINERS = ["state_dict", "model", "state", "net", "weights", "checkpoint", "module", "network"]
PREFIXES = ["", "backbone.", "encoder.", "model.", "net.body.", "module.", "module.backbone.", "f.", "resnet."]
AVERAGES = ["ema_{}", "{}_ema", "momentum_{}", "target_{}", "{}_momentum", "averaged_{}"]
HEADS = ["projector.0.weight", "head.weight", "prototypes.weight", "queue", "predictor.3.bias", "loss.center"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@dataclasses.dataclass(frozen=True)
class Wrapping:
    """A way to store the backbone A, maybe beside an average B of it."""

    architecture: str
    names: str
    prefix: str
    path: tuple[str, ...]
    dtype: torch.dtype
    wrappers: tuple[tuple[str, int], ...]
    heads: tuple[str, ...]
    average: str
    beside: str

    def root(self) -> dict[str, Any]:
        """Return the content of the file."""
        states = []
        for state in TINY[self.architecture]:
            stored = {k: v if k.endswith("tracked") else v.to(self.dtype) for k, v in NAMES[self.names](state).items()}
            for wrapper, depth in self.wrappers:
                stored = wrapped(stored, wrapper, depth)
            states.append(stored)
        value: dict[str, Any] = {**prefixed(self.prefix, states[0]), **head(*(self.heads if self.prefix else ()))}
        if self.beside == "prefix" and self.prefix:
            value |= prefixed(f"{self.average.format(self.prefix.rstrip('.'))}.", states[1])
        other: dict[str, Any] = prefixed(self.prefix, states[1])
        for key in reversed(self.path[1:]):
            value, other = {key: value}, {key: other}
        if self.path:
            value = {self.path[0]: value}
        if self.beside == "dictionary" and self.path:
            value[self.average.format(self.path[0])] = other
        return value | {"epoch": 3}


WRAPPINGS = st.builds(
    Wrapping,
    architecture=st.sampled_from(["resnet10_narrow", "resnet10_narrow", "resnet18"]),
    names=st.sampled_from(sorted(NAMES)),
    prefix=st.sampled_from(PREFIXES),
    path=st.lists(st.sampled_from(CONTAINERS), max_size=3, unique=True).map(tuple),
    dtype=st.sampled_from(DTYPES),
    wrappers=st.lists(st.tuples(st.sampled_from(WRAPPERS), st.integers(0, 3)), max_size=2).map(tuple),
    heads=st.lists(st.sampled_from(HEADS), unique=True, max_size=3).map(tuple),
    average=st.sampled_from(AVERAGES),
    beside=st.sampled_from(["", "prefix", "dictionary"]),
)


@hypothesis.settings(max_examples=60, deadline=None, database=None, phases=[hypothesis.Phase.generate])
@hypothesis.given(wrapping=WRAPPINGS)
def test_the_backbone_is_read_in_any_wrapping(wrapping: Wrapping) -> None:
    """Every tensor is the one of the trained network. An average beside it has a name after `--from`."""
    root = wrapping.root()
    trained, averaged = (
        {k: v if k.endswith("tracked") else v.to(wrapping.dtype) for k, v in state.items()}
        for state in TINY[wrapping.architecture]
    )
    found = assert_read(root, trained)
    beside = {"": "", "prefix": wrapping.prefix, "dictionary": wrapping.path}[wrapping.beside]
    assert len(found.others) == bool(beside)
    for source in found.others.values():
        assert_read(root, averaged, source)


def test_random_states_of_files_are_read(tmp_path: Path) -> None:
    """The same for a file with real numbers."""
    state = random_state("resnet10_narrow")
    torch.save({"state": {"model": wrapped(prefixed("backbone.", state), "_orig_mod", 2)}}, tmp_path / "a.pth")
    read = load_backbone(tmp_path / "a.pth")
    assert all(torch.equal(read[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["encoder_rgb", "rgb", "encoder_rgb."])
def test_a_name_decides_between_backbones_whose_names_do_not_tell(name: str) -> None:
    root = prefixed("encoder_depth.", B) | prefixed("encoder_rgb.", A)
    assert_read(root, A, f"auto:{name}")
    with pytest.raises(InputError, match="2 backbones"):
        recognize(root, "auto:encoder")


def test_a_part_of_a_place_names_a_backbone() -> None:
    moco = {"state_dict": prefixed("module.encoder_q.", B) | prefixed("module.encoder_k.", A)}
    assert_read(moco, A, "moco:encoder_k")
    assert_read({"a": {"b": A}, "c": {"b": B}}, A, "auto:a/b")


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ([A], "auto"),
        ((A, {"lr": 0.1}), "auto"),
        ({0: A, 1: {"lr": 0.1}}, "auto"),
        ({"models": [A], "epoch": 3}, "auto"),
        ([{"model": A, "optimizer": [1, 2]}, 5], "auto"),
        ([B, A], "torchvision:1"),
        ({"nets": (B, A)}, "torchvision:nets/1"),
    ],
)
def test_lists_are_read_by_their_places(content: Any, source: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "list.pth")
    state = load_backbone(tmp_path / "list.pth", source)
    assert all(torch.equal(state[name].float(), value.float()) for name, value in A.items())


def test_two_backbones_in_a_list_are_refused_with_their_places(tmp_path: Path) -> None:
    torch.save([B, A], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"--from torchvision:0 or --from torchvision:1"):
        load_backbone(tmp_path / "list.pth")


def test_a_dictionary_in_very_many_places_takes_no_time(tmp_path: Path) -> None:
    """300^5 places, in a file of 24 kB."""
    content: Any = {"x": 1}
    for _ in range(5):
        content = {f"k{number}": content for number in range(300)}
    torch.save(content, tmp_path / "many.pth")
    with pytest.raises(InputError, match="no ResNet"):
        load_backbone(tmp_path / "many.pth")
