"""`intl-bench spectrum`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.columns import table_format
from intl_bench.cli.common import add_command, is_override


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands, "spectrum", "eigenvalues, rank and collapse of checkpoints, as a table and a plot", _run
    )
    command.add_argument(
        "words", nargs="*", metavar="CHECKPOINT | data.key=value", help="checkpoints of any project, and overrides"
    )
    command.add_argument("--images", type=int, default=2048, metavar="N", help="how many test images (default: 2048)")
    command.add_argument("--out", type=Path, default=Path("spectrum.png"), help="the plot (default: spectrum.png)")
    command.add_argument(
        "--format", help="of the table: text, markdown, csv or json (default: text in a terminal, and else markdown)"
    )
    command.add_argument("--from", dest="layout", default="auto", help="layout of the checkpoints, as for convert")


def _run(args: argparse.Namespace) -> None:
    from intl_bench.spectra import compare

    paths = [Path(word) for word in args.words if not is_override(word)]
    overrides = [word for word in args.words if is_override(word)]
    about = {"layout": args.layout, "images": args.images, "out": args.out, "format": table_format(args.format)}
    print(compare.run(paths, overrides=overrides, **about), end="")
