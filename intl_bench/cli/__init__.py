"""The command line: one module a command.

Nothing heavy is imported before a command runs, because `--help` must not import PyTorch.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from intl_bench import __version__
from intl_bench.core import terminal
from intl_bench.core.errors import BUG, INTERRUPTED, OK, InputError, translate
from intl_bench.core.packages import require_own_packages
from intl_bench.core.signals import StopRequest

__all__ = ["main"]


_LONGEST = 1000  # characters of an error


def _parser() -> argparse.ArgumentParser:
    from intl_bench.cli import ablation, convert, data, demo, pretrain, spectrum, tables, task

    parser = argparse.ArgumentParser(
        prog="intl-bench",
        description="Pre-train INTL, score the backbone, and put the numbers beside the published ones.",
        epilog="exit codes: 0 ok, 1 bug, 2 bad input, 3 diverged, 4 no disk, memory or device, "
        "75 stopped and resumable, 130 Ctrl-C",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, pretrain, task, convert, data, ablation, spectrum, tables):
        command.add(commands)
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. `key=value` may also follow options, where argparse does not look for it."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.words += rest
    args.arguments = list(arguments)
    return args


def _report(line: str, exit_code: int) -> int:
    """Print the one line on stderr. Of several processes only the first that fails prints it."""
    if len(line) > _LONGEST:  # a name or a value of a file is very long
        line = f"{line[: _LONGEST - 300]} ... {line[-300:]}"
    if "RANK" not in os.environ:
        print(f"intl-bench: {line}", file=sys.stderr)
        return exit_code
    from intl_bench.core.distributed import first_to_fail

    with StopRequest():  # the launcher stops the other processes after the first failure; this one must still print
        if first_to_fail(exit_code):
            print(f"intl-bench: {line}", file=sys.stderr)
    return exit_code


@terminal.escaped_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every exit code but 0 comes with one line on stderr."""
    try:
        require_own_packages()  # before the parser, which imports the list of tasks from `transfer`
    except InputError as error:
        return _report(str(error), error.exit_code)
    args = _parse(sys.argv[1:] if arguments is None else arguments)
    from intl_bench.launch.processes import stop_with_parent

    stop_with_parent()
    try:
        return args.run(args) or OK
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return OK  # the reader of the output, such as `head`, has closed it
    except Exception as error:
        known = translate(error)
        if args.debug:
            traceback.print_exc()
        if known is None:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return _report(f"bug: {message} ({Path(where.filename).name}:{where.lineno}); --debug shows more", BUG)
        return _report(" ".join(str(known).split()), known.exit_code)
