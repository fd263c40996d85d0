"""`intl-bench data`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the parsers of the command and of its steps."""
    data = commands.add_parser("data", help="prepare data sets", description="Prepare data sets.", allow_abbrev=False)
    steps = data.add_subparsers(dest="step", required=True, metavar="COMMAND")
    pack = add_command(
        steps, "pack", "an image folder as a few large files, read in its place with data.root=OUT", _pack
    )
    pack.add_argument("source", type=Path, metavar="SOURCE", help="holds train/CLASS/* and val/CLASS/*, or one of them")
    pack.add_argument("out", type=Path, metavar="OUT", help="gets train.pack and val.pack; complete ones are kept")
    pack.add_argument("--dry-run", action="store_true", help="print what would be packed and write nothing")


def _pack(args: argparse.Namespace) -> None:
    from pretrain.images import pack_command

    parts = pack_command.prepare(args.source, args.out)
    if not args.dry_run:
        pack_command.write(parts)
    print("\n".join(map(str, parts)))
