"""Read foreign checkpoints without running code that is in them.

The content of a file decides its kind, not its name. PyTorch files are read with `weights_only=True`. Pickles are read
by an unpickler that knows only the names below. Other objects of a file (settings, paths, counters) become `Inert` or
dictionaries, which keep the stored values and run nothing. So do whole networks, whose tensors are found in the
stored attributes (`transfer.formats.modules`). A class or function of another name may be stored, but not called.
"""

import collections
import dataclasses
import functools
import io
import itertools
import pickle
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from intl_bench.core import files, inputs, run_folders
from intl_bench.core.errors import DamagedError, InputError, from_os_error
from pretrain.images.npz import read_arrays
from pretrain.states import current_names
from transfer.formats import numpy_pickles, other_files
from transfer.formats.modules import Attributes, Inert, dictionaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Content of a file.

    Attributes:
        kind: "PyTorch", "safetensors", "pickle" or "NumPy".
        data: the stored value; arrays of NumPy are not converted.
        metadata: the header of a safetensors file; otherwise empty.
    """

    path: Path
    sha256: str
    kind: str
    data: Any
    metadata: dict[str, str]


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


def _list(*args: Any) -> list[Any]:
    """Return an empty list, which a pickle then fills."""
    return []


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes as pickles of protocol 2 write them."""
    if encoding not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}; expected latin1 or utf-8")
    return text.encode(encoding)


# Harmless classes and functions by full name. Those that only hold data are real; the others become stand-ins.
_KNOWN: dict[str, Any] = {
    **numpy_pickles.STAND_INS,
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
    **{f"datetime.{kind}": Inert for kind in ("date", "datetime", "time", "timedelta", "timezone")},
    **dict.fromkeys(("types.SimpleNamespace", "functools.partial", "builtins.getattr", "uuid.UUID"), Inert),
    **dict.fromkeys(("decimal.Decimal", "fractions.Fraction", "re._compile", "random.Random"), Inert),
    **{f"builtins.{kind}": Inert for kind in ("range", "slice", "frozenset")},
    "collections.deque": _list,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": Inert,
    **{f"numpy.random._pickle.__{kind}_ctor": Inert for kind in ("bit_generator", "generator", "randomstate")},
    **{f"builtins.{kind.__name__}": kind for kind in (bool, int, float, str, list, dict, set, complex)},
    "builtins.tuple": list,  # so that only the codes for tuples make tuples, which are counted
}
# Packages whose settings and counters occur in checkpoints of known layouts. All their objects become stand-ins, so
# their code does not matter.
_PACKAGES = (
    *("mmengine", "mmcv", "omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"),
    *("lightly", "solo", "stable_pretraining", "classy_vision", "vissl", "haiku", "optax", "jaxline", "byol", "timm"),
)
# Parts of PyTorch's messages about files that it reads only by running code.
_UNREAD = {
    "Only persistent_load of storage": (
        "a whole network of PyTorch before 1.6, with its source code; load it with its code and save its state_dict()"
    ),
    "Unsupported operand": (
        "not a readable PyTorch file: damaged, or with another pickle protocol, as of torch.save(..., "
        "pickle_protocol=4), which PyTorch reads only by running code; save it again with the default protocol"
    ),
}
_OF_THIS_PROCESS = ("__builtin__", "torch", "numpy", "pandas", "intl_bench", "pretrain", "transfer")
_LARGEST_ARRAYS = 2**31  # bytes of the arrays of an .npz file
_OF_HAIKU = re.compile(r"(?:(?P<copy>online|target)_(?:params|state)[/:.])?(?=[^/:]*res_?net\d+/~/)")
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the pickled number at the start of files of PyTorch before 1.6
_MOST_NAMES = 500  # of classes and functions in a file


class _Uncalled(type):
    """Class of the stand-ins for other classes and functions, which a file may store but not call."""

    asked: str

    def __call__(cls, *args: Any, **named: Any) -> Any:
        raise _Refused(cls.asked)


def _object(_: type, *__: Any, **___: Any) -> collections.OrderedDict[str, Any]:
    """Return the stand-in for an object, which pickles may fill like a dictionary, and its attributes like others."""
    made: collections.OrderedDict[str, Any] = collections.OrderedDict()
    made.__dict__ = Attributes()
    return made


@functools.lru_cache(maxsize=_MOST_NAMES)
def _other(name: str) -> Any:
    """Return the stand-in for a class or function of an unknown name.

    The classes of unknown packages, whose names begin with a capital letter, are called for the members of
    enumerations and some settings. Nothing of them is imported. A call of anything else is refused with its name.
    """
    package, last = name.split(".")[0], name.split(".")[-1]
    body = {"__new__": _object, "asked": name}
    if last[:1].isupper() and package not in (*sys.stdlib_module_names, *_OF_THIS_PROCESS):
        return type(last, (), body)
    return _Uncalled("_Uncalled", (), body)


def _stand_in(name: str) -> Any:
    """Return the replacement of a global that a file asks for."""
    if name in _KNOWN:
        return _KNOWN[name]
    package, last = name.split(".")[0], name.split(".")[-1]
    if last == "_ByolExperimentState":
        return ByolState
    if last in ("FlatMapping", "FlatMap", "frozendict") and package == "haiku":
        return _mapping
    if package in _PACKAGES:
        return collections.OrderedDict if last in ("AttributeDict", "ConfigDict") else Inert
    return _other(name)


