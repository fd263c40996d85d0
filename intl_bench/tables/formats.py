"""Built tables as text. Users choose names of methods and data sets, so every format escapes all text."""

import html
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from tabulate import tabulate

from intl_bench.tables.frame import BuiltTable

Markup = Callable[[str], str]
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")


def markdown(tables: Sequence[BuiltTable]) -> str:
    """Return GitHub-flavored tables with one line of headings. The footnotes are a list below each table."""
    return "\n".join(_markdown(table) for table in tables)


def latex(tables: Sequence[BuiltTable]) -> str:
    r"""Return `table` environments for booktabs. If the document loads graphicx, a wide table shrinks to the line."""
    return _LATEX_START + "\n".join(_latex(table) for table in tables)


def html_tables(tables: Sequence[BuiltTable]) -> str:
    """Return one <table> for each table. The footnotes are in its <tfoot>."""
    return "\n".join(_html(table) for table in tables)


def csv(tables: Sequence[BuiltTable]) -> str:
    """Return one line for each cell, with the columns of `BuiltTable.frame`. A missing value is empty."""
    frames = [table.frame for table in tables]
    return csv_text(pd.concat(frames)) if frames else ""


def csv_text(frame: pd.DataFrame) -> str:
    """Return a frame as CSV in which no text is a formula.

    A spreadsheet runs a cell that begins with =, +, - or @, also after a blank and in full width. An apostrophe before
    it makes the cell a text. Numbers stay numbers.
    """
    safe = frame.map(lambda value: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value)
    return safe.to_csv(index=False, lineterminator="\n")


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
    "markdown": markdown,
    "latex": latex,
    "csv": csv,
    "json": json_text,
    "html": html_tables,
}


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_<&|~\[\]])", r"\\\1", _one_line(text))


def _markdown(table: BuiltTable) -> str:
    body = _rows(table, escape_markdown, bold=lambda text: f"**{text}**", mark=lambda mark: f" [{mark}]")
    grid = tabulate(
        [cells for _, cells in body],
        headers=["Method", *(escape_markdown(column.flat) for column in table.columns)],
        tablefmt="pipe",
        colalign=["left", *("right" for _ in table.columns)],
        disable_numparse=True,
    )
    notes = "".join(f"- {f'[{mark}] ' if mark else ''}{escape_markdown(text)}\n" for mark, text in table.notes)
    return f"**Table {escape_markdown(table.number)}.** {escape_markdown(table.caption)}\n\n{grid}\n\n{notes}"


_LATEX_START = r"""% needs \usepackage{booktabs}; with \usepackage{graphicx} a wide table shrinks to the line
\providecommand{\resizebox}[3]{#3}
"""
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        # LaTeX reads [ and * after a line break as arguments of the line break.
        **{character: f"{{{character}}}" for character in "[]*"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        "–": "--",
    }
)


def _latex(table: BuiltTable) -> str:
    def escape(text: str) -> str:
        return _one_line(text).translate(_LATEX)

    def superscript(mark: str) -> str:
        return rf"\textsuperscript{{{mark}}}"

    groups, rules, first = "", "", 2
    for group, size in _groups(table):
        groups += rf" & \multicolumn{{{size}}}{{c}}{{{escape(group)}}}"
        rules += rf"\cmidrule(lr){{{first}-{first + size - 1}}}"
        first += size
    lines = [rf"{groups} \\", rules]
    lines.append(f"{' & '.join(['Method', *(escape(column.name) for column in table.columns)])} \\\\")
    first_column, kind = "l", ""
    for row_kind, (label, *cells) in _rows(table, escape, bold=lambda text: rf"\textbf{{{text}}}", mark=superscript):
        if row_kind != kind:
            lines.append(r"\midrule")
        if row_kind == "measured":  # its label is long
            first_column, label = r"p{0.3\linewidth}", rf"\raggedright {label}"
        kind = row_kind
        lines.append(f"{' & '.join([label, *cells])} \\\\")
    notes = [f"{superscript(mark) if mark else ''}{escape(text)}\\par" for mark, text in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.caption)}}}",
            rf"\label{{tab:intl-bench-{re.sub(r'[^A-Za-z0-9-]+', '-', table.number)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{first_column}{'r' * len(table.columns)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\smallskip\footnotesize\raggedright",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def _html(table: BuiltTable) -> str:
    groups = "".join(
        f'<th colspan="{size}" scope="colgroup">{html.escape(group)}</th>' for group, size in _groups(table)
    )
    names = "".join(f'<th scope="col">{html.escape(column.name)}</th>' for column in table.columns)
    body = []
    for kind, (label, *cells) in _rows(
        table, html.escape, bold=lambda text: f"<strong>{text}</strong>", mark=lambda mark: f"<sup>{mark}</sup>"
    ):
        values = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr class="{kind}"><th scope="row">{label}</th>{values}</tr>')
    width = len(table.columns) + 1
    notes = [
        f'<tr><td colspan="{width}">{f"<sup>{mark}</sup> " if mark else ""}{html.escape(text)}</td></tr>'
        for mark, text in table.notes
    ]
    return "\n".join(
        [
            "<table>",
            f"<caption>Table {html.escape(table.number)}. {html.escape(table.caption)}</caption>",
            "<thead>",
            f'<tr><th rowspan="2" scope="col">Method</th>{groups}</tr>',
            f"<tr>{names}</tr>",
            "</thead>",
            "<tbody>",
            *body,
            "</tbody>",
            "<tfoot>",
            *notes,
            "</tfoot>",
            "</table>",
            "",
        ]
    )


def _groups(table: BuiltTable) -> Iterator[tuple[str, int]]:
    for group, columns in itertools.groupby(table.columns, key=lambda column: column.group):
        yield group, len(list(columns))


def _rows(table: BuiltTable, escape: Markup, *, bold: Markup, mark: Markup) -> Iterator[tuple[str, list[str]]]:
    """Yield (kind, [label, cell, ...]) for each row, escaped and with markup."""
    for _, group in itertools.groupby(table.frame.to_dict("records"), key=lambda line: line["row"]):
        lines = list(group)
        first = lines[0]
        label = escape(first["label"])
        label = bold(label) if first["bold_label"] else label
        cells = [bold(escape(line["cell"])) if line["bold"] else escape(line["cell"]) for line in lines]
        yield first["kind"], [label + "".join(mark(one) for one in first["marks"].split()), *cells]


def _one_line(text: str) -> str:
    return " ".join(text.split())
