"""`intl-bench ablation`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.common import (
    add_command,
    add_dry_run,
    add_seed_jobs,
    is_dry_run,
    print_plan,
    split_words,
    start_seeds,
    starts_seeds,
)
from intl_bench.core.errors import InputError


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "ablation",
        "a grid of pre-trainings and seeds, scored and drawn; the same command resumes",
        _run,
    )
    command.add_argument(
        "words", nargs="*", metavar="NAME | key=value", help="power, trace-loss, embedding-dim, batch-size, methods ..."
    )
    command.add_argument("--seeds", help="how many, 3 = seeds 0, 1, 2; or which, 3,7,11 (default: the grid's)")
    add_seed_jobs(command)
    command.add_argument("--results", type=Path, help="folder of its results (default: results/ablations/NAME)")
    command.add_argument("--fresh", action="store_true", help="start over and replace existing records")
    add_dry_run(command)


def _run(args: argparse.Namespace) -> None:
    from intl_bench import runs
    from intl_bench.ablations import cells, grid, scoring

    name, overrides = split_words(args.words, "NAME")
    if name is None:
        raise InputError("ablation: NAME is missing; expected a grid of configs/ablation/, such as power_reduced")
    ablation = cells.load(name)
    one = args.only_seed is not None
    seeds = runs.parse_seeds(f"{args.only_seed}," if one else str(ablation.seeds) if args.seeds is None else args.seeds)
    results = args.results or Path("results") / "ablations" / ablation.name
    made = cells.recipes(ablation, seeds[0], overrides)
    if is_dry_run(args):
        from intl_bench.ablations import plan
        from intl_bench.core.read_only import read_only

        with read_only():
            there = args.slurm is not None
            print(plan.describe(ablation, made, seeds=seeds, results=results, fresh=args.fresh, elsewhere=there))
        if args.verbose:
            print()
            print_plan({"cells": {recipe.name: recipe for recipe in made}})
        return
    grid.check(made, ablation.tasks, elsewhere=args.slurm is not None)
    if not one:  # the command that starts the seeds does this for all of them
        grid.experiment(ablation, results, again=args.fresh)
    if not made:
        return
    if args.fresh and not one:
        every = [recipe for seed in seeds for recipe in cells.recipes(ablation, seed, overrides)]
        grid.start_over(every, results, random=scoring.random_scores(made, ablation).values(), seeds=seeds)
    if starts_seeds(args):
        start_seeds(args, seeds)
    else:
        grid.run(ablation, seeds=seeds, results=results, overrides=overrides)
    if not one:
        print(grid.finish(ablation, results, made))
