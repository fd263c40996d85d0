"""The lists of a COCO file as columns. Faults of all rows are collected."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from intl_bench.core.inputs import shorten
from transfer.detection.annotations.faults import Faults

CORRECT = "correct it, or remove it from the file"
_NUMBER_TYPES = {int, float}
_EXACT = 2**53  # up to here a float is exactly one whole number
_DIGITS = re.compile(r"\s*[+-]?[0-9]{1,40}\s*")
_INT64 = np.iinfo(np.int64)


def read_id(value: Any) -> int | None:
    """Return an id, which may be written as 5, 5.0 or "5"; None if the value is not a whole number."""
    if type(value) is int:
        return value
    if isinstance(value, float | np.floating):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) <= _EXACT else None
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) else None
    return int(value) if isinstance(value, np.integer) else None


class Rows:
    """A list of the file. Each of its rows is a JSON object.

    Attributes:
        rows: the rows that are objects.
        sound: (rows,) bool, whether no fault of the row was found yet.
        noun: name of one row, for messages.
    """

    def __init__(self, faults: Faults, document: Mapping[str, Any], key: str, noun: str, *, may_be_empty: bool) -> None:
        self.faults, self.key, self.noun = faults, key, noun
        found = document.get(key)
        if not isinstance(found, list) or not (found or may_be_empty):
            what = "missing" if key not in document else "an empty list" if found == [] else shorten(found)
            expected = f"a list of at least one {noun}" if found == [] else "a list"
            faults.add(key, f"{key}: {what}; expected {expected}", "use an instances JSON of COCO", [key])
            found = []
        others = [i for i, row in enumerate(found) if type(row) is not dict]
        if others:
            text = f"{key}[{others[0]}]: {shorten(found[others[0]])}; expected an object"
            faults.add((key, "object"), text, CORRECT, [f"{key}[{i}]" for i in others])
        self.rows: list[dict[str, Any]] = [row for row in found if type(row) is dict] if others else found
        self._places = [i for i, row in enumerate(found) if type(row) is dict] if others else range(len(found))
        self.sound = np.ones(len(self.rows), bool)

    def name(self, index: int) -> str:
        """Return the id of a row for messages; without a valid id, its place in the list."""
        row_id = read_id(self.rows[index].get("id"))
        return f"{self.key}[{self._places[index]}]" if row_id is None else str(row_id)

    def describe(self, index: int) -> str:
        """Return the name of a row with the noun, for the beginning of a message."""
        name = self.name(index)
        return name if name.startswith(self.key) else f"{self.noun} {name}"

    def report(
        self,
        wrong: Iterable[int],
        field: str,
        found: Callable[[int], str],
        expected: str | Callable[[int], str],
        kind: str = "",
    ) -> None:
        """Add a fault of one field for the rows `wrong`.

        Args:
            found: describes the value of a row.
            expected: describes the allowed values, for the message.
            kind: tells kinds of faults of a field apart; by default `expected`.
        """
        indices = np.fromiter(wrong, np.int64)
        if not len(indices):
            return
        self.sound[indices] = False
        first = int(indices[0])
        wanted = expected if isinstance(expected, str) else expected(first)
        text = f"{self.describe(first)}: {field}: {found(first)}; expected {wanted}"
        names = [self.name(index) for index in indices[:10].tolist()]
        self.faults.add((self.key, field, kind or wanted), text, CORRECT, names, len(indices))

    def column(self, field: str, kinds: set[type], expected: str, neutral: Any) -> list[Any]:
        """Return a field of all rows.

        Args:
            kinds: the allowed types. `bool` is not an `int` here.
            expected: description of the allowed values, for the message.
            neutral: stands for a value that is missing or of another type, which is a fault.
        """
        return self._check([row.get(field, ...) for row in self.rows], field, kinds, expected, neutral)

    def optional(self, field: str, kinds: set[type], expected: str, default: Any) -> tuple[list[Any], np.ndarray]:
        """Return a field of all rows, and (rows,) bool, whether it is missing or null and so is `default`.

        The other arguments are those of `column`.
        """
        values = [row.get(field) for row in self.rows]
        missing = np.zeros(len(values), bool)
        if None in values:
            missing = np.fromiter((value is None for value in values), bool, len(values))
            values = [default if value is None else value for value in values]
        return self._check(values, field, kinds, expected, default), missing

    def _check(self, values: list[Any], field: str, kinds: set[type], expected: str, neutral: Any) -> list[Any]:
        if set(map(type, values)) <= kinds:
            return values
        wrong = [i for i, value in enumerate(values) if type(value) not in kinds]
        self.report(wrong, field, lambda i: "missing" if values[i] is ... else shorten(values[i]), expected)
        return [value if type(value) in kinds else neutral for value in values]

    def whole_numbers(self, field: str, expected: str, neutral: int, *, text: bool = True) -> list[int]:
        """Return a field of all rows as whole numbers, which may be written as 5, as 5.0, or with `text` as "5"."""
        values = [row.get(field, ...) for row in self.rows]
        if set(map(type, values)) == {int}:
            return values
        numbers = [None if type(value) is str and not text else read_id(value) for value in values]
        wrong = [i for i, number in enumerate(numbers) if number is None]
        self.report(wrong, field, lambda i: "missing" if values[i] is ... else shorten(values[i]), expected)
        return [neutral if number is None else number for number in numbers]

    def ids(self) -> np.ndarray:
        """Return the ids of the rows, int64 or Python's whole numbers if 64 bits do not suffice. They must differ."""
        values = self.whole_numbers("id", "a whole number of at most 64 bits", 0)
        if len({*values}) < len(values):
            first = dict(zip(reversed(values), reversed(range(len(values))), strict=True))
            again = [i for i, value in enumerate(values) if first[value] != i and self.sound[i]]
            self.report(again, "id", lambda i: "used twice", f"a different id for each {self.noun}")
        fit = not values or all(_INT64.min <= value <= _INT64.max for value in (min(values), max(values)))
        return np.array(values, np.int64 if fit else object)

    def find(self, field: str, known: np.ndarray, expected: str) -> np.ndarray:
        """Return the index in `known` of the id in `field` of each row, (rows,) int64; -1 is an unknown id, a fault."""
        values = self.whole_numbers(field, expected, 0)
        table = {value: index for index, value in enumerate(known.tolist())}
        try:
            return np.array([*map(table.__getitem__, values)], np.int64)
        except KeyError:
            places = np.array([table.get(value, -1) for value in values], np.int64)
        wrong = np.flatnonzero((places < 0) & self.sound)
        self.report(wrong, field, lambda i: f"{values[i]} is not in this file", expected, "unknown")
        return places

    def flags(self, field: str, expected: str = "0 or 1") -> tuple[np.ndarray, np.ndarray]:
        """Return a field of all rows as (rows,) bool, and (rows,) bool, whether it is missing and so is false.

        The values are 0 or 1, or false or true.
        """
        values, missing = self.optional(field, {int, bool, float}, expected, 0)
        if not {*values} <= {0, 1}:
            wrong = [i for i, value in enumerate(values) if value not in (0, 1)]
            self.report(wrong, field, lambda i: shorten(values[i]), expected)
        return np.array([value == 1 for value in values], bool), missing

    def flatten(self, field: str, lists: list[list[Any]], owner: np.ndarray | None = None) -> np.ndarray:
        """Return all numbers of `lists`, one list after the other, as float64. What is no number is a fault, and 0.

        Args:
            owner: row of each list; by default list i belongs to row i.
        """
        chain = itertools.chain.from_iterable
        if set(map(type, chain(lists))) <= _NUMBER_TYPES:
            with contextlib.suppress(OverflowError):
                return np.fromiter(chain(lists), np.float64, sum(map(len, lists)))
        places: dict[int, Any] = {}  # row -> its first value that is not a number
        for index, values in enumerate(lists):
            for value in values:
                if not _is_number(value):
                    places.setdefault(index if owner is None else int(owner[index]), value)
        self.report(places, field, lambda i: shorten(places[i]), "plain numbers")
        return np.array([value if _is_number(value) else 0.0 for value in chain(lists)], np.float64)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)
