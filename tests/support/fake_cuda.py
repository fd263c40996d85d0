"""A GPU that is not there: counts what a step would ask of one, on any machine.

Within `FakeCuda.installed()` a tensor on "cuda" is a shell that says so, and its numbers are an ordinary tensor of the
CPU. Every operation is computed, so loops and branches that depend on numbers go as on a GPU. PyTorch itself (autograd,
autocast, optimizers, gradient scaler) takes the shells for tensors of a GPU. Counted are:

- operations: calls of an operator that computes on the device. Views and allocations are none. An operation on lists of
  tensors is as many as a GPU's multi-tensor kernels have launches, and one for each tensor where they cannot be used.
- waits: what makes the host wait until the device has done all that it was given before.

Both are noted with their place in the project. Tensors of the CPU and of the GPU in one operation are an error, as on a
GPU. What a kernel does inside is not seen: its waits are known for the operators in `_WAITS` alone. Operators that only
a GPU has are an error.

PyTorch asks the guard of a tensor's device for a stream as soon as a tensor needs gradients, and CUDA's guard needs a
driver. So for PyTorch's C++ part the shells are on XLA, another device, whose tensors autocast treats as CUDA's, and
which gets the guard of the CPU, which does nothing. Python sees CUDA.

The patches are undone at the end, but PyTorch then believes its CUDA part to be initialized: use a process of its own.
"""

import contextlib
import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from unittest import mock

import torch
import torch.optim.optimizer as optimizers
from places import ROOT
from torch import Tensor
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_PARTS = tuple(f"{ROOT / part}/" for part in ("intl_bench", "pretrain", "transfer", "tests"))
# Not places: this file, and what is called for every copy.
_PASSED_OVER = {__file__, f"{ROOT}/intl_bench/core/copies.py"}

# Operators for whose result the host has to know numbers that are on the device: values, or how many there are.
_WAITS = {
    *("_local_scalar_dense", "allclose", "bincount", "equal", "masked_select", "nms", "nonzero"),
    *("_unique", "_unique2", "unique_consecutive", "unique_dim"),
    # Of torch.linalg these read an error code: `cholesky`, `inv` and `solve` call the first one.
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd"),
}
_NO_WORK = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"),
    *("resize_", "set_", "_local_scalar_dense"),
}
_FILLING = {"masked_fill", "masked_fill_", "index_fill", "index_fill_"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Tensors that a multi-tensor kernel takes, by the number of lists (PyTorch's ATen/native/cuda/MultiTensorApply.cuh).
_TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36}


class Unsupported(Exception):
    """This PyTorch cannot be made to believe in a GPU; the text says why."""


class Shell(Tensor):
    """A tensor on the GPU that is not there; `numbers` are its values."""

    numbers: Tensor
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Any:
        # A view of an ordinary tensor is an ordinary one, in inference mode too.
        with torch.inference_mode(numbers.is_inference()):
            shell = Tensor._make_wrapper_subclass(
                cls,
                numbers.shape,
                strides=numbers.stride(),
                storage_offset=numbers.storage_offset(),
                dtype=numbers.dtype,
                device=torch.device("xla", 0),
                _extra_dispatch_keys=torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA),
            )
        shell.numbers = numbers
        return shell

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{operator} on the fake GPU in a thread that FakeCuda does not see")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, *_: Any, **__: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA)

    def __setitem__(self, index: Any, value: Any) -> None:
        # PyTorch makes a tensor of a number: for CUDA on the CPU, for XLA on the device.
        super().__setitem__(index, value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.numbers!r} on cuda:0"


