"""`intl-bench doctor`: what it says about a sound machine, and about faults that are made here."""

import importlib.metadata
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intl_bench import doctor
from intl_bench.cli import main
from intl_bench.doctor import Check

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one(checks: Any, name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def test_it_looks_at_everything_and_every_fault_ends_with_a_command(capsys: Capture) -> None:
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    for name in ("Python", "packages", "PyTorch", "CUDA", "NCCL", "Detectron2", "cores", "disk", "open files", "data"):
        assert any(line[6:].startswith(name) for line in heads), name
    assert code == (4 if any(line.startswith("FAIL") for line in heads) else 0)
    assert all(line[:4] in ("ok  ", "note", "FAIL") for line in heads)


def test_a_package_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "tabulate":
            raise importlib.metadata.PackageNotFoundError
        return "10.1.0" if name == "pillow" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = one(doctor._packages(), "packages")
    assert (check.state, check.found) == ("FAIL", "tabulate is missing; pillow is 10.1.0, expected >=13.0")
    assert check.remedy.endswith("pip install 'tabulate>=0.9' 'pillow>=13.0'") or "uv pip" in check.remedy


@pytest.mark.parametrize(
    ("version", "problem"),
    [("2.3.1", ""), ("2.2.9", "omegaconf is 2.2.9, expected >=2.3"), ("2.4.0", "omegaconf is 2.4.0, expected <2.4")],
)
def test_versions_are_compared_as_numbers(version: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert doctor._problem("omegaconf", "omegaconf<2.4,>=2.3") == problem
    assert doctor._problem("omegaconf", "omegaconf>=2.10") != ""


def test_a_broken_pytorch_is_a_line_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    check = one(doctor._torch(), "PyTorch")
    assert check.state == "FAIL"
    assert check.remedy.endswith("--force-reinstall torch torchvision")


def test_a_driver_with_a_pytorch_for_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "_DRIVER", tmp_path)
    check = one(doctor._gpus(), "CUDA")
    assert (check.state, "https://download.pytorch.org/whl/cu" in check.remedy) == ("FAIL", True)


def test_gpus_that_work_and_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="NVIDIA X", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: facts)
    monkeypatch.setattr("torch.ones", lambda size, device: torch.zeros(size))
    assert [(check.name, check.state) for check in doctor._gpus()] == [("CUDA 0", "ok"), ("CUDA 1", "ok")]

    def fail(size: int, device: str) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr("torch.ones", fail)
    check = one(doctor._gpus(), "CUDA 1")
    assert (check.state, "compute capability 9.0: no kernel image is available" in check.found) == ("FAIL", True)
    assert "--index-url" in check.remedy


def test_too_little_shared_memory_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64 * 2**20, 0, 64 * 2**20))  # type: ignore[attr-defined]
    shared, disk = one(doctor._shared_memory(Path()), "shared memory"), one(doctor._disk(), "disk")
    assert (shared.state, shared.remedy) == ("FAIL", "sudo mount -o remount,size=8G /dev/shm")
    assert "--shm-size=8g" in shared.found
    assert (disk.state, disk.remedy) == ("FAIL", "cd /path/on/a/larger/disk")


def test_a_missing_extra_has_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: [("no_such_package", "no_such_package>=1", "slurm")])
    check = one(doctor._extras(), "extra slurm")
    assert (check.state, check.found) == ("note", "no_such_package is missing")
    assert "[slurm]" in check.remedy


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
    return path


def test_data_folders(tmp_path: Path, capsys: Capture) -> None:
    good = folder(tmp_path / "good", "train/a", "train/b", "val/a", "val/b")
    assert doctor._data(good).state == "ok"
    folder(good, "train/__MACOSX", "train/@eaDir", "val/lost+found", "val/.cache")
    assert "2 classes in train, 2 classes in val" in doctor._data(good).found
    named = folder(tmp_path / "named", "train/a", "test/a")
    assert doctor._data(named).remedy == f"ln -s test {named / 'val'}"
    assert doctor._data(good / "train" / "a").remedy == f"intl-bench doctor {good}"
    (folder(tmp_path / "unsplit", "a") / "a" / "1.jpg").touch()
    assert doctor._data(tmp_path / "unsplit").remedy.startswith("mkdir ")
    assert doctor._data(folder(tmp_path / "c", "annotations")).state == "FAIL"
    (tmp_path / "c" / "annotations" / "instances_val2017.json").touch()
    assert "intl-bench coco data.root=" in doctor._data(tmp_path / "c").found
    own = folder(tmp_path / "my cells", "labels", "train") / "labels" / "train.json"
    assert doctor._data(tmp_path / "my cells").remedy == f"ls '{tmp_path / 'my cells'}'"
    own.write_text('{"images": [], "annotations": [], "categories": []}')
    assert doctor._data(tmp_path / "my cells").state == "ok"
    assert f"COCO's form; intl-bench data check '{tmp_path / 'my cells'}'" in doctor._data(tmp_path / "my cells").found
    spaced = folder(tmp_path / "my birds", "train/a", "test/a")
    assert doctor._data(spaced).remedy == f"ln -s test '{spaced / 'val'}'"
    assert doctor._data(tmp_path / "qqq" / "deep").remedy == f"ls {tmp_path}"
    assert "data.root" not in doctor._data(tmp_path / "qqq" / "deep").found
    assert main(["doctor", "good", "nowhere"]) == 4
    assert "checks failed: data" in capsys.readouterr().err


def test_a_line_fits_the_terminal_and_its_command_is_whole() -> None:
    check = Check(name="x", state="FAIL", found="word " * 40, remedy="a " * 60)
    *text, command = check.lines(80).splitlines()
    assert max(map(len, text)) <= 80
    assert command.strip() == "$ " + "a " * 59 + "a"


@pytest.mark.parametrize("checkout", [True, False])
def test_requirements_of_a_checkout_and_of_a_wheel(checkout: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not checkout:
        monkeypatch.setattr(doctor, "_PYPROJECT", Path("nowhere"))
        stated = ["torch>=2.10", "lightly>=1.5 ; extra == 'baselines'"]
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: stated)
    found = {(name, extra) for name, _, extra in doctor._requirements()}
    assert {("torch", None), ("lightly", "baselines")} <= found
