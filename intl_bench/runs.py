"""Run a scoring task for several seeds and store each result as a record. Finished seeds are skipped."""

import contextlib
import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from intl_bench import protocol, provenance
from intl_bench.core import config as configs
from intl_bench.core import data_folders, energy, files, json_lines
from intl_bench.core.distributed import is_main_process
from intl_bench.core.errors import InputError
from intl_bench.core.locks import lock
from intl_bench.core.names import require_title
from intl_bench.core.ranges import SEEDS
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.score_lines import describe
from pretrain.backbone import BackboneConfig
from pretrain.checkpoint import Checkpoint, Origin
from pretrain.images.data import DataConfig
from pretrain.recipe import inherited_data
from transfer import find_task
from transfer.convert import read
from transfer.features import RANDOM, random_init
from transfer.task import Task

_MOST_SEEDS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRun:
    """One task on one checkpoint, with its configuration and its seeds.

    Attributes:
        checkpoint: a file, or a checkpoint that was read already. None requires `init` "random" and means the paper's
            ResNet-50.
        config: a protocol's file; None chooses the default of the task and the data set.
        init: "checkpoint", or "random": the architecture of the checkpoint, initialized from each seed.
        layout: layout of the file, for `transfer.convert`.
        method: name of the method in tables. None takes the name of the checkpoint.
        pretrain_seed: seed of a foreign checkpoint that is one of several pre-trainings with different seeds.
        group: name of those pre-trainings, if there are several groups of one method.
        results: folder of the records.
        fresh: score again and replace the records that exist. What an earlier run left stays until the end.
    """

    task: str
    checkpoint: Path | Checkpoint | None
    config: str | None = None
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    init: str = "checkpoint"
    layout: str = "auto"
    method: str | None = None
    pretrain_seed: int | None = None
    group: str | None = None
    results: Path = Path("results")
    fresh: bool = False


def parse_seeds(text: str) -> list[int]:
    """Parse seeds: "3" means 0, 1, 2; "3,7,11" means these three; "3," means 3 alone.

    Raises:
        InputError: the text is something else, or more than 10,000 seeds, or a seed out of range.
    """
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        numbers = []
    seeds = numbers if "," in text else list(range(min(numbers[0], _MOST_SEEDS + 1))) if numbers else []
    if not seeds or len(set(seeds)) != len(seeds) or len(seeds) > _MOST_SEEDS:
        raise InputError(f"--seeds {text}: expected a count such as 3, or different seeds such as 3,7,11")
    with _refusing():
        for seed in seeds:
            SEEDS.check("--seeds", seed)
    return seeds


def prepare(plan: TaskRun) -> tuple[Task[Any], Checkpoint, Any]:
    """Return the task, the loaded checkpoint and the resolved configuration of a plan.

    The data set is that of the checkpoint's pre-training. The configuration file changes it, then the overrides do.

    Raises:
        InputError: the checkpoint cannot be read, or a configuration, key or value is unknown.
    """
    task, checkpoint = find_task(plan.task), _checkpoint(plan)
    data, path = find_protocol(plan, task, checkpoint)
    return task, checkpoint, task.resolve(protocol.build_config(task, checkpoint, data, path, plan.overrides))


def find_protocol(plan: TaskRun, task: Task[Any], checkpoint: Checkpoint) -> tuple[dict[str, Any], Path]:
    """Return the settings of the data that the checkpoint gives, and the protocol's file.

    Raises:
        InputError: there is no such file, or no protocol for the data set.
    """
    if task.default is not None:
        return {}, configs.find(task.default if plan.config is None else plan.config, plan.task)
    changes = [change.removeprefix("data.") for change in plan.overrides if change.startswith("data.")]
    kind = _found_kind(changes) if task.finds_kind else {}
    changes = [*(f"kind={name}" for name in kind.values()), *changes]
    own = {} if checkpoint.recipe is None else inherited_data(checkpoint.recipe.data, changes)
    own |= kind
    data = {key: value for key, value in own.items() if key not in ("mean", "std")}  # these belong to the backbone
    asked = configs.build(DataConfig, data, "data", changes)
    path = protocol.default_path(plan.task, asked) if plan.config is None else configs.find(plan.config, plan.task)
    return data, path


