"""The commands that score a backbone, one for each of `transfer.TASKS`."""

import argparse
import functools
from pathlib import Path
from typing import Any

from intl_bench.cli.common import (
    add_command,
    add_dry_run,
    add_results,
    add_seed_jobs,
    is_dry_run,
    print_plan,
    split_words,
    start_seeds,
    starts_seeds,
)

_OPTIONS: dict[str, dict[str, Any]] = {
    "engine": {
        "choices": ("auto", "builtin", "detectron2"),
        "help": "auto: Detectron2 if it is installed and can do it",
    },
    "visualize": {"type": int, "metavar": "N", "help": "draw the N worst test images of each seed, also afterwards"},
}


def add(commands: Any) -> None:
    """Add a parser for each task."""
    from transfer import TASKS  # only after `require_own_packages`

    for name, entry in TASKS.items():
        command = add_command(commands, name, entry.help, functools.partial(_run, name))
        command.add_argument(
            "words",
            nargs="*",
            metavar="CHECKPOINT | key=value",
            help="a checkpoint of this or another project (default: the default pre-training run's), and overrides",
        )
        command.add_argument(
            "--config",
            help="evaluation protocol in configs/TASK/ (default: by the data set; coco: r50_c4_2x; voc: r50_c4_24k)",
        )
        command.add_argument("--from", dest="layout", default="auto", help="layout of the checkpoint, as for convert")
        command.add_argument("--method", help="the method's name in tables (default: the checkpoint's)")
        command.add_argument(
            "--pretrain-seed",
            type=int,
            metavar="N",
            help="seed of a checkpoint of another project: files of one pre-training then count as its seeds",
        )
        command.add_argument(
            "--group", metavar="NAME", help="with --pretrain-seed: which pre-training (default: the method)"
        )
        command.add_argument("--seeds", default="1", help="how many, 3 = seeds 0, 1, 2; or which, 3,7,11")
        command.add_argument(
            "--init",
            choices=("checkpoint", "random"),
            default="checkpoint",
            help="random: the checkpoint's architecture, freshly initialized by each seed",
        )
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="auto: a GPU if there is one")
        if entry.eval_only:
            command.add_argument(
                "--eval-only", action="store_true", help="CHECKPOINT is a trained detector: score it, write no record"
            )
        for option in entry.options:
            command.add_argument(f"--{option}", **_OPTIONS[option])
        add_seed_jobs(command)
        add_results(command)
        command.add_argument("--fresh", action="store_true", help="score again and replace existing records")
        add_dry_run(command)


def _run(name: str, args: argparse.Namespace) -> None:
    from intl_bench import runs
    from pretrain.recipe import load_recipe
    from transfer import TASKS, find_task

    given, overrides = split_words(args.words, "CHECKPOINT")
    options = {option: getattr(args, option) for option in ("device", *TASKS[name].options)}
    overrides += [f"{option}={value}" for option, value in options.items() if value is not None]
    if getattr(args, "eval_only", False):
        _score_detector(name, args, given, overrides)
        return
    checkpoint = None if given is None else Path(given)
    if checkpoint is None and not (args.init == "random" and find_task(name).default is not None):
        checkpoint = load_recipe("imagenet_r50_intl").checkpoint
    plan = runs.TaskRun(
        task=name,
        checkpoint=checkpoint,
        config=args.config,
        overrides=overrides,
        seeds=runs.parse_seeds(args.seeds if args.only_seed is None else f"{args.only_seed},"),
        init=args.init,
        layout=args.layout,
        method=args.method,
        pretrain_seed=args.pretrain_seed,
        group=args.group,
        results=args.results,
        fresh=args.fresh,
    )
    if is_dry_run(args):
        _print_plan(args, "task", plan)
    elif starts_seeds(args):
        runs.prepare(plan)  # reports errors before the first seed starts
        start_seeds(args, plan.seeds)
    else:
        runs.run(plan)


def _score_detector(name: str, args: argparse.Namespace, given: str | None, overrides: list[str]) -> None:
    from intl_bench import trained_detectors
    from intl_bench.core.errors import InputError

    unused = {
        "--init random": args.init != "checkpoint",
        "--seeds": args.seeds != "1",
        "--method": args.method is not None,
        "--pretrain-seed": args.pretrain_seed is not None,
        "--group": args.group is not None,
        "--from": args.layout != "auto",
        "--parallel": args.parallel,
        "--slurm": args.slurm is not None,
    }
    if given is None:
        raise InputError("--eval-only: no file; expected a trained detector, such as runs/coco/KEY/detector.pth")
    if without_use := [option for option, is_given in unused.items() if is_given]:
        raise InputError(f"--eval-only: {without_use[0]} has no use, because no record is written; leave it out")
    plan = trained_detectors.Plan(
        task=name, detector=Path(given), config=args.config, overrides=overrides, fresh=args.fresh
    )
    if is_dry_run(args):
        _print_plan(args, "detector", plan)
    else:
        trained_detectors.score(plan)


def _print_plan(args: argparse.Namespace, what: str, plan: Any) -> None:
    """Print what `intl_bench.dry_run` tells about a plan. Of several processes only the first one does."""
    from intl_bench import dry_run
    from intl_bench.core.distributed import is_main_process, require
    from intl_bench.core.read_only import read_only

    if not is_main_process():
        return
    with read_only():
        text, parts, config = getattr(dry_run, what)(plan)
    if args.slurm is None:  # a job may have a GPU
        require(config.device)
    print(text)
    if args.verbose:
        print(f"{parts}\n")
        print_plan({"config": config})
