"""Words for a terminal: labeled lines of at most 80 columns, tables, sizes and times."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from intl_bench.core import inputs

WIDTH = 80
_INDENT = 11


def wrap(text: str, width: int, first: str = "", after: str = "") -> str:
    """Break a text into lines. Long words, such as paths, stay whole.

    Args:
        first, after: what the first line and the lines after it begin with.
    """
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=after, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines or [first])


def row(label: str, text: str) -> str:
    """Return a labeled paragraph."""
    return wrap(text, WIDTH, f"{label:{_INDENT}}", " " * _INDENT)


def rows(parts: Iterable[tuple[str, str]]) -> str:
    """Return labeled paragraphs, one below the other; those without text are left out."""
    return "\n".join(row(label, text) for label, text in parts if text)


def table(label: str, lines: Sequence[Sequence[str]]) -> str:
    """Return a table: the first line is the header, the first column is aligned to the left.

    Args:
        label: what is left of the header; "" for a table without labels.
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    indent = _INDENT if label else 0
    made = []
    for number, (first, *others) in enumerate(lines):
        cells = [f"{first:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))]
        made.append(f"{'' if number else label:{indent}}{'  '.join(cells)}".rstrip())
    return "\n".join(made)


def changes(old: Any, new: Any, key: str = "") -> list[tuple[str, str]]:
    """Return the differences of two resolved configurations as rows of the label "changed", one for each setting.

    Sections, and lists of sections of equal length, are compared setting by setting.
    """
    found = _changes(old, new, key)
    return [("" if number else "changed", line) for number, line in enumerate(found)]


def _changes(old: Any, new: Any, key: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        parts = [(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and dict in {*map(type, old)}:
        parts = [(str(number), *pair) for number, pair in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{key}: {_value(old)} -> {_value(new)}"]
    return [line for name, a, b in parts for line in _changes(a, b, f"{key}.{name}" if key else name)]


def _value(value: Any) -> str:
    if isinstance(value, list) and dict in {*map(type, value)}:
        return f"{len(value)} sections"
    if isinstance(value, str) and 0 < len(value) <= 60:
        return value
    return "null" if value is None else inputs.shorten(value)


def size(n: float) -> str:
    """Return a number of bytes in words, such as "1.4 GiB"."""
    unit, power = next((u, p) for u, p in (("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)) if n >= 2**p or p == 0)
    amount = n / 2**power
    return f"{amount:.1f} {unit}" if power and amount < 100 else f"{amount:,.0f} {unit}"


def workers(count: int, cores: int) -> str:
    """Describe the processes that load images."""
    return f"{count} worker{'' if count == 1 else 's'} on {cores} core{'' if cores == 1 else 's'}"


def disk(needed: int, free: int) -> str:
    """Describe the space that is needed on a disk beside what is free."""
    words = f"{size(needed)} needed at most, {size(free)} free"
    return words if needed <= free else f"{words}: TOO LITTLE; free some space, or work in a folder of another disk"


def duration(seconds: float) -> str:
    """Return a time in words with two digits or more, such as "350 ms", "4.2 min", "31 h" or "5.3 days"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48), ("days", 86400, float("inf"))):
        amount = seconds / length
        if amount < most:
            return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:,.0f} {unit}"
    raise ValueError(f"seconds={seconds}: expected a number")


def clock(seconds: float) -> str:
    """Return a time that changes while somebody looks at it, such as "0:01:30" or "31:00:00"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
