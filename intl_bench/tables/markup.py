"""What the formats share: headings of groups, and rows with markup."""

import itertools
from collections.abc import Callable, Iterator

from intl_bench.tables.frame import BuiltTable

Markup = Callable[[str], str]


def groups(table: BuiltTable) -> Iterator[tuple[str, int]]:
    """Yield each heading of neighboring columns with the number of these columns."""
    for group, columns in itertools.groupby(table.columns, key=lambda column: column.group):
        yield group, len(list(columns))


def rows(
    table: BuiltTable, escape: Markup, *, bold: Markup, mark: Markup, label: Markup | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield (kind, [label, cell, ...]) for each row, escaped and with markup.

    Args:
        label: escapes a label; None for `escape`.
    """
    for _, group in itertools.groupby(table.frame.to_dict("records"), key=lambda line: line["row"]):
        lines = list(group)
        first = lines[0]
        name = (label or escape)(first["label"])
        name = bold(name) if first["bold_label"] else name
        cells = [bold(escape(line["cell"])) if line["bold"] else escape(line["cell"]) for line in lines]
        yield first["kind"], [name + "".join(mark(one) for one in first["marks"].split()), *cells]
