"""Checks of this machine and installation. Each line that is not ok ends with the command that mends it."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from intl_bench.core import data_folders, machine, planned
from intl_bench.core.config import CONFIGS

PROJECT = "intl-bench"
_PYPROJECT = CONFIGS.parent / "pyproject.toml"
_LEAST_DISK = 5 * 2**30  # states of a ResNet-50 with a projector of 8192, and one more
_LEAST_SHARED = 2**30  # batches of images on their way from the workers
_LEAST_FILES = 1024
_DRIVER = Path("/proc/driver/nvidia/version")
_DETECTRON2 = "git+https://github.com/facebookresearch/detectron2.git"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        state: "ok", "note" (something optional is missing) or "FAIL".
        remedy: the command that mends it; "" for none.
    """

    name: str
    state: str
    found: str
    remedy: str = ""

    def lines(self, width: int) -> str:
        """Return the check as text of at most `width` columns. A remedy is a line of its own and stays whole."""
        head, indent = f"{self.state:4}  {self.name:13} ", " " * 20
        text = planned.wrap(self.found, width, head, indent)
        return f"{text}\n{indent}$ {self.remedy}" if self.remedy else text


def examine(paths: Sequence[Path]) -> Iterator[Check]:
    """Yield the checks in order.

    Args:
        paths: data folders to look at. Without any, those are looked at that the packaged recipes name.
    """
    checks: list[Callable[[], Iterable[Check]]] = [_python, _packages, _torch, _gpus, _nccl, _detectron2, _extras]
    for check in (*checks, _machine, _disk, _shared_memory, _open_files):
        yield from check()
    yield from map(_data, paths) if paths else _default_data()


def _python() -> Iterator[Check]:
    where = "" if sys.prefix != sys.base_prefix else ", not in a virtual environment"
    yield Check(name="Python", state="ok", found=f"{platform.python_version()} ({sys.executable}){where}")


def _packages() -> Iterator[Check]:
    needed = [(name, text) for name, text, extra in _requirements() if extra is None]
    wrong = {text: problem for name, text in needed if (problem := _problem(name, text))}
    if wrong:
        yield Check(name="packages", state="FAIL", found="; ".join(wrong.values()), remedy=_pip(*wrong))
    else:
        yield Check(name="packages", state="ok", found=f"all {len(needed)} that are required")


def _requirements() -> list[tuple[str, str, str | None]]:
    """Return the name, the text and the extra of each requirement: those of the checkout, or of the installed wheel.

    An installation that is linked to a checkout keeps the requirements of the day on which it was made.
    """
    if _PYPROJECT.is_file():
        project = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        listed = [(text, None) for text in project["dependencies"]] + [
            (text, name) for name, own in extras for text in own
        ]
    else:
        listed = [_without_marker(text) for text in importlib.metadata.requires(PROJECT) or []]
    return [(re.split(r"[^\w.-]", text, maxsplit=1)[0], text, extra) for text, extra in listed]


def _without_marker(requirement: str) -> tuple[str, str | None]:
    """Split "lightly>=1.5; extra == 'baselines'" into the requirement and its extra."""
    text, _, marker = requirement.partition(";")
    extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
    return text.strip(), extra[1] if extra else None


