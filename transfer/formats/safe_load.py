"""Read foreign checkpoints without running code that is in them.

The content of a file decides its kind, not its name. PyTorch files are read with `weights_only=True`. Pickles are read
by an unpickler that knows only the names below. Other objects of a file (settings, paths, counters) become `Inert` or
dictionaries, which keep the stored values and run nothing.
"""

import collections
import dataclasses
import io
import itertools
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from intl_bench.core import files, inputs
from intl_bench.core.errors import InputError, from_os_error
from pretrain.states import current_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Content of a file.

    Attributes:
        kind: "PyTorch", "safetensors" or "pickle".
        data: the stored value; arrays of NumPy are not converted.
        metadata: the header of a safetensors file; otherwise empty.
    """

    path: Path
    sha256: str
    kind: str
    data: Any
    metadata: dict[str, str]


class Inert:
    """Stand-in for an object whose class is not imported. It keeps the stored values and runs nothing."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.args = (*args, *named.values())

    def __setstate__(self, state: Any) -> None:
        self.state = state


class ByolState(NamedTuple):
    """`_ByolExperimentState` of DeepMind's BYOL, with the parameters and running statistics of haiku."""

    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


def _mapping(*args: Any) -> dict[Any, Any]:
    """Return a dictionary from the arguments of a mapping class. A default factory is dropped."""
    return collections.OrderedDict(args[0]) if args and isinstance(args[0], dict) else collections.OrderedDict()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes as pickles of protocol 2 write them."""
    if encoding not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}; expected latin1 or utf-8")
    return text.encode(encoding)


_core = np._core  # type: ignore[attr-defined]
_NUMPY: dict[str, Any] = {
    f"numpy.{package}.multiarray.{name}": getattr(_core.multiarray, name)
    for package in ("core", "_core")
    for name in ("_reconstruct", "scalar")
}
_NUMPY |= {f"numpy.{package}.numeric._frombuffer": _core.numeric._frombuffer for package in ("core", "_core")}
_NUMPY |= {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
_NUMPY |= {f"numpy.dtypes.{type(t).__name__}": type(t) for t in map(np.dtype, "?bBhHiIlLqQefdSU")}

# Harmless classes and functions by full name. Those that only hold data are real; the others become stand-ins.
_KNOWN: dict[str, Any] = {
    **_NUMPY,
    "argparse.Namespace": Inert,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _mapping,
    "addict.addict.Dict": collections.OrderedDict,
    "yacs.config.CfgNode": collections.OrderedDict,
    "fvcore.common.config.CfgNode": collections.OrderedDict,
    "detectron2.config.config.CfgNode": collections.OrderedDict,
    "typing.Any": Inert,
    "torch.torch_version.TorchVersion": str,
    "__main__._ByolExperimentState": ByolState,
    **{
        f"{module}.{kind}": Inert
        for module in ("pathlib", "pathlib._local")  # the latter in files of Python 3.13
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
    **{f"datetime.{kind}": Inert for kind in ("date", "datetime", "timedelta")},
    **{f"builtins.{kind.__name__}": kind for kind in (bool, int, float, str, list, dict, set, complex)},
    "builtins.tuple": list,  # so that only the codes for tuples make tuples, which are counted
}
# Packages whose settings and counters occur in checkpoints of known layouts. All their objects become stand-ins, so
# their code does not matter.
_PACKAGES = (
    *("mmengine", "mmcv", "omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"),
    *("lightly", "solo", "stable_pretraining", "classy_vision", "vissl", "haiku", "optax", "jaxline", "byol", "timm"),
)


def _stand_in(name: str) -> Any:
    """Return the replacement of a global that a file asks for; None if the file must be refused."""
    if name in _KNOWN:
        return _KNOWN[name]
    package, last = name.split(".")[0], name.split(".")[-1]
    if last == "_ByolExperimentState":
        return ByolState
    if last in ("FlatMapping", "FlatMap", "frozendict") and package == "haiku":
        return _mapping
    if package in _PACKAGES:
        return collections.OrderedDict if last in ("AttributeDict", "ConfigDict") else Inert
    return None


class _Unpickler(pickle._Unpickler):
    """Unpickler that finds only the replacements of `_stand_in`.

    It is the one written in Python, because the one written in C allocates as many objects as a file claims to have.
    """

    tuples = 0

    def find_class(self, module: str, name: str) -> Any:
        found = _encode if (module, name) == ("_codecs", "encode") else _stand_in(f"{module}.{name}")
        if found is None:
            raise _Refused(f"{module}.{name}")
        return found


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return the loader of an opcode, which counts the tuples; see `intl_bench.core.inputs.check_torch_file`."""

    def load_tuple(unpickler: _Unpickler) -> None:
        unpickler.tuples += 1
        if unpickler.tuples > inputs.MOST_TUPLES:
            raise pickle.UnpicklingError(f"more than {inputs.MOST_TUPLES} tuples")
        load(unpickler)

    return load_tuple


_LOADERS: dict[int, Any] = pickle._Unpickler.dispatch
_Unpickler.dispatch = _LOADERS | {
    code[0]: _counted(_LOADERS[code[0]]) for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
}


class _Refused(Exception):
    """A file asks for a global that is not known; the message is its name."""


