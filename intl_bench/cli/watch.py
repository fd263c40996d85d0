"""`intl-bench watch`."""

import argparse
from typing import Any

from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(commands, "watch", "how a run is doing: live on a terminal, once in a pipe", _run)
    command.add_argument(
        "name", nargs="?", metavar="RUN", help="the folder or the name of a run (default: the run that wrote last)"
    )


def _run(args: argparse.Namespace) -> None:
    from intl_bench import watch

    watch.run(watch.find(args.name))
