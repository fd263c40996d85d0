"""What `intl-bench pretrain` and the scoring commands do, as two functions of Python.

Settings are keyword arguments with the names of the command line: `epochs=2` is `epochs=2` there, and
`data={"root": "flowers"}` is `data.root=flowers`.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from intl_bench import runs
from intl_bench.core.errors import InputError
from intl_bench.core.overrides import as_typed, flat
from intl_bench.records import ResultRecord
from pretrain import train
from pretrain.recipe import load_recipe
from transfer import TASKS

__all__ = ["evaluate", "pretrain"]


def pretrain(
    recipe: str | os.PathLike[str] = "imagenet_r50_intl", /, *, fresh: bool = False, **settings: object
) -> Path:
    """Train a backbone in this process, as `intl-bench pretrain` does. The same call again resumes.

    Several processes: `torchrun` with a script that calls this function, or the command line.

    Args:
        recipe: the name of a packaged recipe, or a YAML file.
        fresh: start over, discarding what the run's folder holds.
        settings: changes of the recipe, such as epochs=2, seed=1 or data={"root": "flowers", "kind": "imagefolder"}.

    Returns:
        The checkpoint, runs/pretrain/NAME/seedK/checkpoint.pt.

    Raises:
        InputError: there is no such recipe, setting or data set.
        DivergedError, ResourceError, Preempted: see `intl_bench.core.errors`.
    """
    return train.run(load_recipe(os.fspath(recipe), _overrides(settings)), fresh=fresh)


def evaluate(
    checkpoint: str | os.PathLike[str],
    task: str,
    /,
    *,
    config: str | os.PathLike[str] | None = None,
    seeds: int | Iterable[int] = 1,
    init: str = "checkpoint",
    layout: str = "auto",
    method: str | None = None,
    pretrain_seed: int | None = None,
    group: str | None = None,
    results: str | os.PathLike[str] = "results",
    fresh: bool = False,
    **settings: object,
) -> list[ResultRecord]:
    """Score a checkpoint of this or another project in this process. Seeds that have a record are not run again.

    Args:
        checkpoint: a file, or the folder of a run.
        task: "linear", "knn", "finetune", "coco" or "voc".
        config: an evaluation protocol in configs/TASK/. None chooses it by the data set.
        seeds: how many, or which.
        init: "checkpoint", or "random": the same architecture, initialized by each seed.
        layout: the layout of the file, as `--from`.
        method: the method's name in tables. None takes the one of the checkpoint.
        pretrain_seed, group: see `--pretrain-seed` and `--group`.
        results: the folder of the records.
        fresh: score again and replace records that exist.
        settings: changes of the protocol, such as epochs=100 or data={"root": "flowers"}.

    Returns:
        The records of all seeds, in their order; `record.metrics` has the scores from 0 to 100.

    Raises:
        InputError: the task, the checkpoint, a setting or the data set is refused.
        DivergedError, ResourceError, Preempted: see `intl_bench.core.errors`.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(str(task), TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(TASKS)}"
        swapped = f"; the checkpoint comes first: evaluate({task!r}, {checkpoint!r})" if checkpoint in TASKS else ""
        raise InputError(f"task={task!r}: no such task; {hint}{swapped}")
    return runs.run(
        runs.TaskRun(
            task=task,
            checkpoint=Path(checkpoint),
            config=None if config is None else os.fspath(config),
            overrides=_overrides(settings),
            seeds=runs.parse_seeds(_seeds(seeds)),
            init=init,
            layout=layout,
            method=method,
            pretrain_seed=pretrain_seed,
            group=group,
            results=Path(results),
            fresh=fresh,
        )
    )


def _seeds(seeds: int | Iterable[int]) -> str:
    """Return seeds as the command line writes them."""
    return str(seeds) if isinstance(seeds, int) else ",".join(str(seed) for seed in seeds) + ","


def _overrides(settings: Mapping[str, object]) -> list[str]:
    """Return settings as overrides "key=value" of the command line."""
    return [f"{key}={_text(value)}" for key, value in flat(settings).items()]


def _text(value: object) -> str:
    try:
        return as_typed(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise InputError(f"{value!r}: found {kind}; expected a number, a text, a list or None") from None
