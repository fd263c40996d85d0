"""A recorded step on a CPU: each replay does the same operations on the same memory, as a GPU does.

A CUDA graph records kernels and their addresses while a step runs, and computes nothing. A replay runs these kernels.
Numbers that Python computed are constants of the graph. Here a dispatch mode records the operations and their tensors.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.train import Training


class _Notes(TorchDispatchMode):
    """A mode that records the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "a recorded step waits for its device"
        result = func(*args, **kwargs)
        aliased = any(value.alias_info is not None for value in func._schema.returns)  # a view, or changed in place
        made = [] if aliased else [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if made or func._schema.is_mutable:
            self.operations.append((func, args, kwargs, made))
        return result

    def replay(self) -> None:
        for func, args, kwargs, made in self.operations:
            again = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for old, new in zip(made, again if made else [], strict=True):
                old.copy_(new)


def recorder(training: Training) -> Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]:
    """Return an `accelerate.Record` for a step of `training`."""

    def tensors() -> Iterable[Tensor]:
        yield from training.method.state_dict().values()
        yield from (value for state in training.optimizer.state.values() for value in state.values())

    def record(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        before = [tensor.clone() for tensor in tensors()]
        with _Notes() as notes:
            numbers = work()
        with torch.no_grad():
            for tensor, value in zip(tensors(), before, strict=True):
                tensor.copy_(value)

        def replay() -> None:
            with torch.no_grad():
                notes.replay()

        return numbers, replay

    return record
