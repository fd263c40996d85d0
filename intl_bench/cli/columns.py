"""Rows of text in aligned columns, for a terminal or a pipe."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

Row = Mapping[str, str]


def width() -> int | None:
    """Return the width of the terminal that gets the output; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_format(chosen: str | None) -> str:
    """Return the format of a table; without a choice "text" for a terminal and "markdown" for a pipe or a file."""
    return chosen or ("text" if sys.stdout.isatty() else "markdown")


def align(rows: Sequence[Row], width: int | None) -> str:
    """Align rows in columns. Of the last columns, those that do not fit go below their row, indented.

    Args:
        rows: texts by the name of the column, the same names in all rows. A column without texts is left out.
        width: of the terminal in characters; None for a pipe, where each row is one line.
    """
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    sizes = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
    fitting = len(columns)
    while width is not None and fitting > 1 and sum(sizes[:fitting]) + 2 * (fitting - 1) > width:
        fitting -= 1
    lines = []
    for row in ({name: name.upper() for name in columns}, *rows):
        cells = [(row[name] or "–").ljust(size) for name, size in zip(columns[:fitting], sizes, strict=False)]
        lines.append("  ".join(cells).rstrip())
        for text in filter(None, (row[name] for name in columns[fitting:])):
            # A path or a command stays whole, so that it can be copied.
            indented = textwrap.TextWrapper(width or 0, initial_indent="    ", subsequent_indent="    ")
            indented.break_long_words = indented.break_on_hyphens = False
            lines += indented.wrap(text)
    return "\n".join(lines)
