"""The plan of a pre-training in words."""

import textwrap

from intl_bench.core import config as configs
from intl_bench.core import machine, planned
from intl_bench.core.errors import BenchError
from pretrain import checkpoint, methods, states
from pretrain.dry_run import costs
from pretrain.dry_run.plan import CostPlan, Estimate
from pretrain.recipe import Inputs, Recipe, check_same_run, from_dict

_MODEL = (
    "The estimate is a model, not a measurement. An operation takes the time of its arithmetic at "
    f"{costs.PRODUCT_SHARE:.0%} or of its memory traffic at {costs.MEMORY_SHARE:.0%} of the dense rate of the data "
    "sheet, whichever is longer (float32: TF32 for convolutions only). All operations together take at least 10 us "
    "each. The all-reduce of the gradients is added. Augmentation and waiting for data are left out: the loaders must"
    " deliver these img/s. For this machine the rates are measured, and the preparation of images is added. The "
    "roofline is the same model at the full rates of the data sheet, without launch times and all-reduce."
)
# Measured by benchmarks/plan.py and benchmarks/dry_run.py.
_ERRORS = (
    "Errors of the model: for whole pre-trainings of 6 to 29 s on two idle cores -53% to -27%, because scores on the "
    "way, pictures and fixed costs are left out. For steps of small "
    "runs on two CPU cores with measured rates (not on a GPU), predicted img/s -17% to -1%, but +64% for 16 images "
    "and a projector of 151 M parameters; predicted peak memory -3% to -1%. Against img/s that NVIDIA published for a"
    " supervised ResNet-50 on one A100: +1% in mixed precision, from which the two shares were chosen, and +34% in "
    "TF32."
)

_SHORT = (
    "a model, not a measurement. This machine: rates measured now, and the preparation of {sample}. GPUs: rates of "
    "data sheets, without preparation. Runs of seconds took up to 2.1 times as long (--verbose)"
)


def summary(plan: CostPlan, named: Recipe, *, device: str, fresh: bool) -> str:
    """Describe a plan in short: what differs from the recipe, the data, the steps, the time, the disk, the files.

    Args:
        plan: the plan.
        named: the recipe without overrides.
        device: "cpu" or "cuda", which the run would use here.
        fresh: whether the run starts over.

    Raises:
        InputError: the folder of the run holds a state of another configuration.
    """
    recipe = plan.recipe
    changed = planned.changes(configs.to_dict(named), configs.to_dict(recipe))
    resolved = [f"device {device}", planned.workers(recipe.workers, machine.cores())]
    if recipe.precision == "fp16" and device == "cpu":
        resolved.append("computed in bf16, because a CPU is twenty times slower in fp16")
    if plan.processes > 1:
        resolved.append(f"{plan.processes} processes of {recipe.batch_size // plan.processes} images")
    views = [view.size for view in recipe.views]
    sizes = ", ".join(f"{views.count(size)} x {size} px" for size in dict.fromkeys(views))
    name = methods.find(recipe.method["name"]).DISPLAY
    parameters = f"{_millions(plan.parameters['trained'])} parameters"
    kept = (plan.total_steps or 0) // (recipe.keep_every * (plan.steps_per_epoch or 1)) if recipe.keep_every else 0
    needed = max(0, states.needed_bytes(recipe.checkpoint, plan.checkpoint, kept)) + 4 * plan.parameters["backbone"]
    free = machine.free_bytes(recipe.folder)
    return "\n".join(
        [
            planned.rows(
                [
                    ("pretrain", f"{recipe.name}, seed {recipe.seed}, scale {recipe.scale}"),
                    ("method", f"{name}, {recipe.backbone.name} with the {recipe.backbone.stem} stem, {parameters}"),
                    *(changed or [("changed", "nothing; the recipe as it is")]),
                    ("resolved", "; ".join(resolved)),
                    ("start", plan.start),
                    ("data", describe_data(plan)),
                    ("batch", f"{_batch(recipe.batch_size, plan.images)}, views {sizes}"),
                    ("steps", _steps(plan)),
                    ("memory", f"{planned.size(plan.peak)} for each process at the peak"),
                    ("disk", planned.disk(needed, free)),
                ]
            ),
            planned.table("time", [["estimated", "step", "img/s", "all steps", "memory"], *map(_line, plan.estimates)]),
            planned.rows(
                [
                    (
                        "",
                        _SHORT.format(
                            sample="some images" if plan.preparation else "no image, because none was opened"
                        ),
                    ),
                    ("writes", f"{recipe.folder}: checkpoint.pt, backbone.safetensors, config.yaml, logs and curves"),
                    ("state", _state(recipe, fresh=fresh)),
                ]
            ),
        ]
    )


def describe_data(plan: CostPlan) -> str:
    """Describe the training images."""
    data = plan.recipe.data
    where = f" in {data.root}" if data.root else ""
    count = f"{plan.images:,} training images, " if plan.images is not None else ""
    return f"{data.dataset} ({data.kind}{where}): {count}{plan.images_from}"


