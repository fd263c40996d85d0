"""`intl-bench doctor`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.columns import width
from intl_bench.cli.common import add_command
from intl_bench.core.errors import ResourceError


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(commands, "doctor", "what this machine has and lacks, with the commands that mend it", _run)
    command.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="data folders (default: those in data/)")


def _run(args: argparse.Namespace) -> None:
    from intl_bench import doctor

    failed, count = [], 0
    for check in doctor.examine(args.paths):
        print(check.lines(min(width() or 120, 120)), flush=True)
        count += 1
        failed += [check.name] if check.state == "FAIL" else []
    if failed:
        raise ResourceError(
            f"doctor: {len(failed)} of {count} checks failed: {', '.join(dict.fromkeys(failed))}; see the lines above"
        )
