"""`intl-bench report`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from intl_bench.cli.common import add_command, add_results
from intl_bench.core.errors import InputError


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands, "report", "one HTML page: tables, seeds, curves, spectra, detections, cost, commands", _run
    )
    command.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    add_results(command)
    command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs, for curves (default: runs)")


def _run(args: argparse.Namespace) -> None:
    if args.out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {args.out}: not an HTML file; expected a name that ends in .html")
    from intl_bench import report
    from intl_bench.core import files

    text = report.render(args.results, args.runs)
    files.write_text(args.out, text)
    print(f"report: {args.out} ({len(text.encode()) / 2**20:.1f} MiB)", file=sys.stderr)
