"""The command line. Everything heavy is imported inside the commands: `--help` must not import torch."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intl_bench import __version__
from intl_bench.core.errors import BUG, INTERRUPTED, OK, InputError, translate
from intl_bench.core.signals import StopRequest

_TASKS = {
    "linear": "linear classification on the frozen backbone",
    "knn": "k-nearest-neighbor classification on its features",
    "finetune": "semi-supervised fine-tuning with 1 or 10 percent of the labels",
    "coco": "COCO detection and instance segmentation with Mask R-CNN R50-C4",
    "voc": "PASCAL VOC detection with Faster R-CNN R50-C4",
}
_DETECTION = ("coco", "voc")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="intl-bench",
        description="Pre-train INTL, score the backbone, and put the numbers beside the published ones.",
        epilog="exit codes: 0 ok, 1 bug, 2 bad input, 3 diverged, 4 no disk, memory or device, "
        "75 stopped and resumable, 130 Ctrl-C",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, what: str, run: Callable[[argparse.Namespace], int | None], commands: Any = commands
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run)
        added: argparse.ArgumentParser = command
        return added

    def spread(command: argparse.ArgumentParser) -> None:
        command.add_argument("--parallel", action="store_true", help="the seeds side by side, one on each GPU")
        command.add_argument(
            "--slurm",
            nargs="?",
            const="",
            metavar="OPTIONS",
            help="a job for each seed through submitit; options as timeout_min=4320,slurm_partition=gpu",
        )

    add("demo", "the whole path on generated images, on a CPU, offline, in minutes", _demo)

    pretrain = add("pretrain", "train a backbone; the same command again resumes", _pretrain)
    pretrain.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a recipe (default: imagenet_r50_intl) and overrides; --dry-run lists all settings; for GPUs: "
        "precision=bf16, graph=true, compile=true, deterministic=true (docs/gpu.md)",
    )
    pretrain.add_argument("--fresh", action="store_true", help="start over, discarding what the run's folder holds")
    pretrain.add_argument(
        "--processes", type=int, metavar="N", help="train in N processes of this machine (default: one for each GPU)"
    )
    pretrain.add_argument(
        "--slurm",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="as a job through submitit; options as timeout_min=4320,nodes=2,gpus_per_node=8",
    )
    pretrain.add_argument("--dry-run", action="store_true", help="print the resolved plan and write nothing")

    for name, what in _TASKS.items():
        task = add(name, what, _task)
        task.add_argument(
            "words",
            nargs="*",
            metavar="CHECKPOINT | key=value",
            help="a checkpoint, anybody's (default: the default pre-training run's), and overrides",
        )
        task.add_argument("--config", help="evaluation protocol (default: the data set's own, or the 2x schedule)")
        task.add_argument("--from", dest="layout", default="auto", help="whose checkpoint it is, as for convert")
        task.add_argument("--method", help="the method's name in tables (default: the checkpoint's)")
        task.add_argument(
            "--pretrain-seed",
            type=int,
            metavar="N",
            help="of a checkpoint of others: its seed, so that files of one pre-training count as its seeds",
        )
        task.add_argument(
            "--group", metavar="NAME", help="with --pretrain-seed: which pre-training (default: the method)"
        )
        task.add_argument("--seeds", default="1", help="how many, 3 = seeds 0, 1, 2; or which, 3,7,11")
        task.add_argument(
            "--init",
            choices=("checkpoint", "random"),
            default="checkpoint",
            help="random: the checkpoint's architecture, freshly initialized by each seed",
        )
        task.add_argument("--device", choices=("auto", "cpu", "cuda"), help="auto: a GPU if there is one")
        if name in _DETECTION:
            task.add_argument(
                "--engine", choices=("auto", "builtin", "detectron2"), help="auto: Detectron2 if it is there"
            )
            task.add_argument("--visualize", type=int, metavar="N", help="draw the N worst test images of each seed")
        spread(task)
        task.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
        task.add_argument("--fresh", action="store_true", help="score again even where there is a record")
        task.add_argument("--dry-run", action="store_true", help="print the resolved plan and write nothing")

    convert = add("convert", "rewrite anybody's ResNet checkpoint, verified tensor by tensor", _convert)
    convert.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    convert.add_argument("out", type=Path, metavar="OUT")
    convert.add_argument("--to", required=True, choices=("detectron2", "torchvision", "timm", "safetensors"))
    convert.add_argument("--from", dest="layout", default="auto", help="whose it is (default: told by its keys)")

    data = commands.add_parser("data", help="prepare data sets", description="Prepare data sets.")
    pack = add(
        "pack",
        "an image folder as a few large files, read in its place with data.root=OUT",
        _pack,
        data.add_subparsers(dest="step", required=True, metavar="COMMAND"),
    )
    pack.add_argument("source", type=Path, metavar="SOURCE", help="holds train/CLASS/* and val/CLASS/*, or one of them")
    pack.add_argument("out", type=Path, metavar="OUT", help="gets train.pack and val.pack; complete ones are kept")
    pack.add_argument("--dry-run", action="store_true", help="print what would be packed and write nothing")

    ablation = add(
        "ablation", "a grid of pre-trainings and seeds, scored and drawn; the same command resumes", _ablation
    )
    ablation.add_argument(
        "words", nargs="*", metavar="NAME | key=value", help="power, trace-loss, embedding-dim, batch-size, methods ..."
    )
    ablation.add_argument("--seeds", help="how many, 3 = seeds 0, 1, 2; or which, 3,7,11 (default: the grid's)")
    spread(ablation)
    ablation.add_argument("--results", type=Path, help="folder of its results (default: results/ablations/NAME)")
    ablation.add_argument("--fresh", action="store_true", help="start over, replacing the records that there are")
    ablation.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    # What `--parallel` and `--slurm` start for each seed: what concerns all seeds together is done by who started it.
    ablation.add_argument("--cells-only", action="store_true", help=argparse.SUPPRESS)

    spectrum = add("spectrum", "eigenvalues, rank and collapse of checkpoints, as a table and a plot", _spectrum)
    spectrum.add_argument(
        "words", nargs="*", metavar="CHECKPOINT | data.key=value", help="checkpoints, anybody's, and overrides"
    )
    spectrum.add_argument("--images", type=int, default=2048, metavar="N", help="how many test images (default: 2048)")
    spectrum.add_argument("--out", type=Path, default=Path("spectrum.png"), help="the plot (default: spectrum.png)")
    spectrum.add_argument("--format", default="markdown", help="of the table: markdown, csv or json")
    spectrum.add_argument("--from", dest="layout", default="auto", help="whose checkpoints they are, as for convert")

    tables = add("tables", "the paper's tables with the measured rows beside the published ones", _tables)
    tables.add_argument("--format", default="markdown", help="markdown, latex, csv, json or html")
    tables.add_argument("--table", nargs="+", metavar="N", help="which (default: 1 2 3, or those of --schedule)")
    tables.add_argument("--schedule", metavar="1x|2x|24k", help="detection rows of one schedule alone")
    tables.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; key=value may also stand behind options, where argparse does not look for it."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.words += rest
    return args


def _split(words: Sequence[str], what: str) -> tuple[str | None, list[str]]:
    """Separates one optional name from key=value overrides."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise InputError(f"expected one {what}, got {' and '.join(names)}; overrides are key=value")
    return (names[0] if names else None), [word for word in words if "=" in word]