def read(path: Path) -> Content:
    """Read a PyTorch file (zip or older), a safetensors file or a pickle of arrays, on the CPU.

    Raises:
        InputError: the file is missing, a folder, empty, damaged, of another format, or asks for a global that could
            run code. The error names the global, which is not called.
    """
    if path.is_dir():
        raise InputError(
            f"checkpoint {path}: a folder; expected a file; of a sharded checkpoint give the consolidated file"
        )
    if not path.is_file():
        raise InputError(
            f"checkpoint {path}: no such file; run `intl-bench pretrain` first, or give another checkpoint"
        )
    digest = files.verify(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
            size = stream.seek(0, io.SEEK_END)
    except OSError as error:
        raise from_os_error(error, f"cannot read checkpoint {path}") from error
    kind = _sniff(head, size, path)
    readers: dict[str, Callable[[Path], tuple[Any, dict[str, str]]]] = {
        "PyTorch": _read_torch,
        "safetensors": _read_safetensors,
        "pickle": _read_pickle,
    }
    try:
        data, metadata = readers[kind](path)
    except _Refused as refused:
        raise InputError(
            f"checkpoint {path}: not loaded: it asks for {refused}, which could run code; no code was run; save only "
            "the weights (state_dict() of the model) and convert that file"
        ) from refused
    except OSError as error:
        raise from_os_error(error, f"cannot read checkpoint {path}") from error
    except Exception as error:  # readers raise many kinds of exceptions for a damaged file
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise InputError(
            f"checkpoint {path}: not a readable {kind} file: truncated or damaged ({reason}); get it again"
        ) from error
    return Content(path=path, sha256=digest, kind=kind, data=current_names(data), metadata=metadata)


_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the pickled number at the start of files of PyTorch before 1.6
_OTHERS = (
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "a web page, not weights; download it again"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer, not the file; run `git lfs pull`"),
    (re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf"), "a compressed file; decompress it first"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive; unpack it and give the file of weights in it"),
    (re.compile(rb"\x89HDF"), "an HDF5 file; expected a PyTorch file, safetensors or a pickle"),
)


def _sniff(head: bytes, size: int, path: Path) -> str:
    """Return the kind of a file of `size` bytes that begins with `head`."""
    if not head:
        raise InputError(f"checkpoint {path}: empty file; get it again")
    for pattern, reason in _OTHERS:
        if pattern.match(head):
            raise InputError(f"checkpoint {path}: {reason}")
    if head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[2:].startswith(_LEGACY)):
        return "PyTorch"
    if head[8:9] == b"{":
        if int.from_bytes(head[:8], "little") + 8 > size:
            raise InputError(f"checkpoint {path}: a truncated safetensors file of {size} bytes; get it again")
        return "safetensors"
    if (head[:1] == b"\x80" and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL])) or head[:1] in (b"(", b"}", b"]", b"c"):
        return "pickle"
    raise InputError(
        f"checkpoint {path}: unknown format; expected a PyTorch file, safetensors or a pickle (not one of TensorFlow)"
    )


def _read_torch(path: Path) -> tuple[Any, dict[str, str]]:
    # An open file has no ending, by which torch would choose the format.
    with path.open("rb") as stream:
        inputs.check_torch_file(stream)
        try:
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
        except ValueError:  # the globals of a file before the zip format cannot be listed
            asked = list(_KNOWN)
        stand_ins = {name: _stand_in(name) for name in asked}
        for name in sorted(name for name, value in stand_ins.items() if value is None):
            raise _Refused(name)
        stand_ins |= _NUMPY  # classes of arrays are built although the list does not have them
        stream.seek(0)
        try:
            with torch.serialization.safe_globals(list(zip(stand_ins.values(), stand_ins, strict=True))):
                return torch.load(stream, map_location="cpu", weights_only=True), {}
        except pickle.UnpicklingError as error:
            refused = re.search(r"(?:GLOBAL|function) (?:<[\w-]+ \w+ )?([\w.]+)", str(error))
            if refused:
                raise _Refused(refused[1]) from error
            raise ValueError(str(error).split("WeightsUnpickler error:")[-1]) from error


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_pickle(path: Path) -> tuple[Any, dict[str, str]]:
    with path.open("rb") as stream:
        return _Unpickler(stream, encoding="latin1").load(), {}


def tensors(value: Any) -> dict[str, torch.Tensor]:
    """Return the dense tensors and arrays of a mapping by name, all as tensors; an empty mapping for another value."""
    if not isinstance(value, dict):
        return {}
    found: dict[str, torch.Tensor] = {}
    for name, item in value.items():
        if not isinstance(name, str):
            continue
        if isinstance(item, torch.Tensor):
            if item.layout == torch.strided and item.device.type == "cpu" and not (item.is_quantized or item.is_nested):
                found[name] = item.detach()
        elif isinstance(item, np.ndarray) and item.dtype.kind in "fiub":
            native = item.astype(item.dtype.newbyteorder("="), copy=False)
            found[name] = torch.from_numpy(native if native.flags.writeable else native.copy())
    return found


def flatten_byol(state: ByolState) -> dict[str, dict[str, Any]]:
    """Return {"online": {"module/parameter": array}, "target": ...}, parameters and running statistics together."""

    def leaves(tree: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {prefix.rstrip("/"): tree}
        return dict(itertools.chain.from_iterable(leaves(v, f"{prefix}{k}/").items() for k, v in tree.items()))

    return {
        "online": leaves(state.online_params, "") | leaves(state.online_state, ""),
        "target": leaves(state.target_params, "") | leaves(state.target_state, ""),
    }
