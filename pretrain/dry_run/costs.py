"""Cost of a forward and backward pass, counted operation by operation on tensors without data.

Under PyTorch's `FakeTensorMode` every operation returns the shape, type and layout of its result and computes nothing.
A pass of any size is counted in a second or two. The count covers what PyTorch does: the half-precision copies of
autocast, only the gradients that are needed, and the memory in use at each time.
"""

import collections
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
# An operation reads its operands and writes its results once, with these exceptions (factors of the memory traffic). A
# batch norm reads its input for the statistics and again for the output, and its gradient does likewise. The two
# gradients of a convolution both read the gradient of the output.
_PASSES: dict[Any, float] = {
    _aten.native_batch_norm: 3 / 2,
    _aten.native_batch_norm_backward: 5 / 3,
    _aten.convolution_backward: 4 / 3,
}
_NO_WORK = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}

# Shares of the rates of a data sheet that training is assumed to reach: arithmetic of products and convolutions, and
# memory traffic.
PRODUCT_SHARE = 0.6
MEMORY_SHARE = 0.7


class Operation(NamedTuple):
    """One operation on a device.

    Attributes:
        flops: floating-point operations of products and convolutions; a multiply-add counts as two.
        unit: arithmetic that they use: "half" (bf16 or fp16 operands), "conv32" (float32 convolutions) or "matmul32"
            (other float32 operations).
        bytes: bytes that the operation reads and writes.
    """

    flops: int
    unit: str
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a forward and backward pass.

    Attributes:
        operations: number of executions of each operation.
        saved: bytes that the forward pass leaves for the backward pass, without memory allocated earlier.
        peak: maximum of the bytes in use during both passes, without memory allocated earlier.
    """

    operations: collections.Counter[Operation]
    saved: int
    peak: int

    @property
    def flops(self) -> int:
        """FLOPs of all operations."""
        return sum(operation.flops * n for operation, n in self.operations.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """Rates of a processor, and the shares of them that training is assumed to reach.

    Attributes:
        name: name of the processor.
        flops: FLOP/s of products and convolutions, for each `Operation.unit`.
        bandwidth: bytes per second that the memory reads and writes.
        memory: bytes.
        link: bytes per second to another device, in one direction.
        launch: seconds to start one operation from Python.
        product_share, memory_share: shares reached of `flops`, and of `bandwidth` and `link`.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float
    memory: float
    link: float = float("inf")
    launch: float = 10e-6
    product_share: float = 1.0
    memory_share: float = 1.0


def _gpu(name: str, *, half: float, tf32: float, fp32: float, bandwidth: float, gib: float, link: float) -> Device:
    """Build a GPU from its data sheet, in TFLOP/s and TB/s.

    By default, PyTorch uses TF32 for float32 convolutions but not for float32 products.
    """
    rates = {"half": half, "conv32": tf32, "matmul32": fp32}
    return Device(
        name=name,
        flops={unit: rate * 1e12 for unit, rate in rates.items()},
        bandwidth=bandwidth * 1e12,
        memory=gib * 2**30,
        link=link * 1e12,
        product_share=PRODUCT_SHARE,
        memory_share=MEMORY_SHARE,
    )


# Dense rates and bandwidths. Sources: NVIDIA's data sheets of the A100 80GB, H100 and H200 (SXM), and the white paper
# of the Ada architecture for the RTX 4090 (half precision with float32 sums). The link is one direction of NVLink, or
# of PCIe 4.0 x16 for the RTX 4090.
GPUS = (
    _gpu("A100 80GB", half=312, tf32=156, fp32=19.5, bandwidth=2.039, gib=80, link=0.3),
    _gpu("H100 SXM", half=989, tf32=494, fp32=67, bandwidth=3.35, gib=80, link=0.45),
    _gpu("H200", half=989, tf32=494, fp32=67, bandwidth=4.8, gib=140, link=0.45),
    _gpu("RTX 4090", half=165.2, tf32=82.6, fp32=82.6, bandwidth=1.008, gib=24, link=0.032),
)


