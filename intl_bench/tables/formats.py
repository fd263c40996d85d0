"""Built tables as text. Users choose names of methods and data sets, so every format escapes all text."""

import json
from collections.abc import Callable, Sequence

import pandas as pd
from tabulate import tabulate

from intl_bench.core.escapes import csv_text, escape_markdown
from intl_bench.tables.frame import BuiltTable
from intl_bench.tables.html import html_tables
from intl_bench.tables.latex import bibtex, latex
from intl_bench.tables.markup import rows
from intl_bench.tables.text import text


def markdown(tables: Sequence[BuiltTable]) -> str:
    """Return GitHub-flavored tables with one line of headings. The footnotes are a list below each table."""
    return "\n".join(_markdown(table) for table in tables)


def csv(tables: Sequence[BuiltTable]) -> str:
    """Return one line for each cell, with the columns of `BuiltTable.frame`. A missing value is empty."""
    frames = [table.frame for table in tables]
    return csv_text(pd.concat(frames)) if frames else ""


def json_text(tables: Sequence[BuiltTable]) -> str:
    """Return a list of {"table", "caption", "notes", "cells"}. The cells are the lines of `BuiltTable.frame`."""
    value = []
    for table in tables:
        frame = table.frame.astype(object).where(table.frame.notna(), None)
        cells = [{**line, "protocol": json.loads(line["protocol"] or "null")} for line in frame.to_dict("records")]
        notes = [{"mark": mark, "text": text} for mark, text in table.notes]
        value.append({"table": table.number, "caption": table.caption, "notes": notes, "cells": cells})
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[BuiltTable]], str]] = {
    "text": text,
    "markdown": markdown,
    "latex": latex,
    "bibtex": bibtex,
    "csv": csv,
    "json": json_text,
    "html": html_tables,
}


def _markdown(table: BuiltTable) -> str:
    body = rows(table, escape_markdown, bold=lambda text: f"**{text}**", mark=lambda mark: f" [{mark}]")
    grid = tabulate(
        [cells for _, cells in body],
        headers=[table.head, *(escape_markdown(column.flat) for column in table.columns)],
        tablefmt="pipe",
        colalign=["left", *("right" for _ in table.columns)],
        disable_numparse=True,
    )
    notes = "".join(f"- {f'[{mark}] ' if mark else ''}{escape_markdown(text)}\n" for mark, text in table.notes)
    return f"**Table {escape_markdown(table.number)}.** {escape_markdown(table.caption)}\n\n{grid}\n\n{notes}"
