"""`intl-bench demo`."""

import argparse
from typing import Any

from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(commands, "demo", "the whole path on generated images, on a CPU, offline, in minutes", _run)
    command.add_argument("--only-seed", type=int, help=argparse.SUPPRESS)  # of the processes that `demo` starts


def _run(args: argparse.Namespace) -> None:
    from intl_bench import demo

    if args.only_seed is None:
        demo.run()
    else:
        demo.run_seed(args.only_seed)
