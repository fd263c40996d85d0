"""One table as HTML: sortable columns, aligned numbers, and the details of every cell."""

import html
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from intl_bench.records import ResultRecord
from intl_bench.tables.footnotes import value_text
from intl_bench.tables.frame import BuiltTable
from intl_bench.tables.html.page import Page, identifier
from intl_bench.tables.html.published_values import Difference, difference_to
from intl_bench.tables.model import MISSING, Measurement

Line = Mapping[str, Any]
_MINUS = "\u2212"


def table_html(table: BuiltTable, page: Page, *, level: int) -> str:
    """Return a heading of a level, the caption, the table and its notes; store the details of the cells in the page."""
    anchor = identifier(f"table-{table.number}")
    lines: list[dict[str, Any]] = table.frame.to_dict("records")  # type: ignore[assignment]
    published: dict[str, list[Line]] = defaultdict(list)
    decimals: dict[str, int] = defaultdict(int)
    for line in lines:
        if line["kind"] == "published":
            published[line["column"]].append(line)
        decimals[line["column"]] = max(decimals[line["column"]], _decimals(line["cell"]))
    names = {column.key: column.flat for column in table.columns}
    body = []
    for _, group in itertools.groupby(lines, key=lambda line: line["row"]):
        row = list(group)
        cells = "".join(_cell(table, line, names, published, decimals[line["column"]], page) for line in row)
        body.append(
            f'<tr class="{row[0]["kind"]}">{_label(row[0], anchor, tagged=table.head == "Method")}{cells}</tr>\n'
        )
    kinds = {line["kind"] for line in lines}
    return (
        f'<h{level} id="{anchor}">Table {html.escape(table.number)}</h{level}>\n'
        f'<p class="caption">{html.escape(table.caption)}</p>\n'
        f"{_LEGEND if len(kinds) > 1 else ''}"
        f"{_FILTER if len(kinds) > 1 else ''}"
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{anchor}">\n'
        f'<table aria-labelledby="{anchor}">\n'
        f"<thead>\n{_head(table)}</thead>\n<tbody>\n{''.join(body)}</tbody>\n</table>\n</div>\n"
        f"{_notes(table, anchor)}"
    )


_LEGEND = """\
<p class="caption">Below a measured value: ± standard deviation (number of pre-trainings), and the difference to the
published value of the same method, in brackets where the scale or the protocol differs.</p>
"""
_FILTER = """\
<div class="filter" role="group" aria-label="Rows">
<button type="button" data-show="all" aria-pressed="true">All rows</button>
<button type="button" data-show="measured" aria-pressed="false">Measured</button>
<button type="button" data-show="published" aria-pressed="false">Published</button>
</div>
"""


def _head(table: BuiltTable) -> str:
    groups = "".join(
        f'<th colspan="{len(list(columns))}" scope="colgroup">{html.escape(group)}</th>'
        for group, columns in itertools.groupby(table.columns, key=lambda column: column.group)
    )
    names = "".join(
        f'<th scope="col"><button type="button" class="sort">{html.escape(column.name)}</button></th>'
        for column in table.columns
    )
    method = f'<th rowspan="2" scope="col"><button type="button" class="sort text">{table.head}</button></th>'
    return f"<tr>{method}{groups}</tr>\n<tr>{names}</tr>\n"


def _label(line: Line, anchor: str, *, tagged: bool) -> str:
    """Return the heading of a row: the method, what the label says about it, and if `tagged` how it was obtained."""
    tag = line["kind"] if line["kind"] == "published" else f"measured, {line['scale']} scale"
    start, end = f"{line['method']} (", f"; {tag})"
    text, about = line["label"], ""
    if text.startswith(start) and text.endswith(end):
        text, about = line["method"], f'<span class="of">{html.escape(text[len(start) : -len(end)])}</span>'
    name = f"<strong>{html.escape(text)}</strong>" if line["bold_label"] else html.escape(text)
    marks = "".join(
        f'<sup><a href="#{identifier(f"{anchor}-note-{mark}")}">{html.escape(mark)}</a></sup>'
        for mark in line["marks"].split()
    )
    shown = f'<span class="tag">{html.escape(tag)}</span>' if tagged else ""
    return (
        f'<th scope="row" data-value="{html.escape(line["label"])}"><span class="name">{name}{marks}</span>{about}'
        f"{shown}</th>"
    )