def _batch(batch: int, images: int | None) -> str:
    """Describe a batch beside the images: how many are left out of an epoch."""
    if images is None:
        return f"{batch:,} images"
    rest = images % batch
    left = f"each epoch leaves out {rest:,}, others each time" if rest else "none is left out"
    return f"{batch:,} of {images:,} images; {left}"


def _steps(plan: CostPlan) -> str:
    if plan.steps_per_epoch is None:
        return f"not known; {plan.recipe.epochs:,} epochs"
    if plan.recipe.max_steps is not None:
        return f"{plan.total_steps:,}, at most {plan.steps_per_epoch:,} x {plan.recipe.epochs:,} epochs"
    return f"{plan.total_steps:,} = {plan.steps_per_epoch:,} x {plan.recipe.epochs:,} epochs"


def _line(estimate: Estimate) -> list[str]:
    return [
        estimate.device.name,
        planned.duration(estimate.step),
        f"{estimate.images_per_second:,.0f}",
        "not known" if estimate.hours is None else planned.duration(3600 * estimate.hours),
        ("fits" if estimate.fits else "too small") + f", {planned.size(estimate.device.memory)}",
    ]


def _state(recipe: Recipe, *, fresh: bool) -> str:
    """Describe what the folder of a run holds.

    Raises:
        InputError: its state belongs to another configuration.
    """
    if not recipe.checkpoint.exists():
        return "the folder holds no state; the run starts at step 0"
    if fresh:
        return f"--fresh discards the state in {recipe.checkpoint}"
    try:
        state, _ = states.load(recipe.checkpoint)
        inputs = Inputs(**state.get("inputs", {}))
    except (BenchError, TypeError) as error:
        return f"not readable: {error}"
    with checkpoint.readable(recipe.checkpoint):
        check_same_run(recipe, inputs, from_dict(state["config"], f"checkpoint {recipe.checkpoint}"), inputs)
    step, total = state["step"], recipe.total_steps(state["steps_per_epoch"])
    if step == total:
        return f"{recipe.checkpoint} is finished; nothing would be trained"
    seconds = state["details"]["seconds"]
    left = f", about {planned.duration((total - step) * seconds / step)} left at the speed so far" if step else ""
    return f"resumes from step {step:,} of {total:,} in {recipe.checkpoint}{left}"


def format_plan(plan: CostPlan) -> str:
    """Format a plan as aligned text: first the counted values, then the estimates."""
    recipe, parameters = plan.recipe, plan.parameters
    target = f"momentum target {_millions(parameters['target'])}" if parameters["target"] else "no momentum target"
    passes = "3 forward passes of trained views, 1 of the target" if parameters["target"] else "3 forward passes"
    step = "counted" if plan.loss_flops is None else f"{passes}, and {plan.loss_flops / 1e9:.3f} for the loss"
    sizes = [view.size for view in recipe.views]
    lines = [
        f"parameters           {_millions(parameters['trained'])} trained: backbone "
        f"{_millions(parameters['backbone'])}, projector {_millions(parameters['projector'])}; {target}",
        "GFLOPs per image     a multiply-add counts as two (fvcore counts it as one)",
        *(
            f"  {size:4} px forward    {flops / 1e9:8.3f} x {sizes.count(size)}"
            for size, flops in plan.view_flops.items()
        ),
        f"  all views forward  {plan.forward_flops / 1e9:8.3f}",
        f"  a training step    {plan.flops / 1e9:8.3f}: {step}",
        *textwrap.wrap(
            f"images               {'' if plan.images is None else f'{plan.images:,}, '}{plan.images_from}",
            118,
            subsequent_indent=" " * 21,
            break_long_words=False,
        ),
        f"steps                {_steps(plan)}, {recipe.batch_size} images each",
        f"memory per process   GiB, for {recipe.batch_size // plan.processes} images",
        *(f"  {part:18} {size / 2**30:8.3f}" for part, size in plan.memory.items() if size),
        f"  peak               {plan.peak / 2**30:8.3f}",
        f"checkpoint           {plan.checkpoint / 2**30:8.3f} GiB",
        "",
        f"estimated, on {plan.processes} of   {'step':>8}  {'roofline':>8}  {'img/s':>8}  {'hours':>8}  memory",
    ]
    lines += [_estimated(estimate, plan.peak) for estimate in plan.estimates]
    return "\n".join([*lines, "", *textwrap.wrap(_MODEL, 118), *textwrap.wrap(_ERRORS, 118)])


def _estimated(estimate: Estimate, peak: int) -> str:
    hours = "not known" if estimate.hours is None else f"{estimate.hours:8,.1f}"
    return (
        f"  {estimate.device.name:18} {1000 * estimate.step:5.0f} ms  {1000 * estimate.roofline:5.0f} ms  "
        f"{estimate.images_per_second:8,.0f}  {hours}  {peak / 2**30:.1f} of {estimate.device.memory / 2**30:.0f} GiB"
        + ("" if estimate.fits else ": too small")
    )


def _millions(n: int) -> str:
    return f"{n / 1e6:.1f} M"