class _Unpickler(pickle._Unpickler):
    """Unpickler that finds only the replacements of `_stand_in`.

    It is the one written in Python, because the one written in C allocates as many objects as a file claims to have.
    """

    tuples = 0

    def find_class(self, module: str, name: str) -> Any:
        return _encode if (module, name) == ("_codecs", "encode") else _stand_in(f"{module}.{name}")


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
        InputError: the file is missing, a folder without a run, empty, damaged, of another format, or asks for a
            global that could run code. The error names the global, which is not called.
    """
    known = other_files.by_name(path := run_folders.checkpoint_in(path))
    try:
        if path.is_dir():
            raise InputError(f"checkpoint {path}: {other_files.folder(path)}")
        if not path.is_file():
            raise run_folders.missing(path)
        digest = files.verify(path)
        with path.open("rb") as stream:
            head = stream.read(512)
            size = stream.seek(0, io.SEEK_END)
        kind = _sniff(head, size, path)
        data, metadata = _read_content(path, kind)
    except InputError as error:
        if not known or path.is_dir() or isinstance(error, DamagedError):
            raise
        raise InputError(f"checkpoint {path}: {known}") from error
    except OSError as error:
        raise from_os_error(error, f"cannot read checkpoint {path}") from error
    return Content(path=path, sha256=digest, kind=kind, data=data, metadata=metadata)


def _read_content(path: Path, kind: str) -> tuple[Any, dict[str, str]]:
    """Return the value in a file of a known kind, and the header of a safetensors file."""
    readers: dict[str, Callable[[Path], tuple[Any, dict[str, str]]]] = {
        "PyTorch": _read_torch,
        "safetensors": _read_safetensors,
        "pickle": _read_pickle,
        "NumPy": _read_arrays,
    }
    try:
        data, metadata = readers[kind](path)
        return dictionaries(current_names(data)), metadata
    except (InputError, OSError):
        raise
    except _Refused as refused:
        raise InputError(
            f"checkpoint {path}: not loaded: it asks for {refused}, which could run code; no code was run; save only "
            "the weights (state_dict() of the model) and convert that file"
        ) from refused
    except Exception as error:  # readers raise many kinds of exceptions for a damaged file
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise InputError(
            f"checkpoint {path}: not a readable {kind} file: truncated or damaged ({reason}); get it again"
        ) from error


def _sniff(head: bytes, size: int, path: Path) -> str:
    """Return the kind of a file of `size` bytes that begins with `head`."""
    if not head:
        raise InputError(f"checkpoint {path}: empty file; get it again")
    if reason := other_files.by_content(head):
        raise InputError(f"checkpoint {path}: {reason}")
    if head.startswith(b"PK\x03\x04") and (parts := _parts(path)):
        if reason := other_files.archive(parts):
            raise InputError(f"checkpoint {path}: {reason}")
        if all(part.endswith(".npy") for part in parts):
            return "NumPy"
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


def _parts(path: Path) -> list[str]:
    """Return the names of the parts of a zip archive; none if it is damaged."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            return archive.namelist()
    except Exception:  # the reader raises many kinds of exceptions for damaged bytes, which are reported later
        return []


def _read_torch(path: Path) -> tuple[Any, dict[str, str]]:
    # An open file has no ending, by which torch would choose the format.
    with path.open("rb") as stream:
        inputs.check_torch_file(stream)
        try:
            stand_ins = {name: _stand_in(name) for name in _globals(stream)}
            stand_ins |= numpy_pickles.STAND_INS  # classes of arrays are built although the list does not have them
            stream.seek(0)
            with torch.serialization.safe_globals(list(zip(stand_ins.values(), stand_ins, strict=True))):
                return torch.load(stream, map_location="cpu", weights_only=True), {}
        except pickle.UnpicklingError as error:
            for text, reason in _UNREAD.items():
                if text in str(error):
                    raise InputError(f"checkpoint {path}: {reason}") from error
            refused = re.search(r"(?:GLOBAL|function) (?:<[\w-]+ \w+ )?([\w.]+)", str(error))
            if refused:
                raise _Refused(refused[1]) from error
            raise ValueError(str(error).split("WeightsUnpickler error:")[-1]) from error


def _globals(stream: BinaryIO) -> list[str]:
    """Return the names of the classes and functions that a PyTorch file asks for and PyTorch itself does not know.

    Raises:
        ValueError: there are too many.
    """
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
    except ValueError:  # PyTorch does not list those of a file before the zip format, which has five pickles
        stream.seek(0)
        codes = [code for _ in range(5) for code in pickletools.genops(stream)]
        asked = sorted({*_KNOWN, *(str(name).replace(" ", ".") for code, name, _ in codes if code.name == "GLOBAL")})
    if len(set(asked) - _KNOWN.keys()) > _MOST_NAMES:
        raise ValueError(f"{len(asked)} classes and functions; expected at most {_MOST_NAMES}")
    return asked


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_pickle(path: Path) -> tuple[Any, dict[str, str]]:
    with path.open("rb") as stream:
        return _Unpickler(stream, encoding="latin1").load(), {}


def _read_arrays(path: Path) -> tuple[Any, dict[str, str]]:
    """Read arrays of NumPy, such as those of haiku: {"module/parameter": array}, without or with online_params/."""
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        parts = archive.infolist()
    if (total := sum(part.file_size for part in parts)) > _LARGEST_ARRAYS:
        raise ValueError(f"arrays of {total} bytes; expected at most {_LARGEST_ARRAYS}")
    arrays = read_arrays(path, [part.filename.removesuffix(".npy") for part in parts])
    found: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        match = _OF_HAIKU.match(name)
        if match is not None:
            found.setdefault(match["copy"] or "online", {})[name[match.end() :].replace(":", "/")] = array
    return found or arrays, {}


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
