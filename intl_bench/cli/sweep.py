"""`intl-bench sweep`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intl_bench.cli.common import JOBS, add_command, add_dry_run, add_slurm, is_dry_run, is_override
from intl_bench.core.errors import InputError

if TYPE_CHECKING:
    from intl_bench.ablations.sweep import Sweep


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "sweep",
        "the same search of settings for every recipe, without the test images, then the chosen ones on them; resumes",
        _run,
    )
    command.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE | key=[A,B] | key=value",
        help="recipes, a method each; values to search, such as base_lr=[0.1,0.3,1]; settings of all runs",
    )
    command.add_argument(
        "--budget",
        type=int,
        metavar="N",
        help="pre-trainings for each recipe; drawn, if the grid has more (default: all)",
    )
    command.add_argument(
        "--select",
        choices=("val", "best-on-test"),
        default="val",
        help="what chooses: a part of the training images, held out of the search; or the test images (default: val)",
    )
    command.add_argument(
        "--score",
        default="linear",
        metavar="TASK",
        help="what chooses: linear or knn, possibly with its settings, such as 'linear --config default size=64'",
    )
    command.add_argument("--share", type=float, default=0.1, help="share of the part that chooses (default: 0.1)")
    command.add_argument("--draw-seed", type=int, default=0, help="seed of the drawn settings (default: 0)")
    command.add_argument(
        "--seeds", default="3", help="of the chosen setting: how many, or which, 3,7,11; the first one searches"
    )
    command.add_argument("--name", help="of the folders of its runs and results (default: the recipes)")
    command.add_argument("--parallel", action="store_true", help="the pre-trainings side by side, one on each GPU")
    add_slurm(command, "a job for each pre-training through submitit; options as timeout_min=4320,slurm_partition=gpu")
    command.add_argument("--only", help=argparse.SUPPRESS)
    command.add_argument("--results", type=Path, help="folder of its results (default: results/sweeps/NAME)")
    command.add_argument("--fresh", action="store_true", help="start over and replace existing records")
    add_dry_run(command)


def _run(args: argparse.Namespace) -> None:
    from intl_bench.ablations import grid, sweep, tuned

    plan = _sweep(args)
    results = args.results or Path("results") / "sweeps" / plan.name
    searched = plan.searched()
    sweep.check_score(plan, searched)
    elsewhere = args.slurm is not None
    if is_dry_run(args):
        _print_plan(plan, searched, results, fresh=args.fresh, elsewhere=elsewhere)
        return
    if args.only is not None:
        stage, _, number = args.only.partition(":")
        made, folder = searched, plan.search_results(results)
        if stage == "final":
            made, folder = plan.final_cells(sweep.settings_of(sweep.choose(sweep.tried(plan, results)))), results
        grid.run_cell(made[int(number)], plan.search.tasks, folder)
        return
    grid.check([*searched, *plan.first_choice()], plan.search.tasks, elsewhere=elsewhere)
    if args.fresh:
        sweep.start_over(plan, results)
    _run_stage(args, "search", searched, plan.search_results(results), plan.search.tasks)
    chosen = sweep.choose(sweep.tried(plan, results))
    for recipe, best in chosen.items():
        print(f"{recipe}: chosen {' '.join(best.setting)}, {plan.task} {best.score:.2f} on {plan.select}", flush=True)
    final = plan.final_cells(sweep.settings_of(chosen))
    _run_stage(args, "final", final, results, plan.search.tasks)
    print(tuned.finish(plan, results))
    print(f"table: {results / 'table.md'}")


def _sweep(args: argparse.Namespace) -> "Sweep":
    """Return what the command line asks for."""
    from intl_bench import runs
    from intl_bench.ablations import sweep

    recipes = [word for word in args.words if not is_override(word)]
    if not recipes:
        raise InputError("sweep: RECIPE is missing; expected one or more, such as cifar10_r18_intl")
    space, overrides = sweep.parse([word for word in args.words if is_override(word)])
    return sweep.Sweep(
        name=args.name or "-".join(Path(recipe).stem for recipe in recipes),
        recipes=tuple(recipes),
        space=space,
        overrides=tuple(overrides),
        budget=args.budget,
        select=args.select,
        score=args.score,
        share=args.share,
        draw_seed=args.draw_seed,
        seeds=tuple(runs.parse_seeds(args.seeds)),
    )


def _run_stage(
    args: argparse.Namespace, stage: str, recipes: Sequence[Any], results: Path, tasks: Sequence[str]
) -> None:
    """Run the cells of the search or of the chosen settings here, side by side, or as jobs."""
    from intl_bench.ablations import grid

    if not (args.parallel or args.slurm is not None):
        for recipe in recipes:
            grid.run_cell(recipe, tasks, results)
        return
    command, *rest = args.arguments
    commands: Mapping[str, Sequence[str]] = {
        f"{recipe.name} seed {recipe.seed}": [command, "--only", f"{stage}:{number}", *rest]
        for number, recipe in enumerate(recipes)
    }
    if args.slurm is None:
        from intl_bench.launch.seeds import run_in_parallel

        run_in_parallel(commands, at_once=os.cpu_count())
    else:
        from intl_bench.launch.slurm import run_on_cluster

        run_on_cluster(commands, args.slurm, JOBS)


def _print_plan(plan: "Sweep", searched: Sequence[Any], results: Path, **options: bool) -> None:
    """Print the plan of a sweep; `options` are those of `plan.describe`."""
    from intl_bench.ablations import plan as plans
    from intl_bench.core.read_only import read_only

    final = plan.final(dict.fromkeys(plan.recipes, plan.settings[0]))
    folder = plan.search_results(results)
    with read_only():
        search = plans.describe(plan.search, searched, seeds=plan.seeds[:1], results=folder, **options)
        then = plans.describe(final, plan.first_choice(), seeds=plan.seeds, results=results, **options)
    print(f"search: {len(plan.settings)} of {plan.size} settings for each of {len(plan.recipes)} recipes\n{search}\n")
    print(f"then: the chosen setting of each recipe, here shown with the first one\n{then}")
