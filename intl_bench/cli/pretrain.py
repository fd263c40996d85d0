"""`intl-bench pretrain`."""

import argparse
import os
from typing import Any

from intl_bench.cli.common import JOBS, add_command, add_slurm, print_plan, split_words
from intl_bench.core.errors import OK


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(commands, "pretrain", "train a backbone; the same command again resumes", _run)
    command.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a recipe (default: imagenet_r50_intl) and overrides; --dry-run lists all settings; for GPUs: "
        "precision=bf16, graph=true, compile=true, deterministic=true (docs/gpu.md)",
    )
    command.add_argument("--fresh", action="store_true", help="start over, discarding what the run's folder holds")
    command.add_argument(
        "--processes", type=int, metavar="N", help="train in N processes of this machine (default: one for each GPU)"
    )
    add_slurm(command, "as a job through submitit; options as timeout_min=4320,nodes=2,gpus_per_node=8")
    command.add_argument("--in-job", action="store_true", help=argparse.SUPPRESS)  # the job that --slurm submits
    command.add_argument("--dry-run", action="store_true", help="print the resolved plan and write nothing")


def _run(args: argparse.Namespace) -> int:
    from intl_bench.launch import processes
    from pretrain.recipe import load_recipe

    name, overrides = split_words(args.words, "CONFIG")
    recipe = load_recipe("imagenet_r50_intl" if name is None else name, overrides)
    if args.dry_run:
        from pretrain.dry_run import plan

        count = args.processes
        if count is None:
            count = processes.count(None, device=recipe.device, batch_size=recipe.batch_size)
            count = int(os.environ.get("WORLD_SIZE", count))
        cost = plan.format_plan(plan.make_plan(recipe, processes=count))
        if int(os.environ.get("RANK", 0)) == 0:
            print_plan({"recipe": recipe, "writes": str(recipe.folder)})
            print(f"\n{cost}")
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

    path = train.run(recipe, fresh=args.fresh)
    if is_main_process():
        print(f"checkpoint: {path}")
    return OK