def _demo(args: argparse.Namespace) -> None:
    from intl_bench import demo

    demo.run()


def _pretrain(args: argparse.Namespace) -> int:
    from pretrain import recipe as recipes

    name, overrides = _split(args.words, "CONFIG")
    recipe = recipes.load_recipe(name or "imagenet_r50_intl", overrides)
    from intl_bench.launch import processes as launch

    if args.dry_run:
        from pretrain.dry_run import plan

        count = args.processes
        if count is None:  # as many as there would be
            count = launch.processes(None, device=recipe.device, batch_size=recipe.batch_size)
            count = int(os.environ.get("WORLD_SIZE", count))
        cost = plan.format_plan(plan.make_plan(recipe, processes=count))
        if int(os.environ.get("RANK", 0)) == 0:
            _print_plan({"recipe": recipe, "writes": str(recipe.folder)})
            print(f"\n{cost}")
        return OK
    command = ["pretrain", *args.words] + ["--fresh"] * args.fresh + ["--debug"] * args.debug
    command += [] if args.processes is None else ["--processes", str(args.processes)]
    if args.slurm is not None:
        from intl_bench.launch.seeds import on_cluster

        on_cluster({"pretrain": command}, args.slurm, Path("runs") / "jobs")
        return OK
    processes = launch.processes(args.processes, device=recipe.device, batch_size=recipe.batch_size)
    if processes > 1:
        return launch.run(command, processes)
    from intl_bench.core.distributed import is_main_process
    from pretrain import train

    path = train.run(recipe, fresh=args.fresh)
    if is_main_process():
        print(f"checkpoint: {path}")
    return OK


def _task(args: argparse.Namespace) -> None:
    from intl_bench import runs

    name, overrides = _split(args.words, "CHECKPOINT")
    overrides += [
        f"{key}={value}" for key in ("device", "engine", "visualize") if (value := getattr(args, key, None)) is not None
    ]
    without = args.init == "random" and args.command in _DETECTION  # then there is an architecture by default
    plan = runs.TaskRun(
        task=args.command,
        checkpoint=Path(name) if name else None if without else _default_checkpoint(),
        config=args.config,
        overrides=overrides,
        seeds=runs.parse_seeds(args.seeds),
        init=args.init,
        layout=args.layout,
        method=args.method,
        pretrain_seed=args.pretrain_seed,
        group=args.group,
        results=args.results,
        fresh=args.fresh,
    )
    if args.dry_run:
        _, checkpoint, config = runs.prepare(plan)
        start = str(checkpoint.path) if args.init == "checkpoint" else f"random {checkpoint.architecture.name}"
        _print_plan({"task": plan.task, "checkpoint": start, "seeds": list(plan.seeds), "config": config})
    elif args.parallel or args.slurm is not None:
        runs.prepare(plan)  # what is wrong with it is said here, once
        _spread(args, _one_seed(args), plan.seeds)
    else:
        runs.run(plan)


