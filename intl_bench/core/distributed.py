"""One code path from one process to many nodes. `torchrun` sets the environment; without it there is one process."""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous as environment_rendezvous
from torch.nn.parallel import DistributedDataParallel

from intl_bench.core import peers, rendezvous
from intl_bench.core.copies import Fetched, fetch, send
from intl_bench.core.errors import BenchError, DivergedError, InputError, ResourceError
from intl_bench.core.memory import keep_freed_memory
from intl_bench.core.sharing import share_of
from intl_bench.core.signals import StopRequest

T = TypeVar("T")

_GROUPS = itertools.count()
# One process may score while the others wait for it.
_TIMEOUT = timedelta(hours=1)
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# The variables by which torchrun tells its processes that it keeps the store at MASTER_ADDR:MASTER_PORT.
LAUNCHER = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """The rank of this process among `world_size` processes, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: int) -> range:
        """Return the numbers of the items, such as a split's images, that this process handles."""
        return share_of(items, self.rank, self.world_size)

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers of the first process, such as running statistics, before a test."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap `module` so that gradients are averaged over all processes. With one process return `module` itself."""
        if self.world_size == 1:
            return module
        parallel = DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            # Gradients are stored where they are averaged, instead of being copied there and back.
            gradient_as_bucket_view=True,
        )
        # Plain batch norms have statistics of their own part of the batch, so all processes take those of the first.
        # Synchronized norms are equal anyway. (The argument for this has another name in each version of PyTorch.)
        parallel.broadcast_buffers = any(type(child) in _PLAIN_NORMS for child in module.modules())
        return parallel


def require(device: str) -> None:
    """Refuse a device that is not here.

    Raises:
        InputError: an unknown name; expected "auto", "cpu" or "cuda".
        ResourceError: "cuda" where PyTorch sees no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={device}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device=cuda: PyTorch sees no GPU here; use device=cpu, or check the driver and the build")


@contextlib.contextmanager
def start(device: str = "auto", *, deterministic: bool = False, fixed_shapes: bool = False) -> Iterator[Process]:
    """Join the process group that `torchrun` describes (NCCL on GPUs, gloo on CPUs), and leave it at the end.

    Args:
        device: "auto" (GPU if there is one), "cpu" or "cuda".
        deterministic: a GPU computes the same bits each time (see docs/gpu.md). A CPU always does.
        fixed_shapes: the work repeats the same shapes. A GPU then times its convolution kernels once for each shape.

    Raises:
        InputError: an unknown device name.
        ResourceError: "cuda" where PyTorch sees no GPU, or fewer GPUs than processes.
    """
    require(device)
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if use_cuda:
        # PyTorch reads it with the first tensor. Images of many sizes leave gaps that fit no other block.
        if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the variable
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        if local_rank >= torch.cuda.device_count():
            raise ResourceError(
                f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} GPUs are visible; "
                "start fewer processes with torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    else:
        keep_freed_memory()
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    with _kernels(deterministic, fixed_shapes) if use_cuda else contextlib.nullcontext():
        if world_size == 1:
            yield Process(rank=0, world_size=1, device=where)
            return
        group = f"group {next(_GROUPS)}"
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            # The store outlives a group. A second group, for another seed, must not find the addresses of the first.
            store=dist.PrefixStore(group, _store()),
            rank=rank,
            world_size=world_size,
            timeout=_TIMEOUT,
            device_id=where if use_cuda else None,
        )
        with peers.watching(f"signs of life in {group}", rank, world_size):
            yield Process(rank=rank, world_size=world_size, device=where)
        # A thread of gloo may still free the tensors of the last message, and needs Python's lock for that. The end of
        # the group of a DistributedDataParallel holds this lock while it waits for the thread (seen with PyTorch 2.11).
        time.sleep(0.0 if use_cuda else 0.1)
        dist.destroy_process_group()  # not after an error, because it would wait for the other processes


@contextlib.contextmanager
def _kernels(deterministic: bool, fixed_shapes: bool) -> Iterator[None]:
    """Set how a GPU chooses its kernels within the block."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    # PyTorch reads it at the first matrix product of a process, and without it refuses deterministic products later.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Nothing reads uninitialized memory, and filling it costs one more pass. (The type stubs lack this switch.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = fixed_shapes and not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@functools.cache
