"""Files and folders of other programs: each is refused by its name in one line, with what to do, or read."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from layout_cases import haiku, random_state, without_counters
from torch import nn
from torch.nn.utils import parametrizations, prune

from intl_bench.cli import main
from intl_bench.core.errors import InputError
from transfer.convert import read as read_checkpoint
from transfer.formats import safe_load
from transfer.formats.safe_load import read

Capture = pytest.CaptureFixture[str]


def refused(path: Path, *expected: str, capsys: Capture) -> str:
    """Run `intl-bench convert`; check that it ends with the exit code 2 and one line with these texts."""
    capsys.readouterr()
    assert main(["convert", str(path), str(path.parent / "out.pth"), "--to", "torchvision"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(text in line for text in expected), line
    return line


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("__0_0.distcp", "torch.distributed.checkpoint.format_utils dcp_to_torch"),
        (".metadata", "dcp_to_torch"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", "one part of the weights of DeepSpeed"),
        ("model.safetensors.index.json", "an index of the files that share the weights"),
        ("model.ckpt-225206.index", "simclr-converter"),
        ("model.ckpt-225206.data-00000-of-00001", "variables of TensorFlow"),
        ("saved_model.pb", "variables of TensorFlow"),
        ("resnet.onnx", "an ONNX graph"),
        ("flax_model.msgpack", "parameters of Flax"),
    ],
)
def test_files_are_refused_by_their_name(name: str, expected: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x0a\x0b other bytes")
    refused(path, f"checkpoint {path}: ", expected, capsys=capsys)


def test_a_name_does_not_stop_the_reading_of_weights(tmp_path: Path) -> None:
    """The content decides. A checkpoint of Lightning may be called like one of TensorFlow."""
    state = random_state("resnet10_narrow")
    for name in ("model.ckpt-100", "weights.index", "a.onnx", "code", "constants"):
        torch.save(state, tmp_path / name)
        assert read(tmp_path / name).kind == "PyTorch"


def test_the_name_of_a_checkpoint_of_tensorflow(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model.ckpt-250228.index").write_bytes(b"\0")
    refused(tmp_path / "model.ckpt-250228", "variables of TensorFlow", "Separius/SimCLRv2-Pytorch", capsys=capsys)


def test_optimizer_states_of_deepspeed(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "renamed.pt"
    torch.save({"optimizer_state_dict": {"single_partition_of_fp32_groups": [torch.ones(2)]}}, path)
    refused(path, "zero_to_fp32.py", capsys=capsys)
    torch.save({"shadow_params": [torch.ones(2)], "decay": 0.9}, path)
    refused(path, "averaged weights in a list without names", capsys=capsys)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([".metadata", "__0_0.distcp"], "dcp_to_torch FOLDER OUT.pth"),
        (["zero_to_fp32.py", "latest"], "a checkpoint of DeepSpeed; run python zero_to_fp32.py"),
        (["mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["saved_model.pb", "variables"], "variables of TensorFlow"),
        (["model.ckpt-9.index", "checkpoint"], "variables of TensorFlow"),
        (["config.json", "model.safetensors"], "model.safetensors"),
        (["_CHECKPOINT_METADATA", "d"], "Orbax"),
        (["data.pkl", "version"], "the unpacked parts of a PyTorch file"),
        ([], "a folder; expected a file"),
    ],
)
def test_folders_are_refused_by_what_is_in_them(
    names: list[str], expected: str, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    refused(folder, "a folder", expected, capsys=capsys)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "RN50.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    refused(path, "a TorchScript archive", "torch.jit.load", "save its state_dict()", capsys=capsys)


def test_other_archives(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/resnet50.pth", b"x")
    refused(path, "a zip archive of files; unpack it", capsys=capsys)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"x")
    refused(path, "a model of Keras", capsys=capsys)
    path.write_text(json.dumps({"metadata": {}, "weight_map": {}}))
    refused(path, "an index of the files", capsys=capsys)
    np.save(tmp_path / "a.npy", np.ones(2))
    refused(tmp_path / "a.npy", "one array of NumPy", capsys=capsys)


def test_another_pickle_protocol(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"state_dict": random_state("resnet10_narrow")}, tmp_path / "a.pth", pickle_protocol=4)
    refused(tmp_path / "a.pth", "pickle_protocol=4", "save it again with the default protocol", capsys=capsys)


@pytest.mark.parametrize("nested", [False, True])
def test_arrays_of_haiku(nested: bool, tmp_path: Path, capsys: Capture) -> None:
    """An .npz file with the parameters and statistics of DeepMind's BYOL, of one network or of both."""
    states = {"online": random_state("resnet10_narrow", 0), "target": random_state("resnet10_narrow", 1)}
    arrays: dict[str, Any] = {}
    for copy, state in states.items():
        for kind, tree in zip(("params", "state"), haiku(state, "res_net50"), strict=True):
            for module, values in tree.items():
                for name, value in values.items():
                    arrays[f"{copy}_{kind}/{module}/{name}" if nested else f"{module}/{name}"] = value
        if not nested:
            break
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "byol.npz", **arrays)
        checkpoint = read_checkpoint(tmp_path / "byol.npz")
        assert (checkpoint.method, checkpoint.source) == ("BYOL", "byol-deepmind")
        for key, value in without_counters(states["online"]).items():
            assert torch.equal(checkpoint.backbone[key], value), key
        error = capsys.readouterr().err
        assert "SAME padding" in error
        assert ("--from byol-deepmind:target reads target/res_net50" in error) == nested
    if nested:
        target = read_checkpoint(tmp_path / "byol.npz", "byol-deepmind:target")
        assert torch.equal(target.backbone["conv1.weight"], states["target"]["conv1.weight"])


def test_arrays_of_objects_and_huge_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(InputError, match=r"a\.npz: not a (readable|complete)"):
        read(tmp_path / "a.npz")
    monkeypatch.setattr(safe_load, "_LARGEST_ARRAYS", 1000)
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(500))
    with pytest.raises(InputError, match=r"arrays of 4128 bytes; expected at most 1000"):
        read(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", weights=np.ones((3, 3)))
    assert list(read(tmp_path / "c.npz").data) == ["weights"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
            "weights are pruned; call torch.nn.utils.prune.remove",
        ),
        (parametrizations.weight_norm, "weights have a norm or another parametrization; remove it"),
        (parametrizations.spectral_norm, "weights have a norm or another parametrization; remove it"),
    ],
)
def test_computed_weights_are_refused_with_the_call_that_stores_them(
    change: Callable[[nn.Module], object], message: str, tmp_path: Path, capsys: Capture
) -> None:
    network = torchvision.models.resnet18()
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            change(module)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", message, capsys=capsys)
