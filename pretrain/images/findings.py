"""What `intl-bench data check` found, and its text of at most 80 columns."""

import dataclasses
from collections.abc import Sequence

from intl_bench.core.planned import table, wrap

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
        setting: the end of the remedy that is pasted into a shell, so it is never broken into lines; or "".
    """

    what: str
    stops: bool = False
    count: int = 0
    entries: Sequence[str] = ()
    remedy: str = ""
    setting: str = ""


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

    def add(
        self, what: str, entries: Sequence[str], *, stops: bool = False, remedy: str = "", setting: str = ""
    ) -> None:
        """Add a finding about entries, if there are any."""
        if entries:
            self.findings.append(
                Finding(what=what, stops=stops, count=len(entries), entries=entries, remedy=remedy, setting=setting)
            )

    def format(self, *, width: int = 80, everything: bool = False) -> str:
        """Return the report as text.

        Args:
            width: columns of a line; a longer name is not broken.
            everything: whether all entries and classes are named.
        """
        parts = [wrap(self.title, width, after="  ")]
        if len(self.splits) > 1:  # more than the header
            parts.append(table("", self.splits))
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
        return table("", [self.group, *rows])


def _describe(finding: Finding, width: int, everything: bool) -> str:
    what = f"{finding.what}: {_number(finding.count)}" if finding.count else finding.what
    lines = [wrap(what, width, "- ", "  ")]
    shown = list(finding.entries)
    if not everything:
        shown = shown[: _FAULTS_SHOWN if finding.stops else _NOTES_SHOWN]
    left = finding.count - len(shown)
    more = [f"and {_number(left)} more"] if left > 0 and shown else []
    below = [*shown, *more]
    if shown and not (finding.stops or everything):
        below = [" ".join([", ".join(shown), *more])]
    if finding.remedy:
        below.append(f"-> {finding.remedy}")
    lines += [wrap(text, width, " " * 4, " " * 6) for text in below]
    return "\n".join([*lines, f"{'':6}{finding.setting}"] if finding.setting else lines)


def _number(value: int) -> str:
    return f"{value:,}"