class Counts:
    """What was counted, by place ("pretrain/optim.py:76"); a wait's place is followed by what it is."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def clear(self) -> None:
        self.operations.clear()
        self.waits.clear()

    def copy(self) -> "Counts":
        other = Counts()
        other.operations.update(self.operations)
        other.waits.update(self.waits)
        return other

    def subtract(self, other: "Counts") -> None:
        self.operations -= other.operations
        self.waits -= other.waits

    def wait(self, kind: str) -> None:
        self.waits[f"{_place()} {kind}"] += 1


class FakeCuda(TorchDispatchMode):
    """Everything within `FakeCuda.installed()` that asks for a GPU gets the one that is not there.

    Attributes:
        counts: of all since it was last cleared.
        pinned: page-locked memory by its address; the tensors are kept, so that no other gets the address.
    """

    def __init__(self, counts: Counts, pinned: dict[int, Tensor]) -> None:
        super().__init__()
        self.counts, self.pinned = counts, pinned

    @classmethod
    @contextlib.contextmanager
    def installed(cls) -> Iterator["FakeCuda"]:
        """Installs one for a block.

        Raises:
            Unsupported: this version of PyTorch is not known to allow it.
        """
        if torch.version.cuda is None:
            raise Unsupported("PyTorch is built without CUDA")
        fake = cls(Counts(), {})
        with contextlib.ExitStack() as stack:
            stack.enter_context(_guard_of_xla())
            for patch in _patches(fake):
                stack.enter_context(patch)
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            before = torch._C._only_lift_cpu_tensors()
            torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device="cuda") is made here, then copied
            stack.callback(torch._C._set_only_lift_cpu_tensors, before)
            stack.enter_context(fake)
            yield fake

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled():  # operators that are made of others come here as they are
            with self:
                result = operator.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = operator._schema.name.split("::")[1]
        shells = {id(leaf.numbers): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Shell)}
        wanted = kwargs.get("device")
        on_device = bool(shells) if wanted is None else torch.device(wanted).type in ("cuda", "xla")
        if not shells and not on_device:
            return self._on_host(operator, name, args, kwargs)
        if wanted is not None:
            kwargs["device"] = _CPU
        if name in ("_to_copy", "copy_"):
            return self._copied(operator, name, args, kwargs, to_device=on_device)
        if not on_device:  # made on the CPU in the likeness of a tensor of the GPU
            return self._on_host(operator, name, _numbers(args), _numbers(kwargs))
        if name == "record_stream":
            return None
        self._check(operator, name, args, kwargs, wanted)
        operations = _operations(operator, name, args)
        if operations:
            self.counts.operations[_place()] += operations
        results = operator(*_numbers(args), **_numbers(kwargs))
        return tree_map(lambda value: self._wrapped(value, shells), results)

    def _wrapped(self, value: Any, shells: dict[int, Shell]) -> Any:
        """A result on the device: the argument that was written to, or a new tensor."""
        if not isinstance(value, Tensor):
            return value
        shell = shells.get(id(value))
        if shell is None:
            return Shell(value)
        assert shell.shape == value.shape, "an operation that changes the size of its argument"
        return shell

    def _on_host(self, operator: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation on the CPU alone; page-locked memory is ordinary memory that is known by its address."""
        if name == "is_pinned":
            return self._is_pinned(args[0])
        pin = kwargs.pop("pin_memory", False)
        result = args[0].clone() if name == "_pin_memory" else operator(*args, **kwargs)
        if pin or name == "_pin_memory":
            self.pinned[result.untyped_storage().data_ptr()] = result
        return result

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not tensor.numel() or tensor.untyped_storage().data_ptr() in self.pinned

    def _copied(self, operator: Any, name: str, args: Any, kwargs: dict[str, Any], *, to_device: bool) -> Any:
        """`_to_copy` and `copy_`, within the device or between it and the CPU."""
        if name == "copy_":
            target, source, *rest = args
            to_device, background = isinstance(target, Shell), kwargs.get("non_blocking", bool(rest and rest[0]))
        else:
            target, source, background = None, args[0], kwargs.get("non_blocking", False)
        from_device = isinstance(source, Shell)
        if to_device and not from_device:
            if not (background and self._is_pinned(source)):
                self.counts.wait("copy to the device" + " of memory that is not page-locked" * background)
        elif from_device and not to_device:
            # Without a target PyTorch makes one in page-locked memory.
            if not (background and (target is None or self._is_pinned(target))):
                self.counts.wait("copy to the host")
        elif target is None and kwargs.get("memory_format") is None and kwargs.get("dtype") in (None, source.dtype):
            return Shell(source.numbers)  # from what C++ takes for XLA to "cuda": nothing is done
        self.counts.operations[_place()] += 1
        result = operator(*_numbers(args), **_numbers(kwargs))
        if target is not None:
            return target
        return Shell(result) if to_device else result

    def _check(self, operator: Any, name: str, args: Any, kwargs: dict[str, Any], wanted: Any) -> None:
        """Counts the operation's waits.

        Raises:
            RuntimeError: tensors of the CPU meet those of the GPU.
        """
        if name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.counts.wait(name)
        among = tree_leaves((args, kwargs))
        if name in _FILLING and isinstance(args[-1], Shell):
            self.counts.wait("fill with a number of the device")
        if name in _INDEXING:
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if any(not isinstance(index, Shell) and index.ndim for index in indices):
                self.counts.wait("index on the CPU")
            masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
            # One number of the CPU is filled in, for which nobody has to know where.
            filled = name != "index" and not isinstance(args[2], Shell) and args[2].numel() == 1
            if masks and not filled:
                self.counts.wait("boolean index")
            among = [args[0], *args[2:]]
        # Factories such as `zeros_like(tensor, device=...)` only look at their argument.
        on_host = [x for x in among if isinstance(x, Tensor) and x.ndim and not isinstance(x, Shell)]
        if on_host and wanted is None:
            shape = tuple(on_host[0].shape)
            raise RuntimeError(f"{operator}: a tensor of the CPU, {shape}, meets those of the GPU at {_place()}")


