"""Reading of files by their content: every kind of file, no code run, one line for a file that cannot be read."""

import argparse
import collections
import datetime
import decimal
import fractions
import os
import pathlib
import pickle
import random
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from intl_bench.core.errors import InputError
from transfer.formats.safe_load import flatten_byol, read, tensors

WEIGHTS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.num_batches_tracked": torch.tensor(3)}


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def assert_weights(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(WEIGHTS)
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize("name", ["a.pth", "a.pth.tar", "a.pkl", "a.safetensors", "a"])
@pytest.mark.parametrize("write", [torch.save, legacy, save_file, "pickle"])
def test_the_content_decides_the_kind(write: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if write == "pickle":
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in WEIGHTS.items()}, protocol=2))
    else:
        write(WEIGHTS, path)
    assert_weights(
        tensors(read(path).data) if write != save_file else dict(sorted(read(path).data.items(), reverse=True))
    )


class _Sentinel:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


class _Evaluated(_Sentinel):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


class _Nested(_Sentinel):
    """An allowed function whose argument is not allowed."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return collections.OrderedDict, ({"x": _Evaluated(self.path)},)


def dump(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def dump_text(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=0))


def dump_newest(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=5))


DUMPS = (dump, dump_text, dump_newest)


@pytest.mark.parametrize("write", [torch.save, legacy, *DUMPS])
@pytest.mark.parametrize(
    ("kind", "name"), [(_Sentinel, r"(posix|os)\.system"), (_Evaluated, "eval"), (_Nested, "eval")]
)
def test_code_is_refused_by_name_and_not_run(write: Any, kind: Any, name: str, tmp_path: Path) -> None:
    path, sentinel = tmp_path / "weights.pth", tmp_path / "was_run"
    weights = {key: value.numpy() for key, value in WEIGHTS.items()} if write in DUMPS else WEIGHTS
    write({"state_dict": weights, "extra": kind(sentinel)}, path)
    with pytest.raises(InputError, match=rf"asks for \S*{name}, which could run code; no code was run") as caught:
        read(path)
    assert not sentinel.exists()
    assert "\n" not in str(caught.value)
    if write in DUMPS:  # an ordinary reader runs the code
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert sentinel.exists()


def test_a_whole_module_in_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    """Its tensors are files of PyTorch inside the pickle. `test_whole_networks.py` has those of `torch.save`."""
    path = tmp_path / "module.pt"
    dump(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"asks for torch\.\S+, which could run code; .*state_dict\(\)"):
        read(path)


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_settings_of_known_projects_are_kept(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    extras = {
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data")),
        "path": pathlib.Path("/data/imagenet"),
        "scalar": np.float64(3.5),
        "array": np.arange(3),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "version": torch.__version__,
    }
    write({"state_dict": WEIGHTS, **extras}, path)
    data = read(path).data
    assert_weights(tensors(data["state_dict"]))
    assert data["scalar"] == 3.5
    assert list(data["array"]) == [0, 1, 2]
    assert data["counts"] == {"a": [1]}
    assert data["args"].state["lr"] == 0.1


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])  # as Python 3.13 calls it
@pytest.mark.parametrize("kind", ["PosixPath", "PurePosixPath", "WindowsPath"])
def test_paths_of_every_python_are_kept(module: str, kind: str, tmp_path: Path) -> None:
    class Named:
        def __reduce__(self) -> tuple[Any, ...]:
            return pathlib.PurePosixPath, ("data", "imagenet")

    path = tmp_path / "checkpoint.pkl"
    written = pickle.dumps({"state_dict": {k: v.numpy() for k, v in WEIGHTS.items()}, "path": Named()}, protocol=0)
    ours = f"c{pathlib.PurePosixPath.__module__}\nPurePosixPath\n".encode()
    assert ours in written
    path.write_bytes(written.replace(ours, f"c{module}\n{kind}\n".encode()))
    assert_weights(tensors(read(path).data["state_dict"]))


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type], Any]:
    """Return a function that makes a class importable under a name until the test ends."""

    def make(name: str, base: type) -> Any:
        *packages, kind = name.split(".")
        for depth in range(1, len(packages) + 1):
            module = ".".join(packages[:depth])
            if module not in sys.modules:
                monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        made = type(kind, (base,), {"__module__": ".".join(packages)})
        setattr(sys.modules[".".join(packages)], kind, made)
        return made

    return make


def test_objects_of_absent_packages_become_stand_ins(
    foreign: Callable[[str, type], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raw.pth"
    history = foreign("mmengine.logging.history_buffer.HistoryBuffer", object)()
    history.values = np.ones(3)
    settings = foreign("lightning.fabric.utilities.data.AttributeDict", dict)(lr=0.3)
    torch.save({"state_dict": WEIGHTS, "message_hub": {"loss": history}, "hyper_parameters": settings}, path)
    monkeypatch.undo()
    data = read(path).data
    assert "mmengine" not in sys.modules
    assert_weights(tensors(data["state_dict"]))
    assert data["hyper_parameters"] == {"lr": 0.3}
    assert data["message_hub"]["loss"].state["values"].tolist() == [1, 1, 1]


def test_haiku_state_without_haiku(
    foreign: Callable[[str, type], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mappings and the named tuple of DeepMind's pickles, and the state of an optimizer."""
    path = tmp_path / "byol.pkl"
    mapping = foreign("haiku._src.data_structures.FlatMapping", object)
    mapping.__init__ = lambda self, content: setattr(self, "content", content)
    mapping.__reduce__ = lambda self: (mapping, (self.content,))
    state = foreign("byol.byol_experiment._ByolExperimentState", tuple)
    state.__new__ = lambda cls, *values: tuple.__new__(cls, values)
    state.__getnewargs__ = lambda self: tuple(self)
    lars = foreign("optax._src.transform.LarsState", object)()
    params = mapping({"res_net50/~/initial_conv": mapping({"w": np.ones((7, 7, 3, 2), np.float32)})})
    stats = mapping({"res_net50/~/initial_batchnorm/~/mean_ema": mapping({"average": np.ones(2, np.float32)})})
    dump({"experiment_state": state(params, params, stats, stats, lars), "step": 3}, path)
    monkeypatch.undo()
    content = flatten_byol(read(path).data["experiment_state"])
    assert {key: value.shape for key, value in content["online"].items()} == {
        "res_net50/~/initial_conv/w": (7, 7, 3, 2),
        "res_net50/~/initial_batchnorm/~/mean_ema/average": (2,),
    }