def _problem(name: str, requirement: str) -> str:
    """Return what is wrong with a required package; "" if nothing is."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    for sign, bound in re.findall(r"(>=|<)([\w.]+)", requirement):
        older = _numbers(version) < _numbers(bound)
        if older if sign == ">=" else not older:
            return f"{name} is {version}, expected {sign}{bound}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _pip(*what: str) -> str:
    """Return the command that installs something into the environment of this Python."""
    on_path = shutil.which("python")
    python = "python" if on_path and os.path.samefile(on_path, sys.executable) else sys.executable
    if importlib.util.find_spec("pip") is None:  # an environment of uv
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, *what])
    return shlex.join([python, "-m", "pip", "install", *what])


def _torch() -> Iterator[Check]:
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails if the two do not fit each other
    except Exception as error:  # a broken installation raises many kinds of errors
        reason = " ".join(str(error).split())[:200]
        remedy = _pip("--force-reinstall", "torch", "torchvision")
        yield Check(name="PyTorch", state="FAIL", found=f"cannot be used: {reason}", remedy=remedy)
        return
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Check(name="PyTorch", state="ok", found=f"{torch.__version__} {built}, torchvision {torchvision.__version__}")


def _gpus() -> Iterator[Check]:
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            yield from (_gpu(number) for number in range(torch.cuda.device_count()))
        elif not _DRIVER.exists() and shutil.which("nvidia-smi") is None:
            yield Check(name="CUDA", state="note", found="no NVIDIA driver on this machine; runs use the CPU")
        elif torch.version.cuda is None:
            remedy = _pip("--force-reinstall", "torch", "torchvision", "--index-url", _wheels())
            yield Check(
                name="CUDA", state="FAIL", found="there is a driver, but PyTorch is built for CPUs", remedy=remedy
            )
        else:
            found = f"PyTorch for CUDA {torch.version.cuda} finds no GPU: the driver is too old, or GPUs are hidden"
            hidden = "CUDA_VISIBLE_DEVICES" in os.environ
            yield Check(
                name="CUDA", state="FAIL", found=found, remedy="unset CUDA_VISIBLE_DEVICES" if hidden else "nvidia-smi"
            )


def _gpu(number: int) -> Check:
    import torch

    facts = torch.cuda.get_device_properties(number)
    found = f"{facts.name}, {planned.size(facts.total_memory)}, compute capability {facts.major}.{facts.minor}"
    try:
        torch.ones(1, device=f"cuda:{number}").add_(1).item()
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        remedy = _pip("--force-reinstall", "torch", "torchvision", "--index-url", _wheels())
        return Check(name=f"CUDA {number}", state="FAIL", found=f"{found}: {reason}", remedy=remedy)
    return Check(name=f"CUDA {number}", state="ok", found=found)


def _wheels() -> str:
    """Return the index of PyTorch's wheels for the CUDA version of the driver."""
    listing = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20).stdout
    version = re.search(r"CUDA Version: (\d+)\.(\d+)", listing)
    newest = (int(version[1]), int(version[2])) if version else (12, 6)
    best = max((one for one in ((12, 6), (12, 8), (13, 0)) if one <= newest), default=(12, 6))
    return f"https://download.pytorch.org/whl/cu{best[0]}{best[1]}"


def _nccl() -> Iterator[Check]:
    with contextlib.suppress(ImportError):
        import torch
        from torch import distributed

        if distributed.is_available() and distributed.is_nccl_available():
            version = ".".join(map(str, torch.cuda.nccl.version()))
            yield Check(name="NCCL", state="ok", found=f"{version}, for several GPUs")
        elif torch.cuda.is_available() and torch.cuda.device_count() > 1:
            remedy = _pip("--force-reinstall", "torch", "--index-url", _wheels())
            yield Check(name="NCCL", state="FAIL", found="missing, which several GPUs need", remedy=remedy)
        else:
            yield Check(name="NCCL", state="note", found="not in this PyTorch; several processes of a CPU use gloo")


def _detectron2() -> Iterator[Check]:
    from transfer.detection.engines import choice

    problem = choice.find_import_problem()
    install = _pip("--no-build-isolation", _DETECTRON2)
    if not problem:
        found = f"{importlib.import_module('detectron2').__version__}; coco and voc use it"
        yield Check(name="Detectron2", state="ok", found=found)
    elif "cannot be imported" in problem:
        remedy = _pip("--force-reinstall", "--no-deps", "--no-build-isolation", _DETECTRON2)
        yield Check(name="Detectron2", state="FAIL", found=f"{problem}; build it for this PyTorch", remedy=remedy)
    else:
        found = "not installed; the built-in detector gives its numbers. To build it for this PyTorch"
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None or not Path(sysconfig.get_path("include"), "Python.h").is_file():
            found += ", a C++ compiler and Python's headers are needed first"
            install = f"apt-get install g++ python3-dev && {install}"
        yield Check(name="Detectron2", state="note", found=found, remedy=install)


def _extras() -> Iterator[Check]:
    listed = [one for one in _requirements() if one[2] is not None]
    for extra in dict.fromkeys(extra for _, _, extra in listed if extra != "dev"):
        wrong = {text: problem for name, text, own in listed if own == extra and (problem := _problem(name, text))}
        if wrong:
            remedy = _pip("-e", f"{_PYPROJECT.parent}[{extra}]") if _PYPROJECT.is_file() else _pip(*wrong)
            yield Check(name=f"extra {extra}", state="note", found="; ".join(wrong.values()), remedy=remedy)
        else:
            yield Check(name=f"extra {extra}", state="ok", found="installed")


def _machine() -> Iterator[Check]:
    found = f"{machine.cores()}, {planned.size(machine.memory_bytes())} of memory, {platform.system()}"
    yield Check(name="cores", state="ok", found=found)