def _store() -> dist.Store:
    environment = os.environ
    ours = environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and environment["RANK"] == "0"
    if ours and environment["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
        return rendezvous.local_store(int(environment["MASTER_PORT"]))
    store: dist.Store = next(environment_rendezvous("env://"))[0]
    return store


def _failure_key() -> str:
    return f"intl-bench failure {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def first_to_fail(exit_code: int) -> bool:
    """Return whether this process is the first of a run to fail, and store its exit code.

    The first one prints its error. The others fail for the same reason or because of the first. Without a launcher that
    keeps a store, every process counts as the first.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        note = f"{os.environ['RANK']} {exit_code}"
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(where, timeout=10).close()  # without an answer a TCPStore prints much and tries long
        store = dist.TCPStore(*where, is_master=False, timeout=timedelta(seconds=10))
        return bool(store.compare_set(_failure_key(), "", note) == note.encode())
    # The store is gone, or the environment names none.
    except (OSError, RuntimeError, KeyError, ValueError, OverflowError):
        return True


def reported_exit_code(store: dist.Store) -> int | None:
    """Return the exit code of the first process that failed and printed its error, for the launcher."""
    return int(store.get(_failure_key()).split()[1]) if store.check([_failure_key()]) else None


def is_main_process() -> bool:
    """Return whether this process is the first. Works before `start`, too."""
    return int(os.environ.get("RANK", 0)) == 0


def world_size() -> int:
    """Return the number of processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Stack the tensors of all processes. Backward, each gets the sum over all processes of its part's gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        parts = x.new_empty((world_size(), *x.shape))
        dist.all_gather(list(parts), x)  # the call for a single output has another name in each version of PyTorch
        return parts

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return total(gradients[0])[dist.get_rank()]


def stack(x: torch.Tensor) -> torch.Tensor:
    """Stack `x` of every process, of one shape everywhere: (processes, ...) in rank order, with gradients.

    The gradient of a process's part is the sum over all processes of the gradients of their losses. If all processes
    compute the same loss and DistributedDataParallel averages, this is the gradient of that loss.
    """
    return x[None] if world_size() == 1 else cast(torch.Tensor, _Gather.apply(x.contiguous()))


class _Exchange(torch.autograd.Function):
    """(parts, samples, d) -> (parts, samples of all, d / processes): some columns of all samples."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.d, processes = x.shape[-1], world_size()
        padded = nn.functional.pad(x, (0, -ctx.d % processes))
        return _swap(padded.unflatten(2, (processes, -1)).movedim(2, 0)).movedim(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        swapped = _swap(gradients[0].unflatten(1, (world_size(), -1)).movedim(1, 0))
        return swapped.movedim(0, 2).flatten(2)[..., : ctx.d]


def _swap(parts: torch.Tensor) -> torch.Tensor:
    """Send the p-th part to process p. Return what all processes sent here, in rank order."""
    sent = parts.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received


def exchange(x: torch.Tensor) -> torch.Tensor:
    """Exchange samples for columns: `x` (parts, samples, d) of every process -> (parts, samples of all, columns).

    Process p receives the p-th of equal runs of columns. Zeros pad them if the number of processes does not divide d.
    Gradients return to where the values came from.
    """
    return x if world_size() == 1 else cast(torch.Tensor, _Exchange.apply(x))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        # Half precision would round at every addition.
        exact = torch.promote_types(x.dtype, torch.float32)
        summed = x.to(exact, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _Total.forward(ctx, gradients[0])


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum floating-point `x` over all processes; gradients as in `stack`."""
    return x if world_size() == 1 else cast(torch.Tensor, _Total.apply(x))


def gather(x: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Concatenate `x` of every process along `dim`, in rank order; gradients as in `stack`."""
    return torch.cat(tuple(stack(x)), dim=dim)


def largest(x: torch.Tensor) -> torch.Tensor:
    """Overwrite `x` with the elementwise maximum over all processes. The host of a GPU does not wait for it."""
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def sum_counts(x: torch.Tensor) -> torch.Tensor:
    """Overwrite integers `x` with their sum over all processes."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def any_process(flag: bool, device: torch.device) -> bool:
    """Return on every process whether `flag` is true on at least one."""
    if world_size() == 1:
        return flag
    return bool(largest(torch.tensor(float(flag), device=device)))


class StopVote:
    """The signal by which any process was asked to stop, found without waiting for the device.

    A single process knows it at once. Several processes learn in a step what any of them received before the last step.
    """

    def __init__(self, stop: StopRequest, device: torch.device) -> None:
        self.stop, self.device = stop, device
        self._before: Fetched | None = None

    def ask(self) -> int:
        """Return the signal, or 0. It is the same on all processes, which must call this equally often."""
        received = self.stop.received or 0
        if world_size() == 1:
            return received
        before = self._before
        self._before = fetch(largest(send(torch.tensor(float(received)), self.device)))
        return int(before.read()) if before is not None else 0


def stop_together(stop: StopRequest, where: str, number: int) -> NoReturn:
    """End the run on all processes because of signal `number`, after its state was saved.

    Every process waits for the others: the launcher ends all processes when one ends, and the first may still be
    writing.

    Args:
        where: the step and the file, for the message.

    Raises:
        Preempted: always.
    """
    barrier()
    raise stop.error(where, number)


def require_finite(values: Mapping[str, float], *, where: str, remedy: str, device: torch.device | None = None) -> None:
    """Refuse losses that are NaN or infinite.

    Args:
        where: the step or the epoch, for the message.
        device: of this process; the check then fails on all processes together. None checks this process alone, which
            costs no communication.

    Raises:
        DivergedError: a value is not finite.
    """
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if any_process(bool(bad), device) if device is not None else bad:
        raise DivergedError(
            f"diverged {where}: {', '.join(bad) or 'a loss of another process is not finite'}; {remedy}"
        )


def union(items: set[str]) -> set[str]:
    """Return the union of a small set over all processes."""
    if world_size() == 1:
        return items
    parts: list[set[str]] = [set()] * world_size()
    dist.all_gather_object(parts, items)
    return set().union(*parts)


def collect(items: list[Any]) -> list[Any]:
    """Return the items of all processes in rank order on the first process, and no items on the others."""
    if world_size() == 1:
        return items
    parts: list[Any] | None = [None] * world_size() if dist.get_rank() == 0 else None
    dist.gather_object(items, parts)
    return [item for part in parts or [] for item in part]


def from_main(compute: Callable[[], T]) -> T:
    """Call `compute` on the first process alone. Every process returns its result, or raises its `BenchError`."""
    if world_size() == 1:
        return compute()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = compute()
        except BenchError as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return cast(T, box[0])


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()