def _spread(args: argparse.Namespace, words: Sequence[str], seeds: Sequence[int]) -> None:
    """Runs the same command for each seed, side by side or as jobs."""
    from intl_bench.launch.seeds import in_parallel, on_cluster

    if args.slurm is None:
        in_parallel(words, seeds)
    else:
        jobs = {f"seed {seed}": [*words, "--seeds", f"{seed},"] for seed in seeds}
        on_cluster(jobs, args.slurm, Path("runs") / "jobs")


def _one_seed(args: argparse.Namespace) -> list[str]:
    """The arguments of the same task without those that choose its seeds and where they run."""
    words = [args.command, *args.words]
    for option, value in (
        ("--config", args.config),
        ("--from", args.layout),
        ("--method", args.method),
        ("--pretrain-seed", args.pretrain_seed),
        ("--group", args.group),
        ("--init", args.init),
        ("--device", args.device),
        ("--engine", getattr(args, "engine", None)),
        ("--visualize", getattr(args, "visualize", None)),
        ("--results", args.results),
    ):
        words += [option, str(value)] if value is not None else []
    return words + ["--fresh"] * args.fresh + ["--debug"] * args.debug


def _ablation(args: argparse.Namespace) -> None:
    from intl_bench import runs
    from intl_bench.ablations import cells, grid

    name, overrides = _split(args.words, "NAME")
    if name is None:
        raise InputError("ablation: which? Give the name of a grid in configs/ablation/, such as power_reduced")
    ablation = cells.load(name)
    seeds = runs.parse_seeds(args.seeds or str(ablation.seeds))
    results = args.results or Path("results") / "ablations" / ablation.name
    made = cells.recipes(ablation, seeds[0], overrides)
    if args.dry_run:
        plan = {"cells": [recipe.name for recipe in made], "seeds": seeds, "tasks": list(ablation.tasks)}
        _print_plan({"ablation": ablation.name, **plan, "writes": str(results)})
        return
    grid.check(made)
    if not args.cells_only:
        grid.experiment(ablation, results, fresh=args.fresh)
    if not made:
        return
    if args.parallel or args.slurm is not None:
        words = ["ablation", *args.words, "--results", str(results), "--cells-only"]
        _spread(args, words + ["--fresh"] * args.fresh + ["--debug"] * args.debug, seeds)
    else:
        grid.run(ablation, seeds=seeds, results=results, overrides=overrides, fresh=args.fresh)
    if not args.cells_only:
        print(grid.finish(ablation, results, made))


def _convert(args: argparse.Namespace) -> None:
    from transfer import convert

    print("\n".join(convert.convert(args.checkpoint, args.out, to=args.to, source=args.layout).lines))


def _pack(args: argparse.Namespace) -> None:
    from pretrain.images import pack_command

    parts = pack_command.prepare(args.source, args.out)
    if not args.dry_run:
        pack_command.write(parts)
    print("\n".join(map(str, parts)))


def _spectrum(args: argparse.Namespace) -> None:
    from intl_bench.spectra import compare

    paths = [Path(word) for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    about = {"layout": args.layout, "images": args.images, "out": args.out, "format": args.format}
    print(compare.run(paths, overrides=overrides, **about), end="")


def _default_checkpoint() -> Path:
    from pretrain.recipe import load_recipe

    return load_recipe("imagenet_r50_intl").checkpoint


def _tables(args: argparse.Namespace) -> None:
    from intl_bench import tables
    from intl_bench.records import RecordStore

    records = RecordStore(args.results / "records").load()
    print(tables.render(records, tables=args.table, format=args.format, schedule=args.schedule))


def _print_plan(values: dict[str, object]) -> None:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(values)).rstrip())  # dataclasses become plain YAML


def _say(line: str, exit_code: int) -> int:
    """Puts the one line on stderr; of several processes the first that fails does, for the others follow it."""
    if "RANK" not in os.environ:
        print(f"intl-bench: {line}", file=sys.stderr)
        return exit_code
    from intl_bench.core.distributed import first_to_fail

    with StopRequest():  # the launcher ends the others as soon as one has: who is to say the line lives to say it
        if first_to_fail(exit_code):
            print(f"intl-bench: {line}", file=sys.stderr)
    return exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code, with one line on stderr where it is not 0."""
    args = _parse(arguments)
    from intl_bench.launch import processes

    processes.heed_parent()
    try:
        return args.run(args) or OK
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return OK  # the reader of our output, such as `head`, has seen enough
    except Exception as error:
        known = translate(error)
        if args.debug:
            traceback.print_exc()
        if known is None:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return _say(f"bug: {message} ({Path(where.filename).name}:{where.lineno}); --debug shows more", BUG)
        return _say(" ".join(str(known).split()), known.exit_code)
