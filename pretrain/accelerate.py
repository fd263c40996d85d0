"""Two ways to a faster step on a GPU, which change no result beyond rounding: compiled networks, and a recorded step.

Neither belongs to what a run is. Where one cannot be used the step is computed without it.
"""

import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

if typing.TYPE_CHECKING:
    from pretrain.train import Training

Work = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""What a step asks of the device: views and labels -> numbers to report; the weights are changed."""

Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Records what a function does without doing it: its result, and a function that does it all again."""

WARM_UP = 3
"""Steps before the recorded one, in which kernels are chosen, compiled and given their working memory."""


def apply(training: "Training") -> None:
    """Does what the recipe's `compile` and `graph` ask for as far as it can be done here; one line says what cannot."""
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
    except Exception as error:  # whatever it is that its compilers miss
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        return f"PyTorch cannot compile on this machine ({reason[:200]})"
    return None


def _why_not_recorded(training: "Training") -> str | None:
    if training.process.device.type != "cuda":
        return "only a GPU replays a recorded step"
    if training.process.world_size > 1:
        return "several processes exchange messages within a step, which is not recorded"
    if not getattr(training.method, "capturable", False):
        return f"a step of {training.display} depends on numbers that the host draws or counts"
    return None


def compile_networks(method: Any) -> None:
    """Compiles backbone, projector and their momentum target, in place; parameters and their names stay.

    Every size of view is compiled for itself at its first step. Losses stay as they are: they are a small part of a
    step, and INTL's is written operation by operation.
    """
    target = getattr(method, "target", None)
    for network in (method.backbone, method.projector, *(target.children() if target is not None else ())):
        # Not the module: what watches its output would be compiled, too.
        network.forward = torch.compile(network.forward, dynamic=False)


def cuda_graph(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """`Record` for a GPU."""
    graph = torch.cuda.CUDAGraph()
    # Other threads go on meanwhile: they draw the next batch and write checkpoints.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        numbers = work()
    return numbers, graph.replay


class Recorded:
    """The work of a step, recorded after `WARM_UP` ordinary ones: one launch instead of several hundred.

    A replay runs the same kernels on the same addresses. So views and labels are copied to where those of the recorded
    step were, and whatever else changes from step to step has to live in a tensor.
    """

    def __init__(self, work: Work, optimizer: torch.optim.Optimizer, record: Record = cuda_graph) -> None:
        self.work, self.optimizer, self.record = work, optimizer, record
        self.steps = 0
        self.inputs: list[Tensor] = []
        self.numbers: Tensor | None = None
        self.replay: Callable[[], None] | None = None

    def __call__(self, views: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """As `work`; the result is overwritten by the next call."""
        self.steps += 1
        if self.steps <= WARM_UP:
            return self.work(views, labels)
        given = [*views, *([] if labels is None else [labels])]
        if self.replay is None:
            self.inputs = [tensor.clone() for tensor in given]
            own_labels = None if labels is None else self.inputs[-1]
            self.optimizer.zero_grad(set_to_none=True)  # so that the graph gets the memory of the last gradients
            for group in self.optimizer.param_groups:
                if "capturable" in group:  # Adam asks for it
                    group["capturable"] = True
            self.numbers, self.replay = self.record(lambda: self.work(self.inputs[: len(views)], own_labels))
        else:
            torch._foreach_copy_(self.inputs, given)
        self.replay()
        assert self.numbers is not None
        return self.numbers
