"""Tables as one self-contained HTML page, which loads nothing from elsewhere."""

from collections.abc import Sequence

from intl_bench.tables.frame import BuiltTable
from intl_bench.tables.html.grid import table_html
from intl_bench.tables.html.page import Page

__all__ = ["html_tables"]


def html_tables(tables: Sequence[BuiltTable]) -> str:
    """Return a page with the tables. The details of a cell open on hover, focus and touch; notes are below a table."""
    page = Page(title="Results")
    for table in tables:
        page.link(f"table-{table.number}", f"Table {table.number}")
        page.add(f"<section>\n{table_html(table, page, level=2)}</section>\n")
    return page.text()
