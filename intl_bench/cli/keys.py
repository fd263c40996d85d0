"""`intl-bench keys`."""

import argparse
from typing import Any

from intl_bench.cli.columns import width
from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    from transfer import TASKS  # only after `require_own_packages`

    names = ("pretrain", *TASKS)
    command = add_command(commands, "keys", "every setting of a command: meaning, default, allowed values", _run)
    command.add_argument("of", nargs="?", choices=names, metavar="COMMAND", help=", ".join(names))
    command.add_argument("name", nargs="?", metavar="NAME", help="a recipe or protocol, whose values are shown")
    command.add_argument("--markdown", action="store_true", help="of all commands, as docs/settings.md")


def _run(args: argparse.Namespace) -> None:
    from intl_bench import keys

    if args.markdown:
        print(keys.page(), end="")
    elif args.of is None:
        print("\n".join(f"intl-bench keys {command}" for command in keys.COMMANDS))
    else:
        title, found = keys.of_command(args.of, args.name)
        print(f"{title}\n{keys.LEGEND}\n\n{keys.lines(found, width())}")
