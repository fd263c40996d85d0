"""Tables for a terminal: they fit its width, without markup and escapes."""

import shutil
import textwrap
from collections.abc import Collection, Iterator, Sequence

from intl_bench.core.escapes import one_line
from intl_bench.tables.frame import BuiltTable
from intl_bench.tables.markup import rows

_GAP = "  "
_BOLD = "*: bold; in a published row as in the paper."


def text(tables: Sequence[BuiltTable]) -> str:
    """Return tables that fit the width of the terminal, and 80 characters if there is none."""
    return "\n".join(_text(table) for table in tables)


def grid(headings: Sequence[str], cells: Sequence[Sequence[str]], *, texts: Collection[int] = ()) -> str:
    """Return aligned columns that fit the width of the terminal.

    If they do not fit, the first column is wrapped. Columns that still do not fit follow in further blocks, each
    with the first column.

    Args:
        headings: of the columns; they are wrapped.
        cells: the texts of each row, as many as headings.
        texts: the positions of columns of text, which are left-aligned and wrapped. The first column is one of them.
    """
    width = terminal_width()
    columns = [[one_line(row[position]) for row in cells] for position in range(len(headings))]
    sizes = [
        max(len(word) for word in ("", *heading.split(), *column))
        for heading, column in zip(headings, columns, strict=True)
    ]
    if sum(sizes) + len(_GAP) * (len(sizes) - 1) > width:
        for position in {0, *texts}:
            sizes[position] = min(sizes[position], width * (2 if position == 0 else 3) // 6)
    wrapped = [
        [_wrap(cell, size) if position in {0, *texts} else [cell] for cell in column]
        for position, (column, size) in enumerate(zip(columns, sizes, strict=True))
    ]
    blocks = []
    for positions in _blocks(sizes, width):
        names = [
            textwrap.wrap(headings[p], sizes[p], break_long_words=False, break_on_hyphens=False) for p in positions
        ]
        height = max(map(len, names))
        lines = [[*[""] * (height - len(name)), *name] for name in names]
        lines = [[*some, "-" * sizes[p]] for some, p in zip(lines, positions, strict=True)]
        for row in range(len(cells)):
            here = [wrapped[p][row] for p in positions]
            height = max(map(len, here))
            lines = [[*some, *cell, *[""] * (height - len(cell))] for some, cell in zip(lines, here, strict=True)]
        padded = [
            [line.ljust(sizes[p]) if p in {0, *texts} else line.rjust(sizes[p]) for line in some]
            for some, p in zip(lines, positions, strict=True)
        ]
        blocks.append("\n".join(_GAP.join(line).rstrip() for line in zip(*padded, strict=True)))
    return "\n\n".join(blocks)


def paragraph(text: str, mark: str = "") -> str:
    """Return a text that is wrapped to the width of the terminal, below its mark."""
    start = f"{mark} " if mark else ""
    return textwrap.fill(
        one_line(text),
        terminal_width(),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
    )


def terminal_width() -> int:
    """Return the width of the terminal in characters, at least 40."""
    return max(40, shutil.get_terminal_size().columns)


def _text(table: BuiltTable) -> str:
    body = rows(table, one_line, bold=lambda text: f"*{text}", mark=lambda mark: f" [{mark}]")
    lines = [cells for _, cells in body]
    parts = [
        paragraph(f"Table {table.number}. {table.caption}"),
        grid([table.head, *(column.flat for column in table.columns)], lines),
    ]
    notes = [paragraph(note, f"[{mark}]" if mark else "-") for mark, note in table.notes]
    if table.frame[["bold", "bold_label"]].any(axis=None):
        notes.insert(0, paragraph(_BOLD, "-"))
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _wrap(cell: str, size: int) -> list[str]:
    return textwrap.wrap(cell, size, subsequent_indent=_GAP, break_on_hyphens=False) or [""]


def _blocks(sizes: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the positions of the columns of each block, the first column in all."""
    block, used = [0], sizes[0]
    for position, size in enumerate(sizes[1:], start=1):
        if len(block) > 1 and used + len(_GAP) + size > width:
            yield block
            block, used = [0], sizes[0]
        block.append(position)
        used += len(_GAP) + size
    yield block
