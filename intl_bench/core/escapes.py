"""Text that other programs show as it is: in cells of CSV, and in Markdown."""

import re

import pandas as pd

_FORMULA = re.compile(r"'*(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r])")


def csv_text(frame: pd.DataFrame) -> str:
    """Return a frame as CSV in which no text is a formula.

    A spreadsheet runs a cell that begins with =, +, - or @, also after a blank and in full width. An apostrophe before
    it makes the cell a text, also a text that has apostrophes before a formula. Numbers stay numbers.
    """
    safe = frame.map(lambda value: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value)
    return safe.to_csv(index=False, lineterminator="\n")


def text_of_csv(cell: str) -> str:
    """Return the text of which `csv_text` made a cell."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell[1:]) else cell


def one_line(text: str) -> str:
    """Return a text without line breaks."""
    return " ".join(text.split())


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_<&|~\[\]])", r"\\\1", one_line(text))
