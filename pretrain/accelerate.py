"""Two ways to speed up a step on a GPU: compiled networks and a recorded step. Results differ only by rounding.

Neither is a part of the identity of a run. If one of them cannot be used, steps are computed without it.
"""

import sys
import typing
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pretrain.methods import Method

if typing.TYPE_CHECKING:
    from pretrain.train import Training

Work = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""The computation of a step on the device: views and labels -> numbers to report; it changes the weights."""

Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Records the operations of a function without doing them; returns its result, and a function that does them."""

WARM_UP = 3
"""Number of steps before the recorded one. In these, kernels are selected and compiled, and get their memory."""


def apply(training: "Training") -> None:
    """Apply `compile` and `graph` of the recipe; print a line if one of them cannot be used here."""
    recipe = training.recipe
    if recipe.compile and _possible(training, "compile", _why_not_compiled(training)):
        compile_networks(training.method)
    if recipe.graph and _possible(training, "graph", _why_not_recorded(training)):
        training.recorded = Recorded(training.work, training.optimizer)


def _possible(training: "Training", setting: str, reason: str | None) -> bool:
    if reason and training.process.is_main:
        print(f"{setting}=true: not used here, {reason}", file=sys.stderr)
    return reason is None


def _why_not_compiled(training: "Training") -> str | None:
    if training.process.world_size > 1:
        return "the batch norms of several processes exchange their statistics, which is not compiled"
    try:
        torch.compile(torch.sin)(torch.ones(8, device=training.process.device))
    except Exception as error:  # each compiler raises its own errors
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        return f"PyTorch cannot compile on this machine ({reason[:200]})"
    return None


def _why_not_recorded(training: "Training") -> str | None:
    if training.process.device.type != "cuda":
        return "only a GPU replays a recorded step"
    if training.process.world_size > 1:
        return "several processes exchange messages within a step, which is not recorded"
    if not training.method.capturable:
        return f"a step of {training.display} depends on numbers that the host draws or counts"
    return None


def compile_networks(method: Method) -> None:
    """Compile backbone, projector and momentum encoder in place; names of parameters do not change.

    The first step with a view of a new size compiles the networks for this size. Losses are not compiled, because they
    are a small part of a step, and that of INTL is written operation by operation.
    """
    average = method.momentum_encoder
    for network in (method.backbone, method.projector, *(average.children() if average is not None else ())):
        # Only `forward`: compiling the module would also compile its hooks.
        network.forward = torch.compile(network.forward, dynamic=False)


def cuda_graph(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record on a GPU; see `Record`."""
    graph = torch.cuda.CUDAGraph()
    # In the meantime, other threads make the next batch and write checkpoints.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        numbers = work()
    return numbers, graph.replay


class Recorded:
    """The work of a step, recorded after `WARM_UP` ordinary steps: one launch instead of several hundred.

    A replay runs the same kernels on the same addresses. So views and labels are copied to the addresses of those of
    the recorded step, and every other value that changes from step to step must be in a tensor.
    """

    def __init__(self, work: Work, optimizer: torch.optim.Optimizer, record: Record = cuda_graph) -> None:
        self.work, self.optimizer, self.record = work, optimizer, record
        self.steps = 0
        self.inputs: list[Tensor] = []
        self.numbers: Tensor | None = None
        self.replay: Callable[[], None] | None = None

    def __call__(self, views: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Do the same as `work`; the next call overwrites the result."""
        self.steps += 1
        if self.steps <= WARM_UP:
            return self.work(views, labels)
        given = [*views, *([] if labels is None else [labels])]
        if self.replay is None:
            self.inputs = [tensor.clone() for tensor in given]
            own_labels = None if labels is None else self.inputs[-1]
            self.optimizer.zero_grad(set_to_none=True)  # the graph reuses the memory of the last gradients
            for group in self.optimizer.param_groups:
                if "capturable" in group:  # Adam requires it
                    group["capturable"] = True
            self.numbers, self.replay = self.record(lambda: self.work(self.inputs[: len(views)], own_labels))
        else:
            torch._foreach_copy_(self.inputs, given)
        self.replay()
        assert self.numbers is not None
        return self.numbers