def _found_kind(changes: Sequence[str]) -> dict[str, str]:
    """Return {"kind": the kind of the images that an override `root=` names}; {} without it, or if the kind is given.

    Raises:
        InputError: there is no such folder, or it holds several data sets.
    """
    given = dict(change.partition("=")[::2] for change in changes)
    if "kind" in given or not given.get("root"):
        return {}
    root = Path(os.path.expanduser(given["root"]))
    if not root.exists():
        hint = data_folders.where_instead(root, ()).text
        raise InputError(f"data.root={given['root']}: no such file or folder{hint}")
    kinds = data_folders.labeled_kinds(root)
    if len(kinds) > 1:
        raise InputError(f"data.root={given['root']}: holds {', '.join(kinds)}; choose one with data.kind={kinds[0]}")
    return {"kind": kinds[0]} if kinds else {}


def _checkpoint(plan: TaskRun) -> Checkpoint:
    if plan.checkpoint is None:
        checkpoint = Checkpoint(
            path=Path(),
            sha256="",
            backbone={},
            origin=Origin.RANDOM,
            method=RANDOM,
            architecture=BackboneConfig(),
            preprocessing=None,
            seed=None,
        )
    else:
        given = plan.checkpoint
        checkpoint = given if isinstance(given, Checkpoint) else read(given, plan.layout)
    for option, name in (("--method", plan.method), ("--group", plan.group)):
        if name is not None:
            with _refusing():
                require_title(name, option)
    if plan.method is not None:
        checkpoint = dataclasses.replace(checkpoint, method=plan.method)
    if plan.pretrain_seed is None:
        if plan.group is not None:
            raise InputError(f"--group {plan.group}: --pretrain-seed is missing; add --pretrain-seed N")
        return checkpoint
    with _refusing():
        SEEDS.check("--pretrain-seed", plan.pretrain_seed)
    if plan.init == "random":
        raise InputError(
            f"--pretrain-seed {plan.pretrain_seed}: a random initialization has the seeds of --seeds; remove "
            "--pretrain-seed or --init random"
        )
    if checkpoint.origin is not Origin.FOREIGN:
        raise InputError(
            f"--pretrain-seed {plan.pretrain_seed}: the seed of {checkpoint.path} is known; expected a checkpoint of "
            "another project; leave the option out"
        )
    return dataclasses.replace(checkpoint, seed=plan.pretrain_seed, group=plan.group or checkpoint.method)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def run(plan: TaskRun) -> list[ResultRecord]:
    """Run every seed of a plan that has no record yet; return the records of all seeds, in their order.

    Raises:
        BenchError: a seed failed. The records of finished seeds are kept.
    """
    task, checkpoint, config = prepare(plan)
    store = RecordStore(plan.results / "records")
    seeds = needed_seeds(plan, task)
    if len(seeds) < len(plan.seeds):
        print(f"{plan.task}: does not depend on the seed; one run serves all seeds", file=sys.stderr)
    return [_run_seed(plan, task, checkpoint, config, seed, store) for seed in seeds]


def needed_seeds(plan: TaskRun, task: Task[Any]) -> list[int]:
    """Return the seeds that give different results."""
    return list(plan.seeds) if task.seeded or plan.init == "random" else list(plan.seeds)[:1]


