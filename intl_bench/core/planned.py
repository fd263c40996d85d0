"""The words of a plan, which `--dry-run` prints: labeled lines of at most 80 columns, sizes, times and changes."""

import textwrap
from collections.abc import Iterable

WIDTH = 80
_INDENT = 11


def row(label: str, text: str) -> str:
    """Return a labeled paragraph. Long words, such as paths, stay whole."""
    lines = textwrap.wrap(text, WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False) or [""]
    return f"\n{'':{_INDENT}}".join([f"{label:{_INDENT}}{lines[0]}", *lines[1:]])


def rows(parts: Iterable[tuple[str, str]]) -> str:
    """Return labeled paragraphs, one below the other; those without text are left out."""
    return "\n".join(row(label, text) for label, text in parts if text)


def size(n: float) -> str:
    """Return a number of bytes in words, such as "1.4 GiB"."""
    unit, power = next((u, p) for u, p in (("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)) if n >= 2**p or p == 0)
    amount = n / 2**power
    return f"{amount:.1f} {unit}" if power and amount < 100 else f"{amount:,.0f} {unit}"


def duration(seconds: float) -> str:
    """Return a time in words with two digits or more, such as "12 s", "4.2 min", "31 h" or "5.3 days"."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48), ("days", 86400, float("inf"))):
        amount = seconds / length
        if amount < most:
            return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:,.0f} {unit}"
    raise ValueError(f"seconds={seconds}: expected a number")
