"""`intl-bench label-free`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.columns import table_format
from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "label-free",
        "do RankMe, alpha and the condition number choose good runs? their rank correlations with the scores",
        _run,
    )
    command.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="all records below these folders (default: results)"
    )
    command.add_argument(
        "--out", type=Path, default=Path("label_free.png"), help="the figure (default: label_free.png)"
    )
    command.add_argument(
        "--format", help="of the table: text, markdown, csv or json (default: text in a terminal, and else markdown)"
    )


def _run(args: argparse.Namespace) -> None:
    from intl_bench.spectra import label_free_output

    folders = args.folders or [Path("results")]
    print(label_free_output.run(folders, out=args.out, format=table_format(args.format)), end="")
