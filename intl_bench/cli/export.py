"""`intl-bench export`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.common import add_command, add_results


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands, "export", "write a backbone for others: a file for each library, a model card, the records", _run
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a pre-training, or a checkpoint")
    command.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="a folder (default: exports/NAME-seedK, or exports/FILE)"
    )
    command.add_argument("--license", metavar="NAME", help="license of the weights, such as CC-BY-4.0, for the card")
    command.add_argument("--from", dest="layout", default="auto", help="layout of the checkpoint, as for convert")
    add_results(command)
    command.add_argument("--fresh", action="store_true", help="replace the files of an earlier export")


def _run(args: argparse.Namespace) -> None:
    from intl_bench.export.bundle import CARD, export

    done = export(
        args.run_folder,
        args.out,
        layout=args.layout,
        license=args.license,
        results=args.results,
        fresh=args.fresh,
    )
    print(f"{done.folder}: {', '.join(name for name in done.files if not name.startswith('records/'))}")
    if done.records:
        print(f"{done.records} records of these weights; they hold paths of this machine, such as data.root")
    else:
        print(f"no records of these weights in {args.results}; score the checkpoint and export again to add them")
    print(
        f"read {done.folder / CARD} before you share it" + ("" if args.license else "; --license NAME adds a license")
    )
