"""`intl-bench demo`."""

import argparse
from typing import Any

from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    add_command(commands, "demo", "the whole path on generated images, on a CPU, offline, in minutes", _run)


def _run(args: argparse.Namespace) -> None:
    from intl_bench import demo

    demo.run()
