"""`intl-bench tables`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands, "tables", "the paper's tables with the measured rows beside the published ones", _run
    )
    command.add_argument("--format", default="markdown", help="markdown, latex, csv, json or html")
    command.add_argument("--table", nargs="+", metavar="N", help="which (default: 1 2 3, or those of --schedule)")
    command.add_argument("--schedule", metavar="1x|2x|24k", help="detection rows of one schedule alone")
    command.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")


def _run(args: argparse.Namespace) -> None:
    from intl_bench.records import RecordStore
    from intl_bench.tables import render

    records = RecordStore(args.results / "records").load()
    print(render(records, tables=args.table, format=args.format, schedule=args.schedule))
