"""What `intl-bench data check` found, and its text of at most 80 columns."""

import dataclasses
import textwrap
from collections.abc import Sequence

_FAULTS_SHOWN, _NOTES_SHOWN = 5, 3  # entries of a finding
_GROUPS_SHOWN = 20  # classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong with a data set, or that its user should know.

    Attributes:
        what: a whole sentence, or what the entries are, such as "unreadable images".
        stops: whether it would stop a run.
        count: number of entries, also of those that are not in `entries`; 0 is not shown.
        entries: names of all or of the first entries.
        remedy: what to do, or "".
    """

    what: str
    stops: bool = False
    count: int = 0
    entries: Sequence[str] = ()
    remedy: str = ""


@dataclasses.dataclass(kw_only=True)
class Report:
    """The findings of a data set.

    Attributes:
        title: what the data set is.
        splits: a row of cells for each split, below the cells of a header.
        findings: in the order in which they are printed.
        groups: for each class its name and its number of images or objects in each split, in the order of the labels.
        group: header of `groups`: what they are, and the names of the splits.
    """

    title: str
    splits: list[Sequence[str]] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    groups: list[tuple[str, Sequence[int]]] = dataclasses.field(default_factory=list)
    group: Sequence[str] = ()

    @property
    def stops(self) -> int:
        """Number of findings that would stop a run."""
        return sum(finding.stops for finding in self.findings)

    def add(self, what: str, entries: Sequence[str], *, stops: bool = False, remedy: str = "") -> None:
        """Add a finding about entries, if there are any."""
        if entries:
            self.findings.append(Finding(what=what, stops=stops, count=len(entries), entries=entries, remedy=remedy))

    def format(self, *, width: int = 80, everything: bool = False) -> str:
        """Return the report as text.

        Args:
            width: columns of a line; a longer name is not broken.
            everything: whether all entries and classes are named.
        """
        parts = ["\n".join(_wrap(self.title, width, ""))]
        if self.splits:
            parts.append(_align(self.splits))
        faults = [finding for finding in self.findings if finding.stops]
        notes = [finding for finding in self.findings if not finding.stops]
        for title, findings in (("Would stop a run", faults), ("Notes", notes)):
            if findings:
                parts.append("\n".join([title, *(_describe(finding, width, everything) for finding in findings)]))
        if not faults:
            parts.append("Nothing would stop a run.")
        if self.groups:
            parts.append(self._format_groups(everything))
        return "\n\n".join(parts)

    def _format_groups(self, everything: bool) -> str:
        rows = [(name, *map(_number, counts)) for name, counts in self.groups]
        if len(rows) > _GROUPS_SHOWN and not everything:
            order = sorted(range(len(rows)), key=lambda index: -self.groups[index][1][0])
            half = _GROUPS_SHOWN // 2
            middle = (f"... {len(rows) - _GROUPS_SHOWN} more", *[""] * len(self.groups[0][1]))
            rows = [*(rows[i] for i in order[:half]), middle, *(rows[i] for i in order[-half:])]
        return _align([self.group, *rows])


def _describe(finding: Finding, width: int, everything: bool) -> str:
    what = f"{finding.what}: {_number(finding.count)}" if finding.count else finding.what
    lines = _wrap(what, width, "- ")
    shown = list(finding.entries)
    if not everything:
        shown = shown[: _FAULTS_SHOWN if finding.stops else _NOTES_SHOWN]
    left = finding.count - len(shown)
    more = [f"and {_number(left)} more"] if left > 0 and shown else []
    if finding.stops or everything:
        for entry in [*shown, *more]:
            lines += _wrap(entry, width, "    ")
    elif shown:
        lines += _wrap(" ".join([", ".join(shown), *more]), width, "    ")
    if finding.remedy:
        lines += _wrap(f"-> {finding.remedy}", width, "    ")
    return "\n".join(lines)


def _wrap(text: str, width: int, indent: str) -> list[str]:
    """Break a text into lines; names are not broken."""
    after = " " * (2 if indent == "- " else len(indent) + 2)
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=after, break_long_words=False, break_on_hyphens=False
    )


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )


def _number(value: int) -> str:
    return f"{value:,}"