def _disk() -> Iterator[Check]:
    here, free = Path.cwd(), machine.free_bytes(Path.cwd())
    found = f"{planned.size(free)} free in {here}, where runs/ and results/ are written"
    if not os.access(here, os.W_OK):
        yield Check(name="disk", state="FAIL", found=f"{here} cannot be written", remedy="mkdir -p ~/work && cd ~/work")
    elif free < _LEAST_DISK:
        found += f"; expected {planned.size(_LEAST_DISK)} for the states of a ResNet-50"
        yield Check(name="disk", state="FAIL", found=found, remedy="cd /path/on/a/larger/disk")
    else:
        yield Check(name="disk", state="ok", found=found)


def _shared_memory(place: Path = Path("/dev/shm")) -> Iterator[Check]:
    if not place.is_dir():  # macOS
        return
    usage = shutil.disk_usage(place)
    found = f"{planned.size(usage.free)} of {planned.size(usage.total)} free in {place}, for the data workers"
    if usage.free >= _LEAST_SHARED:
        yield Check(name="shared memory", state="ok", found=found)
        return
    found += "; expected 1.0 GiB, or workers=0; in a container start it with --shm-size=8g"
    remedy = "sudo mount -o remount,size=8G /dev/shm" if usage.total < _LEAST_SHARED else "ls -lSh /dev/shm"
    yield Check(name="shared memory", state="FAIL", found=found, remedy=remedy)


def _open_files() -> Iterator[Check]:
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
            most = hard if hard != resource.RLIM_INFINITY else 65536
            found = f"{soft} at a time; expected {_LEAST_FILES} for many data workers"
            yield Check(name="open files", state="FAIL", found=found, remedy=f"ulimit -n {most}")
        else:
            yield Check(name="open files", state="ok", found=f"{soft} at a time")


def _default_data() -> Iterator[Check]:
    """Look at the folders data/ and data/NAME of the working directory."""
    places = [Path("data"), *sorted(path for path in Path("data").glob("*") if path.is_dir() or path.suffix == ".npz")]
    found = [path for path in places if data_folders.kind_of(path) is not None]
    yield from map(_data, found)
    if not found:
        text = "no data set in data/ here; to look at yours"
        yield Check(name="data", state="note", found=text, remedy=f"{PROJECT} doctor /path/to/images")


def _data(path: Path) -> Check:
    """Say what a data folder holds, by the names in it."""
    kind = data_folders.kind_of(path)
    if kind is None:
        return _unknown_data(path)
    look = f"{PROJECT} data check {shlex.quote(str(path))}"
    if kind in ("coco", "voc") and not any((path / mark).exists() for mark in data_folders.MARKS[kind]):
        found = f"{path}: annotations of {kind.upper()}'s form; {look} looks at them and names the settings of a run"
        return Check(name="data", state="ok", found=found)
    if kind != "imagefolder":
        use = f"intl-bench {kind}" if kind in ("coco", "voc") else f"data.kind={kind}"
        return Check(name="data", state="ok", found=f"{path}: {kind}; use it with {use} data.root={path}")
    counts = {name: _classes(path / name) for name in ("train", "val") if (path / name).is_dir()}
    packs = [name for name in ("train.pack", "val.pack") if (path / name).exists()]
    what = ", ".join([*(f"{count} classes in {name}" for name, count in counts.items()), *packs])
    missing = [name for name in ("train", "val") if name not in counts and f"{name}.pack" not in packs]
    if missing:
        hint = data_folders.split_instead(path, missing[0])
        remedy = hint.command or shlex.join(["ls", str(path)])
        found = f"{path}: {what}, but no {missing[0]}{hint.text}"
        return Check(name="data", state="FAIL", found=found, remedy=remedy)
    found = f"{path}: {what}; {look} looks at every image"
    return Check(name="data", state="ok", found=found)


def _unknown_data(path: Path) -> Check:
    every = [mark for marks in data_folders.MARKS.values() for mark in marks]
    hint = data_folders.where_instead(path, every)
    if not hint.text:
        hint = data_folders.split_instead(path, "train")
    found = f"{path}: no data set of a known kind{hint.text.removesuffix(data_folders.SET_ROOT)}"
    look = [PROJECT, "doctor", str(hint.root)] if hint.root else ["ls", str(path if path.is_dir() else path.parent)]
    return Check(name="data", state="FAIL", found=found, remedy=hint.command or shlex.join(look))


def _classes(folder: Path) -> int:
    return sum(entry.is_dir() and not data_folders.SYSTEM_FOLDER.fullmatch(entry.name) for entry in os.scandir(folder))
