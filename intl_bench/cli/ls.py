"""`intl-bench ls`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from intl_bench.cli.columns import Row, align, width
from intl_bench.cli.common import add_command, add_results

_WHAT = {
    "recipes": "what `intl-bench pretrain NAME` trains",
    "methods": "methods of pre-training",
    "tasks": "protocols that score a backbone",
    "ablations": "grids of `intl-bench ablation NAME`",
    "datasets": "published data sets",
    "layouts": "layouts of checkpoints, for --from",
    "runs": "runs in runs/: state, progress, last loss, age",
    "records": "results in the folder of --results",
}


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(commands, "ls", f"list {', '.join(list(_WHAT)[:-1])} or records", _run)
    command.add_argument("what", nargs="?", choices=tuple(_WHAT), metavar="WHAT", help=", ".join(_WHAT))
    command.add_argument("words", nargs="*", metavar="WORD", help="only rows that hold every WORD, such as cifar10")
    add_results(command)


def _run(args: argparse.Namespace) -> None:
    if args.what is None:
        print("\n".join(f"intl-bench ls {name:<10} {text}" for name, text in _WHAT.items()))
        return
    rows = _lists(args)[args.what]()
    shown = [row for row in rows if all(word.lower() in " ".join(row.values()).lower() for word in args.words)]
    if shown:
        print(align(shown, width()))
    elif rows:
        print(f"none of {len(rows)} {args.what} has {' and '.join(args.words)}", file=sys.stderr)
    else:
        print(f"no {args.what} {'under ' + str(args.results) if args.what == 'records' else 'here'}", file=sys.stderr)


def _lists(args: argparse.Namespace) -> dict[str, Callable[[], list[Row]]]:
    from intl_bench import catalog, run_list

    return {
        "recipes": catalog.recipes,
        "methods": catalog.methods,
        "tasks": catalog.tasks,
        "ablations": catalog.ablations,
        "datasets": catalog.datasets,
        "layouts": catalog.layouts,
        "runs": run_list.runs,
        "records": lambda: run_list.records(args.results),
    }
