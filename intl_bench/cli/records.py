"""`intl-bench records`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.common import add_command, add_results


def add(commands: Any) -> None:
    """Add the parsers of the command and of its steps."""
    records = commands.add_parser(
        "records",
        help="pool records with other people as CSV",
        description="Pool records with other people as CSV.",
        allow_abbrev=False,
    )
    steps = records.add_subparsers(dest="step", required=True, metavar="COMMAND")
    export = add_command(steps, "export", "all records as one CSV file", _export)
    export.add_argument("file", type=Path, metavar="FILE", help="new file, such as records.csv")
    import_ = add_command(steps, "import", "add the records of exported files; nothing is overwritten", _import)
    import_.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files of `records export`")
    import_.add_argument("--dry-run", action="store_true", help="print what would be added and write nothing")
    for command in (export, import_):
        add_results(command)


def _export(args: argparse.Namespace) -> None:
    from intl_bench import records_csv
    from intl_bench.records import RecordStore

    written, left_out = records_csv.export(RecordStore(args.results / "records"), args.file)
    earlier = f"; {left_out} of an earlier version left out" if left_out else ""
    print(f"{args.file}: {written} records{earlier}; they hold paths of this machine, such as data.root")


def _import(args: argparse.Namespace) -> None:
    from intl_bench import records_csv
    from intl_bench.core.errors import InputError
    from intl_bench.records import RecordStore

    store = RecordStore(args.results / "records")
    done = records_csv.import_(store, args.files, dry_run=args.dry_run)
    for conflict in done.conflicts:
        print(f"conflict: {conflict}")
    counts = f"{done.added} {'would be added' if args.dry_run else 'added'}, {done.known} already there"
    print(f"{store.folder}: {counts}, {len(done.conflicts)} in conflict")
    if done.conflicts:
        raise InputError(
            f"{len(done.conflicts)} records contradict others and were not added; the conflicts are listed above; keep "
            "one side, or train with other seeds"
        )
