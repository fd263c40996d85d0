"""The command line: one module a command.

Nothing heavy is imported before a command runs, because `--help` must not import PyTorch.
"""

import argparse
import difflib
import errno
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from intl_bench import __version__
from intl_bench.core import heartbeat, launched, signals, terminal
from intl_bench.core.errors import BUG, OK, InputError, LostProcessError, ResourceError, from_os_error, translate
from intl_bench.core.packages import require_own_packages
from intl_bench.core.signals import StopRequest
from intl_bench.core.streams import unbreakable

__all__ = ["main"]

# Errors of an output whose reader, such as `head`, has ended, or whose terminal was closed. It counts as read.
_NO_READER = (errno.EPIPE, errno.EIO)
_LONGEST = 1000  # characters of an error
# Modules of this package, in the order of --help.
_COMMANDS = (
    *("demo", "pretrain", "watch", "task", "convert", "export"),
    *("data", "ablation", "sweep", "spectrum", "label_free", "tables", "report", "records", "ls", "keys", "doctor"),
)

_WELCOME = """\
intl-bench pre-trains image backbones with INTL and fifteen other methods,
scores them, and prints the paper's tables with your numbers beside the
published ones.

Three commands to try:

  intl-bench demo          the whole path on generated images, in minutes
  intl-bench ls recipes    what can be trained, with published scores
  intl-bench pretrain cifar10_r18_intl --dry-run
                           what a run would do and cost; nothing is written

intl-bench doctor checks this machine, intl-bench --help lists all commands."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others, without the usage before them. It names the nearest word."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{'' if message.endswith('?') else ';'} see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words of this parser. A word that begins with - and is no option is an error here."""
        namespace, rest = super().parse_known_args(args, namespace)
        if unknown := [word for word in rest if word.startswith("-")]:
            name = unknown[0].partition("=")[0]
            shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
            options = [option for action in shown for option in action.option_strings]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest(name, options)}")
        return namespace, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        what, known = "/".join(action.option_strings) or action.metavar, [str(choice) for choice in action.choices]
        hint = _nearest(str(value), known) or f"; expected {', '.join(known)}"
        if what == "COMMAND" and _is_recipe(str(value)):
            hint = f"; it is a recipe; run {self.prog} pretrain {value}"
        self.error(f"{what} {value}: unknown{hint}")


def _is_recipe(name: str) -> bool:
    from intl_bench.core.config import CONFIGS

    return (CONFIGS / "pretrain" / f"{name}.yaml").is_file()


def _nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of an error that names the word which was meant; "" if no known word is near."""
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="intl-bench",
        description="Pre-train INTL, score the backbone, and put the numbers beside the published ones.",
        epilog="exit codes: 0 ok, 1 bug, 2 bad input, 3 diverged, 4 no disk, memory or device, "
        "75 stopped and resumable, 129 closed terminal, 130 Ctrl-C",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(run=_welcome, debug=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in _COMMANDS:
        importlib.import_module(f"intl_bench.cli.{name}").add(commands)
    return parser


def _welcome(args: argparse.Namespace) -> None:
    print(_WELCOME)


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


def _require_folder() -> None:
    """Refuse a working directory that was removed, in which libraries end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise from_os_error(error, "the working directory was removed or cannot be read; change to another") from error


def _report(line: str, exit_code: int) -> int:
    """Print the one line on stderr. Of several processes only the first that fails prints it."""
    if len(line) > _LONGEST:  # a name or a value of a file is very long
        line = f"{line[: _LONGEST - 300]} ... {line[-300:]}"
    if "RANK" not in os.environ:
        _say(line)
        return exit_code
    from intl_bench.core.distributed import first_to_fail

    with StopRequest():  # the launcher stops the other processes after the first failure; this one must still print
        if first_to_fail(exit_code):
            _say(line)
    return exit_code


def _say(line: str) -> None:
    """Print a line on stderr, below the progress bars."""
    if progress := sys.modules.get("intl_bench.core.progress"):
        progress.end_bars()
    print(f"intl-bench: {line}", file=sys.stderr)


def _stopped(number: int) -> int:
    """Print the one line of a signal that arrived outside of every loop, which can be in the middle of any import.

    A rank does not ask a store whether it is the first, because that needs PyTorch. Its launcher prints the line.
    """
    if os.environ.get("RANK", "0") == "0" and not _is_rank_of_launcher():
        name = signal.Signals(number).name
        _say(f"stopped by {name}; what was finished is saved; {signals.how_to_resume()}")
    return signals.exit_code(number)


def _is_rank_of_launcher() -> bool:
    """Return whether `intl_bench.launch.processes.run` started this process."""
    return heartbeat.is_watched() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every exit code but 0 comes with one line on stderr.

    Args:
        arguments: of the command line. None means those of this process, which then ends after the command.
    """
    with signals.ending(to_exit=arguments is None), unbreakable() as output, terminal.escaped_output():
        heartbeat.start()
        code = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        if code == OK and output is not None and output.error is not None and output.error.errno not in _NO_READER:
            error = from_os_error(output.error, "cannot write the standard output")
            return _report(str(error), error.exit_code)
        return code


def _main(arguments: Sequence[str]) -> int:
    debug = False
    try:
        require_own_packages()  # before the parser, which imports the list of tasks from `transfer`
        args = _parse(arguments)
        debug = args.debug
        launched.check()
        _require_folder()
        with warnings.catch_warnings():
            if not debug:  # of libraries, such as of Pillow about a damaged image; our own lines are not warnings
                warnings.simplefilter("ignore")
            return args.run(args) or OK
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT)
    except signals.Stopped as stopped:
        return _stopped(stopped.number)
    except Exception as error:
        number = signals.raised()
        if number is not None:  # Python or a library has put another exception around `Stopped`
            return _stopped(number)
        known = translate(error)
        number = signals.pending()
        if known is None and number is not None:  # it came within an import, and left a module in pieces
            return _stopped(number)
        if debug:
            traceback.print_exc()
        if known is None:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return _report(f"bug: {message} ({Path(where.filename).name}:{where.lineno}); --debug shows more", BUG)
        if isinstance(known, LostProcessError) and _is_rank_of_launcher():
            return known.exit_code  # the launcher knows which process is gone
        line = " ".join(str(known).split())
        if isinstance(known, ResourceError) and "RANK" in os.environ:
            line = f"rank {os.environ['RANK']} ({heartbeat.where() or 'before its first step'}): {line}"
        return _report(line, known.exit_code)
