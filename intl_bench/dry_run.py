"""What the commands that score would do: `--dry-run` of the tasks. Nothing is written."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intl_bench import protocol, runs, trained_detectors
from intl_bench.core import config as configs
from intl_bench.core import machine, planned
from intl_bench.core.errors import BenchError, InputError
from intl_bench.records import RecordStore
from pretrain import states
from pretrain.checkpoint import Checkpoint, Origin
from pretrain.dry_run import costs
from pretrain.dry_run import machine as machines
from pretrain.dry_run.machine import Machine
from transfer.dry_run import classification, detection
from transfer.dry_run.work import Work
from transfer.features import random_init
from transfer.task import Task

# By task: (checkpoint, configuration, this machine) -> the work for a seed. Other tasks have no estimate.
_WORK: dict[str, Callable[[Checkpoint, Any, Machine], Work]] = {
    "knn": classification.knn,
    "linear": classification.linear,
    "finetune": classification.finetune,
    "transfer": classification.transfer,
    "coco": detection.detect,
    "voc": detection.detect,
}
_NOTE = (
    "a model, not a measurement. This machine: rates measured now{sample}. GPUs: one, by its data sheet, without the "
    "preparation of images. On two idle cores it was off by -26% to +13% for photos, and fixed costs add 2 to 7 s"
)
_MOST_SEEDS = 50  # whose records are looked for


def task(plan: runs.TaskRun) -> tuple[str, str, Any]:
    """Describe what `runs.run` would do.

    Returns:
        The description, a table of the parts of the work, and the resolved configuration.

    Raises:
        InputError: see `runs.prepare`; or the batch or another setting does not fit the data.
    """
    found, checkpoint, config = runs.prepare(plan)
    data, path = runs.find_protocol(plan, found, checkpoint)
    here, seeds = machines.measure(config.device), runs.needed_seeds(plan, found)
    work = work_of(plan.task, checkpoint, config, here)
    if plan.init == "random":  # each seed has features of its own
        own = tuple(dataclasses.replace(phase, shared=False) for phase in work.phases)
        work = dataclasses.replace(work, phases=own)
    rows = [
        (plan.task, f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)}{_one_for_all(plan, seeds)}"),
        ("checkpoint", _checkpoint(plan, checkpoint)),
        ("protocol", f"{path.parent.name}/{path.name}" if path.is_relative_to(configs.CONFIGS) else str(path)),
        *_changed(plan, found, checkpoint, data, path),
        ("resolved", _resolved(config, here, protocol.describe(found, checkpoint, config).get("normalization"))),
        ("data", work.data),
        ("batch", work.batch),
    ]
    where = [f"{plan.results}/records/{plan.task}", f"runs/{plan.task}/KEY"]
    if plan.task in ("knn", "linear", "transfer") and not getattr(config, "augment", False):
        where.append("runs/features")
    # The features serve all seeds, except for random initializations. Detectors stay, one for each seed.
    kept = len(seeds) if plan.init == "random" or found.default is not None else 1
    needed = states.needed_bytes(Path("runs") / plan.task / "x" / "state.pt", work.state) + kept * work.results
    rows += _costs(work, here, needed)
    end = [("writes", ", ".join(where)), ("records", _records(plan, found, checkpoint, config, seeds))]
    return "\n".join([planned.rows(rows), *_time(work, here, len(seeds)), planned.rows(end)]), _parts(work), config


def detector(plan: trained_detectors.Plan) -> tuple[str, str, Any]:
    """Describe what `trained_detectors.score` would do; see `task`."""
    found, config = trained_detectors.prepare(plan)
    here = machines.measure(config.device)
    work = detection.detect(None, config, here, train=False)
    source = "of this project" if found.is_ours else "of another project"
    rows = [
        (plan.task, "detection with a trained detector, without training and without a record"),
        ("detector", f"{found.path}, {source}"),
        ("resolved", _resolved(config, here, None)),
        ("data", work.data),
        *_costs(work, here, work.results),
    ]
    end = planned.row("writes", f"runs/{plan.task}/KEY")
    return "\n".join([planned.rows(rows), *_time(work, here, 1), end]), _parts(work), config


def work_of(name: str, checkpoint: Checkpoint, config: Any, here: Machine) -> Work:
    """Return the work of a task for a seed; without phases if its costs are not known."""
    if name in _WORK:
        return _WORK[name](checkpoint, config, here)
    return Work(data=f"{config.data.dataset}{f' in {config.data.root}' if config.data.root else ''}")


def _listed(seeds: Sequence[int]) -> str:
    shown = ", ".join(map(str, seeds[:8]))
    return shown if len(seeds) <= 8 else f"{shown}, ... ({len(seeds)} seeds)"


def _one_for_all(plan: runs.TaskRun, seeds: Sequence[int]) -> str:
    return "; one run serves all seeds, because the result does not depend on them" if seeds != list(plan.seeds) else ""


def _checkpoint(plan: runs.TaskRun, checkpoint: Checkpoint) -> str:
    if plan.init == "random":
        return f"random {checkpoint.architecture.name}, initialized by each seed"
    recipe, about = checkpoint.recipe, [checkpoint.method, checkpoint.architecture.name]
    if recipe is not None:
        about += [f"recipe {recipe.name}", f"seed {recipe.seed}", checkpoint.progress]
    elif checkpoint.origin is Origin.FOREIGN:
        about.append(f"layout {checkpoint.source}")
    return f"{checkpoint.path}: {', '.join(about)}"


def _changed(
    plan: runs.TaskRun, found: Task[Any], checkpoint: Checkpoint, data: dict[str, Any], path: Path
) -> list[tuple[str, str]]:
    """Return what the overrides change in the protocol."""
    own = protocol.build_config(found, checkpoint, data, path, plan.overrides)
    try:
        named = protocol.build_config(found, checkpoint, data, path)
    except InputError:  # the protocol is complete only with the overrides
        return [("" if number else "changed", word) for number, word in enumerate(plan.overrides)]
    changed = planned.changes(configs.to_dict(named), configs.to_dict(own))
    return changed or [("changed", "nothing; the protocol as it is")]


def _resolved(config: Any, here: Machine, normalization: str | None) -> str:
    """Describe the settings that depend on this machine or on the checkpoint."""
    parts = [f"device {'cuda' if here.on_gpu else 'cpu'}"]
    if hasattr(config, "workers"):
        parts.append(planned.workers(config.workers, here.cores))
    if hasattr(config, "engine"):
        parts.append(f"engine {config.engine}")
    if hasattr(config, "crop"):
        parts.append(f"resize {config.resize or 'none'}, crop {config.crop or 'none'}")
    if normalization is not None:
        parts.append(f"normalization {normalization}")
    return "; ".join(parts)


def _costs(work: Work, here: Machine, needed: int) -> list[tuple[str, str]]:
    free = machine.free_bytes(Path("runs"))
    memory = f"{planned.size(work.memory)} at the peak of a step, {planned.size(here.device.memory)} here"
    if work.memory > here.device.memory:
        memory += ": TOO LITTLE; lower batch_size, or use another machine"
    return [("memory", memory if work.memory else ""), ("disk", planned.disk(needed, free) if work.phases else "")]


def _time(work: Work, here: Machine, seeds: int) -> list[str]:
    """Return the estimated times: a table, and a note."""
    if not work.phases:
        return [planned.row("time", "not estimated")]
    counts = [1] if seeds == 1 else [1, seeds]
    header = ["estimated", "a seed", *(f"{count} seeds" for count in counts[1:])]
    lines = [
        [device.name, *(planned.duration(work.seconds(device, here, count)) for count in counts)]
        for device in (here.device, *costs.GPUS)
    ]
    sample = ", and the preparation of some images" if work.preparation else ", without the preparation of images"
    return [planned.table("time", [header, *lines]), planned.row("", _NOTE.format(sample=sample))]


def _parts(work: Work) -> str:
    lines = [["part", "steps", "GFLOPs a step", "images"]]
    lines += [[p.name, f"{p.steps:,}", f"{p.cost.flops / 1e9:,.1f}", f"{p.images:,}"] for p in work.phases]
    return planned.table("parts", lines)


def _records(plan: runs.TaskRun, found: Task[Any], checkpoint: Checkpoint, config: Any, seeds: Sequence[int]) -> str:
    """Describe which seeds have a record or a state already."""
    store, states_of = RecordStore(plan.results / "records"), Path("runs") / plan.task
    # Without a record or a state, the images need not be read for their fingerprint.
    if not any((store.folder / plan.task).glob("*.json")) and not any(states_of.glob("*/**/state*.pt")):
        return "none yet"
    if len(seeds) > _MOST_SEEDS:
        return f"not looked for, because there are more than {_MOST_SEEDS} seeds"
    try:
        data = found.fingerprints(config)
    except BenchError as error:
        return f"not known: {' '.join(str(error).split())}"
    there, begun = list[int](), list[int]()
    for seed in seeds:
        one = random_init(checkpoint, seed) if plan.init == "random" else checkpoint
        key = runs.begin_record(plan, found, one, config, seed, data).key
        if store.find(key) is not None:
            there.append(seed)
        elif any((states_of / key).glob("**/state*.pt")):
            begun.append(seed)
    parts = [f"seeds {_listed(there)} are there"] if there else []
    parts += [f"seeds {_listed(begun)} resume from their states"] if begun else []
    again = "; --fresh scores them again" if plan.fresh and there else "; they are skipped" if there else ""
    return ", ".join(parts) + again if parts else "none of these yet"
