"""Cost of a recipe before anything is computed or written: `intl-bench pretrain --dry-run`.

Parameters, FLOPs, memory and the size of the checkpoint are counted. The time of a step is estimated by a model
(`costs.step_seconds`): on GPUs with the rates of data sheets, on this machine with rates that are measured.
"""

import copy
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from intl_bench.core.datasets import DATASETS
from intl_bench.core.distributed import Process
from intl_bench.core.errors import BenchError, InputError
from intl_bench.core.sharing import require_even_batch
from pretrain import train, warm_start
from pretrain.dry_run import costs
from pretrain.dry_run.costs import Cost, Device
from pretrain.dry_run.machine import Machine, Preparation, time_views
from pretrain.images.data import DataConfig, ImageSource, open_source
from pretrain.methods import Method
from pretrain.methods.intl import INTLLoss
from pretrain.recipe import Recipe

_RESERVED = 2**30  # bytes of a GPU for CUDA, its libraries and gaps between tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated time of a run with one device of the same kind per process, by `costs.step_seconds`.

    Attributes:
        device: the device.
        step: seconds of a step.
        roofline: seconds of the same operations at the full rates of the device, see `costs.roofline_seconds`.
        images_per_second: rate over all processes, which the data loaders must deliver.
        hours: hours of all epochs; None if the number of images is not known.
        fits: whether the memory of the device is large enough.
    """

    device: Device
    step: float
    roofline: float
    images_per_second: float
    hours: float | None
    fits: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostPlan:
    """Cost of a run.

    Attributes:
        recipe: the recipe of the run.
        processes: number of processes that share a batch.
        images: number of training images; None if it is not known.
        images_from: source of the number of images.
        steps_per_epoch: number of steps; None if the number of images is not known.
        parameters: numbers of parameters: "backbone", "projector" (and other heads), "trained" (both together), and the
            momentum "target" (0: no target).
        view_flops: FLOPs of the forward pass of one view of one image, by view size; a multiply-add counts as two.
        forward_flops: FLOPs of the forward passes of all views of one image, without the loss.
        loss_flops: FLOPs of the loss and its gradient per image; None if they are not counted separately.
        flops: all FLOPs per image. For INTL: three forward passes for a trained view, one for a view of the target, and
            the loss. For other methods: counted operation by operation.
        memory: bytes of one process, by part; the peak is the sum.
        checkpoint: bytes of the checkpoint file.
        estimates: one estimate for each device, that of this machine first.
        preparation: time to prepare an image, in the estimate of this machine; None if it is not known.
        start: the weights that the run would start from, in words; "" for random ones or those of its own state.
    """

    recipe: Recipe
    processes: int
    images: int | None
    images_from: str
    steps_per_epoch: int | None
    parameters: dict[str, int]
    view_flops: dict[int, int]
    forward_flops: int
    loss_flops: int | None
    flops: int
    memory: dict[str, int]
    checkpoint: int
    estimates: tuple[Estimate, ...]
    preparation: Preparation | None
    start: str

    @property
    def peak(self) -> int:
        """Peak memory of one process in bytes."""
        return sum(self.memory.values())

    @property
    def total_steps(self) -> int | None:
        """Number of steps of all epochs; None if the number of images is not known."""
        return None if self.steps_per_epoch is None else self.recipe.total_steps(self.steps_per_epoch)


def make_plan(
    recipe: Recipe,
    *,
    processes: int = 1,
    devices: Sequence[Device] = costs.GPUS,
    here: Machine | None = None,
    preparation: Preparation | None = None,
) -> CostPlan:
    """Plan the cost of a run.

    Args:
        recipe: the recipe of the run.
        processes: number of processes, each with its own device.
        devices: kinds of devices to estimate the time for.
        here: this machine. Its estimate comes first and includes the preparation of the images.
        preparation: time to prepare an image; None measures it, if the images can be opened.

    Raises:
        InputError: the batch does not fit the data set, the method or the number of processes; or the initial weights
            cannot be read or do not fit.
    """
    require_even_batch(recipe.batch_size, processes)
    if recipe.batch_size == processes:
        raise InputError(
            f"--processes {processes}: the cost of one image for each process is unknown; expected at most "
            f"{recipe.batch_size // 2}; lower --processes"
        )
    source, images, classes, images_from = _images(recipe.data)
    meta = torch.device("meta")
    with meta:
        training = train.build_training(
            recipe, Process(rank=0, world_size=1, device=meta), images or recipe.batch_size, classes
        )
    method, steps = training.method, training.steps_per_epoch if images else None
    start = ""
    if recipe.init is not None and not recipe.checkpoint.exists():  # a run that resumes does not need the file
        initial = warm_start.find(recipe, method, None)
        assert initial is not None
        start = warm_start.apply(initial, method)  # checks the shapes
    checkpoint = _file_bytes({"format": 1, **training.state()})
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    target = [parameter for parameter in method.parameters() if not parameter.requires_grad]
    backbone = sum(parameter.numel() for parameter in method.backbone.parameters())
    view_flops = _forward_flops(method, recipe)
    forward = [view_flops[view.size] for view in recipe.views]
    persistent = {
        "weights": _bytes(trained) + _bytes(method.buffers()),
        "momentum target": _bytes(target),
        "gradients": _bytes(trained),
        "momentum": _bytes(value for state in training.optimizer.state.values() for value in state.values()),
    }
    cost, loss = _count_step(training, processes)  # removes the data of the method's tensors
    share = recipe.batch_size // processes
    memory = persistent | {
        "pictures": sum(share * 3 * view.size**2 * 4 for view in recipe.views),
        "activations": cost.saved - (loss.saved if loss else 0),
        "loss": loss.saved if loss else 0,
        # Additional memory of the backward pass at its peak. At that time the gradients of the previous step exist; the
        # counted peak contains the new gradients computed so far.
        "temporary": max(0, cost.peak - cost.saved - persistent["gradients"]),
    }

    def estimate(device: Device) -> Estimate:
        passes = {"trained": persistent["gradients"], "target": persistent["momentum target"]}
        step = costs.step_seconds(cost, device, **passes, processes=processes)
        reserved = _RESERVED
        if here is not None and device is here.device:
            step = here.seconds(step, recipe.batch_size, preparation or Preparation(), recipe.workers * processes)
            reserved = _RESERVED if here.on_gpu else 0
        return Estimate(
            device=device,
            step=step,
            roofline=costs.roofline_seconds(cost, device, **passes),
            images_per_second=recipe.batch_size / step,
            hours=recipe.total_steps(steps) * step / 3600 if steps else None,
            fits=sum(memory.values()) + reserved <= device.memory,
        )

    if preparation is None and here is not None and source is not None:
        preparation = time_views(source, recipe.views, on_gpu=here.on_gpu)
    loss_flops = loss.flops // recipe.batch_size if loss else None
    passes = [1 if target and number == 0 else 3 for number in range(len(forward))]
    return CostPlan(
        recipe=recipe,
        processes=processes,
        images=images,
        images_from=images_from,
        steps_per_epoch=steps,
        parameters={
            "backbone": backbone,
            "projector": sum(parameter.numel() for parameter in trained) - backbone,
            "trained": sum(parameter.numel() for parameter in trained),
            "target": sum(parameter.numel() for parameter in target),
        },
        view_flops=view_flops,
        forward_flops=sum(forward),
        loss_flops=loss_flops,
        flops=cost.flops // share
        if loss_flops is None
        else sum(n * flops for n, flops in zip(passes, forward, strict=True)) + loss_flops,
        memory=memory,
        checkpoint=checkpoint,
        estimates=tuple(estimate(device) for device in (*([here.device] if here else []), *devices)),
        preparation=preparation,
        start=start,
    )


def _count_step(training: train.Training, processes: int = 1) -> tuple[Cost, Cost | None]:
    """Count the cost of a forward and backward pass of one process, and the part of the loss.

    A process computes the embeddings of its part of a batch. For INTL, the cost includes the loss of the whole batch,
    although the processes share this work. For other methods it includes the loss of the part, and the second result is
    None. A loss that needs values or more than a part (as that of W-MSE) is left out.

    The parameters and buffers of `training.method` lose their data.
    """
    method, recipe = training.method, training.recipe
    share = recipe.batch_size // processes
    embeddings: list[tuple[int, torch.dtype, bool]] = []

    def look(_: nn.Module, inputs: Any) -> None:
        embeddings.extend((z.shape[1], z.dtype, z.requires_grad) for z in inputs[0])

    def forward() -> torch.Tensor:
        # bf16 also represents fp16: the operations and the numbers of bytes are the same.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision != "fp32"):
            return _total(method(views, labels) if training.labeled else method(views))

    def encode() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision != "fp32"):
            return torch.stack([method.projector(method.backbone(view)).float().sum() for view in views]).sum()

    intl_loss: Any = getattr(method, "loss", None)

    def loss(batch: int) -> Cost:
        z = [torch.empty(batch, d, dtype=dtype, requires_grad=grad) for d, dtype, grad in embeddings]
        return costs.count(lambda: _total(intl_loss(z)))

    with costs.without_data():
        costs.strip(method)
        views = [torch.empty(share, 3, view.size, view.size) for view in recipe.views]
        labels = torch.empty(share, dtype=torch.int64)
        if not isinstance(intl_loss, INTLLoss):
            try:
                return costs.count(forward), None
            except (RuntimeError, ValueError):
                return costs.count(encode), None
        hook = intl_loss.register_forward_pre_hook(look)
        whole = costs.count(forward)
        hook.remove()
        part = loss(share)
        if processes == 1:
            return whole, part
        full = loss(recipe.batch_size)
    more = full.saved - part.saved
    operations = whole.operations - part.operations + full.operations
    return Cost(operations=operations, saved=whole.saved + more, peak=whole.peak + more), full


def _total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def _images(config: DataConfig) -> tuple[ImageSource | None, int | None, int, str]:
    """Return the training images, their number, that of their classes, and the source of the number of images."""
    try:
        source = open_source(config, "train")
        return source, len(source), len(source.class_names), "counted"
    except BenchError as error:
        if not config.is_absent:
            raise
        facts = DATASETS.get(config.dataset)
        known = config.published_numbers(facts)[0] if facts is not None else None
        reason = f"cannot count them: {' '.join(str(error).split())}"
        classes = facts.classes if facts is not None else 1000
        return None, known, classes, f"{'as published' if known else 'not known'}; {reason}"


def _forward_flops(method: Method, recipe: Recipe) -> dict[int, int]:
    """Count the FLOPs of backbone and projector for one view of each size.

    fvcore counts multiply-adds. As in papers, only those of convolutions and linear layers are used; batch norms and
    pooling have few. fvcore traces a real pass, here of one image and uninitialized weights.
    """
    encoder = copy.deepcopy(nn.Sequential(method.backbone, method.projector)).eval().to_empty(device="cpu")
    found = {}
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated in PyTorch
        from fvcore.nn import FlopCountAnalysis

        for size in dict.fromkeys(view.size for view in recipe.views):
            operators = FlopCountAnalysis(encoder, torch.zeros(1, 3, size, size)).by_operator()
            found[size] = 2 * int(operators["conv"] + operators["linear"])
    return found


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _file_bytes(state: dict[str, Any]) -> int:
    """Return the size in bytes of the file that `torch.save` writes for `state`; its tensors need no data."""
    sizes: list[int] = []

    def hollow(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return torch.empty(0, dtype=tensor.dtype)

    stream = io.BytesIO()
    torch.save(tree_map_only(torch.Tensor, hollow, state), stream)
    return len(stream.getvalue()) + sum(-(-size // 64) * 64 for size in sizes)  # each tensor begins at a multiple of 64
