"""`intl-bench tables`."""

import argparse
from typing import Any

from intl_bench.cli.columns import table_format
from intl_bench.cli.common import add_command, add_results


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands, "tables", "the paper's tables with the measured rows beside the published ones", _run
    )
    command.add_argument(
        "--format",
        help="text, markdown, latex, bibtex, csv, json or html (default: text in a terminal, and else markdown)",
    )
    command.add_argument(
        "--table",
        nargs="+",
        metavar="N",
        help="which: 1 to 4, voc, fpn, transfer, few-shot, ablation or tuning (default: 1 2 3, what else was measured)",
    )
    command.add_argument("--dataset", nargs="+", metavar="NAME", help="these data sets alone, such as cifar10")
    command.add_argument("--per-class", action="store_true", help="detection: the AP of each class")
    command.add_argument("--measured-only", action="store_true", help="without the published rows")
    command.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="the differences of two measured rows with their intervals: methods, words of labels, or TABLE:ROW",
    )
    command.add_argument("--notes", default="full", help="the footnotes: full, short or none")
    command.add_argument("--schedule", metavar="1x|2x|24k", help="detection rows of one schedule alone")
    add_results(command)


def _run(args: argparse.Namespace) -> None:
    from intl_bench.records import RecordStore
    from intl_bench.tables import render, render_comparison

    format = table_format(args.format)
    records = RecordStore(args.results / "records").load()
    if args.compare:
        chosen = {"tables": args.table, "format": format, "schedule": args.schedule, "datasets": args.dataset}
        print(render_comparison(records, *args.compare, **chosen, per_class=args.per_class))
        return
    text = render(
        records,
        tables=args.table,
        format=format,
        schedule=args.schedule,
        datasets=args.dataset,
        measured_only=args.measured_only,
        notes=args.notes,
        per_class=args.per_class,
    )
    print(text)
