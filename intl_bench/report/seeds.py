"""The values of the seeds of a table's measured rows, as dots."""

import html
from collections import defaultdict
from typing import Any

from intl_bench.report.charts import Dots, dot_chart
from intl_bench.tables.frame import BuiltTable
from intl_bench.tables.html.grid import seed_name
from intl_bench.tables.html.published_values import difference_to

_LEGEND = (
    '<p class="caption">Dots: one for each seed. Bar: their mean. Diamond: the published value of the same method, '
    "where scale and protocol allow the comparison. A number in brackets is the row's footnote.</p>\n"
)


def dots_html(table: BuiltTable) -> str:
    """Return a figure for each column with measured values; an empty text if there is none."""
    lines: list[dict[str, Any]] = table.frame.to_dict("records")  # type: ignore[assignment]
    published: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["kind"] == "published":
            published[line["column"]].append(line)
    figures = []
    for column in table.columns:
        rows = []
        for line in lines:
            found = table.measurements.get((line["row"], line["column"]), ()) if line["column"] == column.key else ()
            if not found:
                continue
            paper = None
            if table.datasets is None or found[0].record.dataset in table.datasets:
                paper = difference_to(published[column.key], line, found[0].record)
            rows.append(
                Dots(
                    name=f"{line['method']} [{line['marks']}]" if line["marks"] else line["method"],
                    values=[(seed_name(one.record), one.value) for one in found],
                    mean=line["mean"],
                    published=None if paper is None or paper.unlike else paper.value,
                )
            )
        if rows:
            figures.append(f"<figure><h4>{html.escape(column.flat)}</h4>{dot_chart(rows)}</figure>\n")
    several = any(len(one) > 1 for one in table.measurements.values())
    if not figures or not several:
        return ""
    body = f'{_LEGEND}<div class="figures">\n{"".join(figures)}</div>\n'
    return f"<details open><summary>Seeds</summary>\n{body}</details>\n"
