"""All faults of a data set as one error of one line: each kind with its number and its first entries."""

import dataclasses
from collections.abc import Hashable, Sequence

from intl_bench.core.errors import InputError

_KINDS = 5  # kinds that a message describes
_ENTRIES = 5  # entries that a message names of each kind


@dataclasses.dataclass
class Fault:
    """Faults of one kind.

    Attributes:
        text: what is wrong with the first entry, what was found and what was expected.
        remedy: what to do.
        entries: names of the first entries.
        count: number of all entries.
    """

    text: str
    remedy: str
    entries: list[str]
    count: int


class FaultsError(InputError):
    """Error for faults of several kinds.

    Attributes:
        faults: one for each kind.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)


class Faults:
    """The faults that were found so far.

    Args:
        where: beginning of the message, such as "PATH: ".
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._kinds: dict[Hashable, Fault] = {}

    def add(self, kind: Hashable, text: str, remedy: str, entries: Sequence[str], count: int | None = None) -> None:
        """Add faults of one kind.

        Args:
            kind: faults of an equal kind are counted together.
            text: what is wrong with the first entry, what was found and what was expected.
            remedy: what to do.
            entries: names of the entries, or of the first of them.
            count: number of entries, by default that of `entries`.
        """
        known = self._kinds.setdefault(kind, Fault(text, remedy, [], 0))
        known.count += len(entries) if count is None else count
        known.entries += entries[: _ENTRIES - len(known.entries)]

    def raise_any(self) -> None:
        """Raise the error that describes all faults, if there are any.

        Raises:
            FaultsError: there is a fault.
        """
        kinds = [*self._kinds.values()]
        if not kinds:
            return
        total = sum(kind.count for kind in kinds)
        remedies = [*dict.fromkeys(kind.remedy for kind in kinds[:_KINDS])]
        if len(kinds) == 1:
            raise FaultsError(f"{self._where}{_describe(kinds[0])}; {remedies[0]}", kinds)
        parts = [f"({number}) {_describe(kind)}" for number, kind in enumerate(kinds[:_KINDS], start=1)]
        more = [f"and {len(kinds) - _KINDS} more kinds"] if len(kinds) > _KINDS else []
        raise FaultsError(
            f"{self._where}{total:,} faults of {len(kinds)} kinds: {'; '.join([*parts, *more])}; {'; '.join(remedies)}",
            kinds,
        )


def _describe(kind: Fault) -> str:
    """Describe a kind by its first entry, and name the other ones."""
    if kind.count == 1:
        return kind.text
    dots = ", ..." if kind.count > len(kind.entries) else ""
    return f"{kind.text} ({kind.count:,} such: {', '.join(kind.entries)}{dots})"
