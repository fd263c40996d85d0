"""Runs a scoring task over seeds and keeps each result as a record; finished seeds are skipped, broken ones go on."""

import contextlib
import dataclasses
import datetime
import difflib
import importlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from intl_bench import machine
from intl_bench.core import config as configs
from intl_bench.core.distributed import is_main_process
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord
from pretrain.backbone import BackboneConfig
from pretrain.checkpoint import Checkpoint
from pretrain.data import TRAINING_IMAGES, DataConfig
from transfer import TASKS
from transfer.convert import read
from transfer.features import RANDOM, random_init

# Of a method's settings, those that a record says elsewhere.
_STATED = {"name", "momentum_target"}
# Training images of the paper's data sets: a smaller set under the same name is not the paper's scale.
_PAPER_IMAGES = TRAINING_IMAGES | {
    "coco2017": 117_266,  # those with an object that is no crowd
    "voc0712": 16_551,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One task on one checkpoint: which configuration, which seeds, where results go.

    Attributes:
        checkpoint: None, with `init` "random", is the paper's ResNet-50.
        init: "checkpoint", or "random": its architecture, freshly initialised by each seed.
        layout: whose checkpoint it is, for `transfer.convert`.
        method: the name of its method in tables; None takes the checkpoint's.
    """

    task: str
    checkpoint: Path | None
    config: str | None = None
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    init: str = "checkpoint"
    layout: str = "auto"
    method: str | None = None
    results: Path = Path("results")
    fresh: bool = False


def parse_seeds(text: str) -> list[int]:
    """ "3" means seeds 0, 1, 2; "3,7,11" means these, "3," means 3 alone.

    Raises:
        InputError: anything else.
    """
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        numbers = []
    seeds = numbers if "," in text else list(range(numbers[0])) if numbers else []
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds {text}: expected a count such as 3, or different seeds such as 3,7,11")
    return seeds


def prepare(plan: Plan) -> tuple[ModuleType, Checkpoint, Any]:
    """The task's module, the loaded checkpoint and the resolved task configuration of a plan.

    The data set is the checkpoint's own, under what the configuration file and then the overrides say.

    Raises:
        InputError: an unreadable checkpoint, an unknown configuration, key or value.
    """
    module = importlib.import_module(TASKS[plan.task])
    checkpoint = _checkpoint(plan)
    if hasattr(module, "from_checkpoint"):
        values = module.from_checkpoint(checkpoint)
        path = configs.find(plan.config or module.DEFAULT, plan.task)
    else:
        changes = [change.removeprefix("data.") for change in plan.overrides if change.startswith("data.")]
        # Another kind of data is another data set: nothing of the checkpoint's, such as its name, holds for it.
        own = any(change.startswith("kind=") for change in changes)
        values = {"data": {} if own else checkpoint.config.get("data", {})}
        asked = configs.build(DataConfig, values["data"], "data", changes)
        path = configs.find(plan.config, plan.task) if plan.config else _default_config(plan.task, asked)
    return module, checkpoint, _build(module, values, path, plan.overrides)


def _build(module: ModuleType, values: dict[str, Any], path: Path, overrides: Sequence[str]) -> Any:
    """The configuration of a file on top of `values`, under `overrides`."""
    content = configs.read(path)
    merged = values | {key: {**values.get(key, {}), **v} if isinstance(v, dict) else v for key, v in content.items()}
    return configs.build(module.Config, merged, f"config {path.parent.name}/{path.name}", overrides)


def _checkpoint(plan: Plan) -> Checkpoint:
    if plan.checkpoint is None:
        config = {"backbone": configs.to_dict(BackboneConfig()), "data": {}, "seed": 0, "scale": "paper"}
        checkpoint = Checkpoint(path=Path(), sha256="", backbone={}, config=config, method=RANDOM, epoch=0, details={})
    else:
        checkpoint = read(plan.checkpoint, plan.layout)
    return dataclasses.replace(checkpoint, method=plan.method) if plan.method else checkpoint


def _default_config(task: str, data: DataConfig) -> Path:
    folder = configs.CONFIGS / task
    names = [name for name in (data.name, data.kind, "default") if name]
    for name in names:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(names[0], known, n=1) or known
    raise InputError(f"{task}: no protocol for the data set {names[0]}; choose one with --config, such as {near[0]}")


def run(plan: Plan) -> list[ResultRecord]:
    """Runs every seed of a plan that has no record yet; returns the records of all of them in seed order.

    Raises:
        InputError and the other errors of the exit codes; records of seeds that finished before stay.
    """
    module, checkpoint, config = prepare(plan)
    store = RecordStore(plan.results / "records")
    seeds = list(plan.seeds)
    if not module.SEEDED and plan.init == "checkpoint" and len(seeds) > 1:
        print(f"{plan.task}: nothing in it is random for a given checkpoint; one run serves all seeds", file=sys.stderr)
        seeds = seeds[:1]
    return [_run_seed(plan, module, checkpoint, config, seed, store) for seed in seeds]


def _run_seed(
    plan: Plan, module: ModuleType, trained: Checkpoint, config: Any, seed: int, store: RecordStore
) -> ResultRecord:
    random = plan.init == "random"
    checkpoint = random_init(trained, seed) if random else trained
    record = ResultRecord(
        task=plan.task,
        method=checkpoint.method,
        dataset=config.data.dataset,
        backbone=checkpoint.config["backbone"]["name"],
        metrics={},
        details={},
        pretrain_seed=seed if random else checkpoint.config["seed"],
        transfer_seed=seed,
        protocol=_stated(module.protocol(config)) | pretrain_stamp(checkpoint),
        scale=trained.config["scale"],
        checkpoint_sha256=checkpoint.sha256,
        config=configs.to_dict(config),
        config_sha256=configs.digest(_identity(plan.task, config)),
        code=machine.code(),
        libraries=machine.libraries(),
        hardware=machine.hardware(),
        wall_time_s=0.0,
        peak_memory_mib=0.0,
        created=now(),
    )
    folder = Path("runs") / plan.task / record.key
    if plan.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    done = None if plan.fresh else store.find(record.key)
    if done is not None:
        if is_main_process():
            undrawn = getattr(config, "visualize", 0) and "picture" not in done.details
            _report(done, "already there; add --fresh to draw" if undrawn else "already there")
        return done
    started = time.perf_counter()
    outcome = module.run(checkpoint, config, seed, folder=folder)
    record = dataclasses.replace(
        record,
        metrics=outcome.metrics,
        # Of two data sets with one name, such as CIFAR-10 and a part of it, the sizes tell.
        scale=_scale(plan, trained, config, outcome.details["train_images"]),
        protocol=record.protocol | {key: outcome.details[key] for key in ("train_images", "test_images")},
        details={"pretrain": checkpoint.details, **outcome.details},
        wall_time_s=round(time.perf_counter() - started, 2),
        peak_memory_mib=round(machine.peak_memory_mib(), 1),
        created=now(),
    )
    if is_main_process():
        if plan.fresh:  # only now: a run that fails leaves the earlier result
            store.remove(record.key)
        store.append(record)
        _clear(folder)
        _report(record, f"{record.wall_time_s:.0f} s")
    return record


def _clear(folder: Path) -> None:
    """Removes the state to resume from; what else a task made, such as a detector, stays."""
    for path in folder.glob("state.pt*"):
        path.unlink()
    with contextlib.suppress(OSError):  # not empty, or never made
        folder.rmdir()


def _stated(protocol: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if value is not None}


def now() -> str:
    """The time, as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _report(record: ResultRecord, note: str) -> None:
    values = ", ".join(f"{name} {value:.2f}" for name, value in sorted(record.metrics.items()))
    print(f"{record.task} {record.method} {record.dataset} seed {record.transfer_seed}: {values} ({note})", flush=True)


def _neutral(task: str) -> tuple[str, ...]:
    """Keys of a task's configuration that change no result."""
    return getattr(importlib.import_module(TASKS[task]), "NEUTRAL", ("workers", "device"))


def _identity(task: str, config: Any) -> dict[str, Any]:
    """What decides a task's result."""
    return {key: value for key, value in configs.to_dict(config).items() if key not in _neutral(task)}


def _scale(plan: Plan, checkpoint: Checkpoint, config: Any, train_images: int) -> str:
    """The paper's scale only with the paper's recipe to its last epoch, its data sets whole, and its evaluation.

    How somebody else's checkpoint was trained is not for us to say: there the evaluation alone decides.
    """
    scale = pretrain_scale(checkpoint)
    whole = plan.task == "finetune" or train_images == _PAPER_IMAGES.get(config.data.dataset)
    return "reduced" if scale == "paper" and not (whole and _is_packaged(plan.task, checkpoint, config)) else scale


def pretrain_scale(checkpoint: Checkpoint) -> str:
    """The scale of a pre-training: its recipe's, and the paper's only where all of the images were seen to the end."""
    stored = checkpoint.config
    if stored["scale"] != "paper" or "epochs" not in stored:
        return str(stored["scale"])
    data = stored["data"]
    whole = checkpoint.details.get("images") == _PAPER_IMAGES.get(data["name"] or data["kind"])
    return "paper" if whole and checkpoint.epoch == stored["epochs"] else "reduced"


def _is_packaged(task: str, checkpoint: Checkpoint, config: Any) -> bool:
    """Whether a configuration is one of those that come along, for a demonstration aside."""
    module = importlib.import_module(TASKS[task])
    own = {"data": checkpoint.config.get("data", {})}
    values = module.from_checkpoint(checkpoint) if hasattr(module, "from_checkpoint") else own

    def compared(config: Any) -> dict[str, Any]:
        shown = {key: value for key, value in _identity(task, config).items() if key not in ("engine", "channels_last")}
        return shown | {"data": {key: value for key, value in shown["data"].items() if key != "root"}}

    paths = [path for path in (configs.CONFIGS / task).glob("*.yaml") if path.stem != "demo"]
    return any(compared(config) == compared(_build(module, values, path, ())) for path in paths)


def pretrain_stamp(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the backbone was pre-trained, as protocol keys."""
    stored = checkpoint.config
    if checkpoint.method == RANDOM:
        return {"pretrain_epochs": 0}
    if "epochs" not in stored:
        return {"pretrain_source": stored["source"]} | (
            {"pretrain_epochs": checkpoint.epoch} if checkpoint.epoch else {}
        )
    if checkpoint.epoch == 0:
        return {"pretrain_epochs": 0}
    sizes = [view["size"] for view in stored["views"]]
    return {
        "pretrain_dataset": stored["data"]["name"] or stored["data"]["kind"],
        "pretrain_images": checkpoint.details.get("images"),
        "pretrain_epochs": checkpoint.epoch,
        "pretrain_batch_size": stored["batch_size"],
        "pretrain_lr": stored["base_lr"],
        "pretrain_crops": "+".join(f"{sizes.count(size)}x{size}" for size in dict.fromkeys(sizes)),
        "pretrain_momentum_target": checkpoint.details.get(
            "momentum_target", bool(stored["method"].get("momentum_target"))
        ),
        "pretrain_embedding_dim": stored["projector"]["out"],
        # Methods differ in what they can be told, and rows of one method in what they were.
        **{
            f"pretrain_method_{key}": str(value) if isinstance(value, list | dict) else value
            for key, value in stored["method"].items()
            if key not in _STATED and value is not None
        },
    }