def test_arrays_of_old_pythons(tmp_path: Path) -> None:
    """Strings of Python 2, as in Detectron's pickles, big-endian arrays, and float16, which stays float16."""
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"\x80\x02}q\x00U\x05conv1q\x01U\x02\xff\xfeq\x02s.")
    assert read(path).data == {"conv1": "ÿþ"}
    dump({"a": np.arange(3, dtype=">f4"), "b": np.ones(2, np.float16), "c": "text", 4: np.ones(1)}, path)
    found = tensors(read(path).data)
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"].dtype == torch.float16
    assert list(found) == ["a", "b"]


def test_bfloat16_and_safetensors_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    save_file({"w": torch.ones(2, dtype=torch.bfloat16)}, path, metadata={"config": "{}"})
    content = read(path)
    assert (content.kind, content.metadata) == ("safetensors", {"config": "{}"})
    assert content.data["w"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00\x00", "a compressed file; decompress it first"),
        (b"x" * 257 + b"ustar" + b"0" * 300, "a tar archive"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"plain text", "unknown format; expected a PyTorch file, safetensors or a pickle"),
        (b"PK\x03\x04 not really a zip", "not a readable PyTorch file"),
        (b"\x80\x02}q", r"not a readable pickle file: truncated or damaged"),
        ((10**9).to_bytes(8, "little") + b"{", "a truncated safetensors file"),
        ((4).to_bytes(8, "little") + b"{a}}", "not a readable safetensors file"),
    ],
)
def test_other_files_are_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [torch.save, legacy, save_file])
def test_truncated_files_are_one_line(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    write({f"layer{i}": torch.ones(1000) for i in range(4)}, path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match="truncated") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_missing_files_folders_and_replaced_bytes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nowhere.pth")
    with pytest.raises(InputError, match=r"a folder; expected a file; of a sharded checkpoint"):
        read(tmp_path)
    path = tmp_path / "a.pth"
    torch.save(WEIGHTS, path)
    (tmp_path / "a.pth.sha256").write_text(f"{'0' * 64}  a.pth\n")
    with pytest.raises(InputError, match=r"does not match its SHA-256"):
        read(path)


@pytest.mark.parametrize(
    "value",
    [
        *(datetime.datetime.now(datetime.UTC), datetime.time(1), decimal.Decimal("1.5"), fractions.Fraction(1, 2)),
        *(re.compile("a"), random.Random(0), np.random.default_rng(0), np.random.RandomState(0)),
        *(collections.deque([1, 2], maxlen=3), range(3), slice(1, 2), frozenset({1}), np.float64(3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_harmless_objects_beside_the_weights_do_not_stop_the_reading(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": WEIGHTS, "hyper_parameters": {"value": value}, "rng": [value]}, path)
    found = read(path).data["state_dict"]
    assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())