def step_seconds(cost: Cost, device: Device, *, trained: int = 0, target: int = 0, processes: int = 1) -> float:
    """Estimate the seconds of a training step with one device per process.

    Each operation takes the time of its arithmetic or of its memory traffic, whichever is longer. Further traffic: the
    norm of the gradients reads the gradients; the optimizer reads weights, gradients and momentum and writes two of
    them; a moving average reads two tensors and writes one. The total is at least the time to start the operations one
    by one. The average of the gradients over a ring of processes comes on top; the backward pass hides nothing of it.
    Loading, augmentation and logging are left out.

    Args:
        cost: cost of one process.
        trained: bytes of the trained parameters.
        target: bytes of the parameters of a momentum target.
    """
    bandwidth = device.memory_share * device.bandwidth
    computing = sum(
        n * max(operation.flops / (device.product_share * device.flops[operation.unit]), operation.bytes / bandwidth)
        for operation, n in cost.operations.items()
    )
    computing += (6 * trained + 3 * target) / bandwidth
    starting = device.launch * sum(cost.operations.values())
    averaging = 2 * (processes - 1) / processes * trained / (device.memory_share * device.link)
    return max(computing, starting) + averaging


def roofline_seconds(cost: Cost, device: Device, *, trained: int = 0, target: int = 0) -> float:
    """Return the minimum seconds of the same operations, one by one, at the full rates and without launch times.

    Only fused operations can be faster, because they move less memory (Williams, Waterman & Patterson, "Roofline",
    2009).

    Args:
        cost, trained, target: as for `step_seconds`.
    """
    ideal = dataclasses.replace(device, product_share=1.0, memory_share=1.0, launch=0.0)
    return step_seconds(cost, ideal, trained=trained, target=target)


class _Tally(TorchDispatchMode):
    """Count of the operations within the block, and of the memory of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: collections.Counter[Operation] = collections.Counter()
        self.used = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operands, results = _tensors((args, kwargs)), _tensors(result)
        before = {tensor.untyped_storage()._cdata for tensor in operands}
        for tensor in results:
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage not in self._known:
                self._known.add(storage)
                self._use(storage.nbytes())
                weakref.finalize(storage, self._use, -storage.nbytes()).atexit = False
        kind: Any = getattr(_aten, func.overloadpacket.__name__.removesuffix("_"), None)  # out-of-place variant
        if results and kind not in _NO_WORK and not _is_view(func):
            flops = int(flop_registry[kind](*args, **(kwargs or {}), out_val=result)) if kind in flop_registry else 0
            moved = sum(tensor.numel() * tensor.element_size() for tensor in (*operands, *results))
            self.operations[Operation(flops, _unit(kind, operands), int(moved * _PASSES.get(kind, 1)))] += 1
        return result

    def _use(self, n: int) -> None:
        self.used += n
        self.peak = max(self.peak, self.used)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _unit(kind: Any, operands: list[torch.Tensor]) -> str:
    if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in operands):
        return "half"
    return "conv32" if "convolution" in str(kind) else "matmul32"


def count(forward: Callable[[], torch.Tensor]) -> Cost:
    """Count the cost of `forward`, which returns a scalar, and of its backward pass.

    Call it within `without_data`. It also works with real tensors, but then takes the time of the computation.
    """
    with _Tally() as tally:
        loss = forward()
        saved = tally.used
        loss.backward()
    return Cost(operations=tally.operations, saved=saved, peak=tally.peak)


def count_forward(forward: Callable[[], object]) -> Cost:
    """Count the cost of `forward` alone, without gradients. Call it within `without_data`."""
    with torch.no_grad(), _Tally() as tally:
        forward()
    return Cost(operations=tally.operations, saved=0, peak=tally.peak)


@contextlib.contextmanager
def without_data() -> Iterator[None]:
    """Create new tensors with shape, type and layout only within the block, without memory and values."""
    with FakeTensorMode():
        yield


def strip(module: nn.Module) -> None:
    """Replace the parameters and buffers of `module`, on any device, by CPU tensors without data.

    Call it within `without_data`. Gradients are lost.
    """
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(_twin(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, _twin(buffer))


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
