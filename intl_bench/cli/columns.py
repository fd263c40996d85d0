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
    """Align rows in columns. If they do not fit, the last column goes below its row, indented.

    Args:
        rows: texts by the name of the column, the same names in all rows. A column without texts is left out.
        width: of the terminal in characters; None for a pipe, where each row is one line.
    """
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    sizes = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    *first, last = columns
    one_line = width is None or sum(sizes.values()) + 2 * len(first) <= width
    lines = []
    for row in ({name: name.upper() for name in columns}, *rows):
        cells = [(row[name] or "–").ljust(sizes[name]) for name in first]
        if one_line:
            lines.append("  ".join([*cells, row[last]]).rstrip())
        else:
            lines.append("  ".join(cells).rstrip())
            lines += textwrap.wrap(row[last], width or 0, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