def _numbers(values: Any) -> Any:
    return tree_map(lambda value: value.numbers if isinstance(value, Shell) else value, values)


def _operations(operator: Any, name: str, args: Any) -> int:
    """Operations that a call counts as."""
    if operator.is_view or name in _NO_WORK:
        return 0
    lists = [part for part in args if isinstance(part, (list, tuple)) and part and isinstance(part[0], Tensor)]
    if not name.startswith(("_foreach_", "_fused_", "_amp_foreach_")) or not lists:
        return 1
    if name.startswith("_foreach_"):
        for some in zip(*lists, strict=True):
            if len({(tensor.dtype, tensor.shape, _strides(tensor)) for tensor in some}) > 1:
                return len(lists[0])
    return -(-len(lists[0]) // _TENSORS_A_LAUNCH.get(len(lists), 30))


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Those that decide where numbers are."""
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def _place() -> str:
    """Where in the project the running operation was asked for."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PARTS) and path not in _PASSED_OVER:
            return f"{Path(path).relative_to(ROOT).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@contextlib.contextmanager
def _guard_of_xla() -> Iterator[None]:
    """XLA's device guard is the CPU's within the block."""
    if not hasattr(torch._C, "_set_only_lift_cpu_tensors"):
        raise Unsupported(f"PyTorch {torch.__version__} has no _set_only_lift_cpu_tensors")
    kinds = torch._C._autograd.DeviceType
    library = next((Path(torch.__file__).parent / "lib").glob("libc10.[sd]*"), None)
    symbol = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl's guards, pointers in the order of the devices
    try:
        guards = (ctypes.c_void_p * (kinds.XLA.value + 1)).in_dll(ctypes.CDLL(str(library)), symbol)
    except (OSError, ValueError) as error:
        raise Unsupported(f"PyTorch {torch.__version__} keeps its device guards elsewhere: {error}") from error
    before = guards[kinds.XLA.value]
    guards[kinds.XLA.value] = guards[kinds.CPU.value]
    try:
        yield
    finally:
        guards[kinds.XLA.value] = before


def _patches(fake: FakeCuda) -> Iterable[Any]:
    """What of PyTorch's Python part asks for a driver, or has to be seen."""

    class Event:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def record(self, stream: Any = None) -> None: ...

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            fake.counts.wait("event.synchronize")

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> "Generator":
            return super().__new__(cls, "cpu")  # type: ignore[call-arg]

    run = threading.Thread.run

    def run_faking(thread: threading.Thread) -> None:
        with FakeCuda(fake.counts, fake.pinned):
            run(thread)

    def synchronize(device: Any = None) -> None:
        fake.counts.wait("synchronize")

    grouped = torch._C._group_tensors_by_device_and_dtype

    def grouped_on_cuda(*args: Any) -> Any:
        return {(CUDA if kind[0].type == "xla" else kind[0], *kind[1:]): of for kind, of in grouped(*args).items()}

    changes: dict[ModuleType | type, dict[str, Any]] = {
        torch.cuda: {
            "is_available": _always(True),
            "is_bf16_supported": _always(True),
            "is_current_stream_capturing": _always(False),
            "device_count": _always(1),
            "set_device": _always(None),
            "_lazy_init": _always(None),
            "synchronize": synchronize,
            "Event": Event,
        },
        torch.accelerator: {
            "is_available": _always(True),
            "current_accelerator": _always(torch.device("cuda")),
            "current_stream": _always(mock.Mock(is_capturing=_always(False))),
        },
        torch: {"Generator": Generator},
        torch._C: {"_group_tensors_by_device_and_dtype": grouped_on_cuda},
        threading.Thread: {"run": run_faking},
        # Optimizers use their kernels for lists of tensors where all are of one of these types.
        optimizers: {"_foreach_supported_types": [Tensor, torch.nn.Parameter, Shell]},
        _foreach_utils: {"_foreach_supported_types": [Tensor, Shell]},
    }
    return [mock.patch.multiple(owner, **new) for owner, new in changes.items()]


def _always(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value
