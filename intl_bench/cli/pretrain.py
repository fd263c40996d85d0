"""`intl-bench pretrain`."""

import argparse
import os
from typing import Any

from intl_bench.cli.common import JOBS, add_command, add_dry_run, add_slurm, is_dry_run, print_plan, split_words
from intl_bench.core.errors import OK

_DEFAULT = "imagenet_r50_intl"


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(commands, "pretrain", "train a backbone; the same command again resumes", _run)
    command.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a recipe (default: imagenet_r50_intl) and overrides; --dry-run --verbose lists all settings; for GPUs: "
        "precision=bf16, graph=true, compile=true, deterministic=true (docs/gpu.md)",
    )
    command.add_argument("--fresh", action="store_true", help="start over, discarding what the run's folder holds")
    command.add_argument(
        "--processes", type=int, metavar="N", help="train in N processes of this machine (default: one for each GPU)"
    )
    add_slurm(command, "as a job through submitit; options as timeout_min=4320,nodes=2,gpus_per_node=8")
    command.add_argument("--in-job", action="store_true", help=argparse.SUPPRESS)  # the job that --slurm submits
    add_dry_run(command)


def _run(args: argparse.Namespace) -> int:
    from intl_bench.core import config as configs

    given, overrides = split_words(args.words, "CONFIG")
    name = _DEFAULT if given is None else given
    configs.find(name, "pretrain")  # a misspelled name is an error before PyTorch is imported
    from intl_bench.launch import processes
    from pretrain.recipe import load_recipe

    recipe = load_recipe(name, overrides)
    if is_dry_run(args):
        _print_plan(args, recipe, name)
        return OK
    if args.slurm is not None and not args.in_job:
        from intl_bench.launch.slurm import run_on_cluster

        command, *rest = args.arguments
        run_on_cluster({"pretrain": [command, "--in-job", *rest]}, args.slurm, JOBS)
        return OK
    count = processes.count(args.processes, device=recipe.device, batch_size=recipe.batch_size)
    if count > 1:
        return processes.run(args.arguments, count)
    from intl_bench.core.distributed import is_main_process
    from pretrain import train

    path = train.run(recipe, fresh=args.fresh, command=args.arguments)
    if is_main_process():
        print(f"checkpoint: {path}")
    return OK


def _print_plan(args: argparse.Namespace, recipe: Any, name: str) -> None:
    """Print the plan of a run. Of several processes only the first one does."""
    from intl_bench.core.distributed import require
    from intl_bench.core.read_only import read_only
    from intl_bench.launch import processes
    from pretrain.dry_run import machine, plan, text
    from pretrain.recipe import load_recipe

    if int(os.environ.get("RANK", 0)) != 0:
        return
    if args.slurm is None:  # a job may have a GPU
        require(recipe.device)
    count = args.processes
    if count is None:
        count = processes.count(None, device=recipe.device, batch_size=recipe.batch_size)
        count = int(os.environ.get("WORLD_SIZE", count))
    with read_only():
        here = machine.measure(recipe.device, processes=count)
        made = plan.make_plan(recipe, processes=count, here=here)
        named = load_recipe(name)
        device = "cuda" if here.on_gpu else "cpu"
        print(text.summary(made, named, device=device, fresh=args.fresh))
    if args.verbose:
        print(f"\n{text.format_plan(made)}\n")
        print_plan({"recipe": recipe})