def _run_seed(
    plan: TaskRun,
    task: Task[Any],
    trained: Checkpoint,
    config: Any,
    seed: int,
    store: RecordStore,
) -> ResultRecord:
    random, data = plan.init == "random", task.fingerprints(config)
    checkpoint = random_init(trained, seed) if random else trained
    record = begin_record(plan, task, checkpoint, config, seed, data)
    folder = Path("runs") / plan.task / record.key
    new = folder / "fresh"  # the work of --fresh, which replaces the rest of the folder at the end
    picture = folder / f"worst_seed{seed}.png"
    with lock(folder) if is_main_process() else contextlib.nullcontext():
        files.sweep(store.folder / plan.task)
        again = plan.fresh or any(new.glob("state*.pt"))  # a stopped --fresh is resumed by the command without it
        done = None if again else store.find(record.key)
        if done is not None:
            if is_main_process():
                files.remove_contents(new)
                _clear(new)
                _clear(folder)  # of a process that was killed after it had written the record
                drawn = _draw(task, config, folder, picture)
                _report(done, "already there" if drawn else "already there; nothing to draw was kept; add --fresh")
            return done
        if plan.pretrain_seed is not None and not again:
            _require_one_file_per_seed(record, store)
        if plan.fresh and is_main_process():
            _clear(folder)
            files.remove_contents(new)
        work = new if again else folder
        logs = work.glob("metrics*.jsonl") if any(work.glob("state*.pt")) else ()
        before = sum(map(json_lines.seconds, logs), 0.0)
        started, meter = time.perf_counter(), energy.Meter()
        outcome = task.run(checkpoint, config, seed, folder=work)
        if task.fingerprints(config) != data:
            raise InputError(f"{config.data.root}: the images changed during the run; run the command again")
        record = dataclasses.replace(
            record,
            metrics=outcome.metrics,
            scale=protocol.scale(plan.task, trained, config, outcome.details, random=random),
            # The sizes distinguish two data sets of one name, such as CIFAR-10 and a part of it.
            protocol=record.protocol | {key: outcome.details[key] for key in ("train_images", "test_images")},
            details={
                "checkpoint": str(checkpoint.path),
                "layout": plan.layout,
                "pretrain": checkpoint.details,
                "gpu_joules": None if before else meter.joules(),  # of an earlier session it is not known
                **outcome.details,
            },
            wall_time_s=round(before + time.perf_counter() - started, 2),
            peak_memory_mib=round(provenance.peak_memory_mib(), 1),
            created=now(),
        )
        if is_main_process():
            if again:
                files.replace_contents(folder, new, stays=_states(new))  # with a state, a killed process can resume
            if getattr(config, "visualize", 0) and _draw(task, config, folder, picture):
                record = dataclasses.replace(record, details={**record.details, "picture": str(picture)})
            (store.replace if again else store.append)(record, outcome.image_list)
            _clear(new)
            _clear(folder)
            _report(record, f"{record.wall_time_s:.0f} s")
    return record


def begin_record(
    plan: TaskRun, task: Task[Any], checkpoint: Checkpoint, config: Any, seed: int, data: dict[str, str]
) -> ResultRecord:
    """Return the record of a result before it is known; its key is that of the result.

    Args:
        data: the fingerprints of the splits.
    """
    return ResultRecord(
        task=plan.task,
        method=checkpoint.method,
        dataset=config.data.dataset,
        backbone=checkpoint.architecture.name,
        metrics={},
        details={},
        pretraining=checkpoint.pretraining(),
        evaluation=protocol.evaluation(task, checkpoint, config, data),
        pretrain_seed=checkpoint.seed,
        transfer_seed=seed,
        protocol=protocol.describe(task, checkpoint, config),
        scale="reduced",  # until the outcome tells
        weights_sha256=checkpoint.weights_sha256,
        checkpoint_sha256=checkpoint.sha256 or None,
        config=configs.to_dict(config),
        code=provenance.code(),
        libraries=provenance.libraries(),
        hardware=provenance.hardware(),
        wall_time_s=0.0,
        peak_memory_mib=0.0,
        created=now(),
    )


def _require_one_file_per_seed(record: ResultRecord, store: RecordStore) -> None:
    """Refuse a second foreign file with the same `--pretrain-seed` of one pre-training."""
    for other in store.load():
        same = (other.pretraining_sha256, other.pretrain_seed) == (record.pretraining_sha256, record.pretrain_seed)
        if same and other.method == record.method and other.weights_sha256 != record.weights_sha256:
            raise InputError(
                f"--pretrain-seed {record.pretrain_seed}: already used for {other.details.get('checkpoint')} "
                f"({other.file}); expected another seed, or another pre-training with --group NAME"
            )


def _draw(task: Task[Any], config: Any, folder: Path, picture: Path) -> bool:
    """Draw the pictures that the configuration asks for, if any; return False if the folder keeps nothing to draw."""
    return task.draw is None or not config.visualize or task.draw(config, folder, picture)


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state*.pt*"))


def _clear(folder: Path) -> None:
    """Remove the state to resume from. Other files of a task, such as a detector, stay."""
    for path in _states(folder):
        path.unlink()
    with contextlib.suppress(OSError):  # it is not empty, or it does not exist
        folder.rmdir()


def now() -> str:
    """Return the current time in the format of records."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _report(record: ResultRecord, note: str) -> None:
    trained = record.pretrain_seed
    which = (
        f"seed {record.transfer_seed}"
        if trained in (None, record.transfer_seed)
        else (f"pre-training seed {trained}, transfer seed {record.transfer_seed}")
    )
    chosen = "".join(f", {name} {value:g}" for name, value in record.details.get("chosen", {}).items())
    note += f"; chosen{chosen[1:]}" if chosen else ""
    print(describe(f"{record.task} {record.method} {record.dataset} {which}", record.metrics, note), flush=True)
