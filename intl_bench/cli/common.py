"""What several commands share: their parsers, their words, and starting the same command once for each seed."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intl_bench.core.errors import InputError

JOBS = Path("runs") / "jobs"


def add_command(
    commands: Any, name: str, help: str, run: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    """Add the parser of one command, with `--debug`."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def add_results(command: argparse.ArgumentParser) -> None:
    """Add `--results`, the folder that holds `records/`."""
    command.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")


def add_slurm(command: argparse.ArgumentParser, help: str) -> None:
    """Add `--slurm [OPTIONS]`."""
    command.add_argument("--slurm", nargs="?", const="", metavar="OPTIONS", help=help)


def add_seed_jobs(command: argparse.ArgumentParser) -> None:
    """Add `--parallel` and `--slurm`, and the hidden option that both give to the commands which they start."""
    command.add_argument("--parallel", action="store_true", help="the seeds side by side, one on each GPU")
    add_slurm(command, "a job for each seed through submitit; options as timeout_min=4320,slurm_partition=gpu")
    command.add_argument("--only-seed", type=int, help=argparse.SUPPRESS)


def split_words(words: Sequence[str], what: str) -> tuple[str | None, list[str]]:
    """Separate one optional name from key=value overrides."""
    names = [word for word in words if not is_override(word)]
    if len(names) > 1:
        raise InputError(
            f"{' and '.join(names)}: found {len(names)} names; expected one {what}; write settings as key=value"
        )
    return (names[0] if names else None), [word for word in words if is_override(word)]


def is_override(word: str) -> bool:
    """Return whether a word is key=value. A path may hold "=" too, as in `epoch=9-step=100.ckpt` or `lr=0.1/last.ckpt`.

    A word is a path if it or its folder exists, or if no key has such a name.
    """
    is_path = os.path.exists(word) or os.path.isdir(os.path.dirname(word) or word)
    return re.match(r"[\w.]*=", word) is not None and not is_path


def starts_seeds(args: argparse.Namespace) -> bool:
    """Return whether this command starts one command for each seed."""
    return args.only_seed is None and (args.parallel or args.slurm is not None)


def start_seeds(args: argparse.Namespace, seeds: Sequence[int]) -> None:
    """Run the command as the user typed it for each seed, side by side or as jobs."""
    command, *rest = args.arguments
    commands = {f"seed {seed}": [command, "--only-seed", str(seed), *rest] for seed in seeds}
    if args.slurm is None:
        from intl_bench.launch.seeds import run_in_parallel

        run_in_parallel(commands)
    else:
        from intl_bench.launch.slurm import run_on_cluster

        run_on_cluster(commands, args.slurm, JOBS)


def add_dry_run(command: argparse.ArgumentParser) -> None:
    """Add `--dry-run` and `--verbose`."""
    command.add_argument("--dry-run", action="store_true", help="print what would be done, in short; write nothing")
    command.add_argument("--verbose", action="store_true", help="with --dry-run: all settings and details too")


def is_dry_run(args: argparse.Namespace) -> bool:
    """Return whether the command only plans.

    Raises:
        InputError: --verbose is given without --dry-run.
    """
    if args.verbose and not args.dry_run:
        raise InputError("--verbose: has no use without --dry-run; add --dry-run, or leave it out")
    return bool(args.dry_run)


def print_plan(values: dict[str, object]) -> None:
    """Print what a `--dry-run` resolved, as YAML."""
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(values)).rstrip())  # dataclasses become plain YAML