def _cell(
    table: BuiltTable,
    line: Line,
    names: Mapping[str, str],
    published: Mapping[str, Sequence[Line]],
    decimals: int,
    page: Page,
) -> str:
    text = line["cell"]
    if text == MISSING or line["mean"] != line["mean"]:  # NaN
        return f"<td>{html.escape(text)}</td>"
    mean, spread = re.match(r"([^\s±]*)\s*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    measured = table.measurements.get((line["row"], line["column"]), ())
    difference = None
    if measured and (table.datasets is None or measured[0].record.dataset in table.datasets):
        difference = difference_to(published[line["column"]], line, measured[0].record)
    about = page.detail(_details(line, names[line["column"]], measured, difference))
    number = f"<strong>{html.escape(mean)}</strong>" if line["bold"] else html.escape(mean)
    # The missing decimals of a shorter number take their place, so that the points stand below each other.
    missing = "0" * (decimals - _decimals(text))
    pad = f' data-pad="{"" if _decimals(text) else "."}{missing}"' if missing else ""
    below = f'<span class="spread">{html.escape(spread.replace("±", "± ").replace("  ", " "))}</span>' if spread else ""
    if difference is not None:
        signed = f"{abs(difference.difference):.{max(1, _decimals(text))}f}"
        signed = f"{_MINUS if difference.difference < 0 else '+'}{signed}"
        unlike = bool(difference.unlike)
        below += f'<span class="delta{" unlike" if unlike else ""}">{f"({signed})" if unlike else signed}</span>'
    return (
        f'<td data-value="{line["mean"]!r}"><button type="button" class="cell" data-about="{about}">'
        f'<span class="mean"{pad}>{number}</span>{below}</button></td>'
    )


def _details(
    line: Line, column: str, measurements: Sequence[Measurement], difference: Difference | None
) -> dict[str, object]:
    """Return what the page tells about a cell; see `Page.detail`."""
    measured = line["kind"] == "measured"
    facts = [("Kind", f"measured at {line['scale']} scale" if measured else "published")]
    facts.append(("Source", line["source"]))
    facts += [("Value", f"{line['mean']:.4f}" if measured else line["cell"])]
    if measured and line["std"] == line["std"]:
        facts.append(("Standard deviation", f"{line['std']:.4f}, over the {line['spread']} seeds"))
    if difference is not None:
        facts.append(("Published", f"{difference.value:g} ({difference.method})"))
        if difference.unlike:
            facts.append(("Not comparable", "; ".join(difference.unlike)))
    if measurements:
        days = sorted(one.record.created[:10] for one in measurements)
        facts.append(("Measured on", " to ".join(dict.fromkeys((days[0], days[-1])))))
    protocol = json.loads(line["protocol"] or "{}")
    groups = [
        (name, [(key.removeprefix("pretrain_").replace("_", " "), value_text(part[key])) for key in sorted(part)])
        for name, part in (
            [("Evaluation", protocol.get("evaluation", {})), ("Pre-training", protocol.get("pretraining", {}))]
            if measured
            else [("Protocol", protocol)]
        )
        if part
    ]
    seeds = sorted((seed_name(one.record), one.value) for one in measurements)
    return {"title": f"{line['method']}: {column}", "facts": facts, "seeds": seeds, "groups": groups}


def seed_name(record: ResultRecord) -> str:
    """Return the seeds of a record in words."""
    trained = "unknown" if record.pretrain_seed is None else record.pretrain_seed
    return f"pre-training seed {trained}, transfer seed {record.transfer_seed}"


def _notes(table: BuiltTable, anchor: str) -> str:
    if not table.notes:
        return ""
    items = "".join(
        f'<li id="{identifier(f"{anchor}-note-{mark}")}"><sup>{html.escape(mark)}</sup> {html.escape(text)}</li>\n'
        if mark
        else f"<li>{html.escape(text)}</li>\n"
        for mark, text in table.notes
    )
    return f'<details class="notes"><summary>Notes</summary>\n<ul>\n{items}</ul>\n</details>\n'


def _decimals(text: str) -> int:
    """Return the number of decimals of the number that a cell's text begins with."""
    return len(found[1]) if (found := re.match(r"\d+\.(\d+)", text)) else 0
