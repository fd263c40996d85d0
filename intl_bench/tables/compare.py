"""Two measured rows side by side: the difference of each column, its interval, and what it tells."""

import dataclasses
import difflib
import json
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pandas as pd
from tabulate import tabulate

from intl_bench.core.errors import InputError
from intl_bench.core.escapes import csv_text, escape_markdown
from intl_bench.records import ResultRecord
from intl_bench.tables.cells import averaged_columns, cells_of, decimals_of_spread, rounded
from intl_bench.tables.frame import belonging
from intl_bench.tables.grouping import varying
from intl_bench.tables.identities import flatten, readable_key, shorten_fingerprints
from intl_bench.tables.intervals import CONFIDENCE, Difference, paired, welch
from intl_bench.tables.labels import Label
from intl_bench.tables.measured import labeled_rows
from intl_bench.tables.model import Measurement, Table
from intl_bench.tables.text import grid, paragraph

FORMATS = ("text", "markdown", "csv", "json")
_SHOWN = 3  # number of differences between evaluations that a text names
_CHOICES = 6  # number of rows that an error names
_HEADINGS = ("", "A", "B", "A - B", "interval", "by", "")
_Row = tuple[str, Label, list[ResultRecord]]  # its number in the table, its label and its records
_BySeed = dict[int | None, dict[int | None, float]]  # {pre-training seed: {transfer seed: value}}
_NOTE = (
    f"Intervals of {CONFIDENCE:.0%} by Student's t, each for its column alone, from one value for each pre-training, "
    "the mean of its transfer seeds. Paired: the differences of equal seeds. Welch: two samples with own variances."
)
_ONE_PRETRAINING = (
    "†: over the transfer seeds of one pre-training. It says nothing about other pre-trainings of the two."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One column of two rows.

    Attributes:
        table, column: names of the table and of the column.
        row_a, row_b: labels of the rows.
        a, b: texts of the cells.
        difference: mean of A minus mean of B.
        low, high: ends of the interval around it; None if it cannot be known.
        df: degrees of freedom of the interval.
        way: "paired" or "Welch"; empty if there is no interval.
        over: what the values are of: "pre-training" or "transfer".
        n_a, n_b: numbers of values.
        verdict: what the numbers tell.
    """

    table: str
    column: str
    row_a: str
    row_b: str
    a: str
    b: str
    difference: float
    low: float | None
    high: float | None
    df: float | None
    way: str
    over: str
    n_a: int
    n_b: int
    verdict: str


def compare(tables: Sequence[Table], records: Sequence[ResultRecord], first: str, second: str, format: str) -> str:
    """Return the comparison of two rows as text, for each of the tables that has both.

    Args:
        first, second: a method, words of a label, TABLE:NUMBER, or with a single table the number of a row.
        format: one of `FORMATS`.

    Raises:
        InputError: no row or several rows have such a name, both names are of one row, or the two rows have no column
            in common.
    """
    if format not in FORMATS:
        raise InputError(f"--compare: format {format!r}; expected {', '.join(FORMATS)}")
    rows: dict[str, list[_Row]] = {}
    for table in tables:
        labeled = labeled_rows(table, belonging(table, records))
        rows[table.number] = [(str(number), *row) for number, row in enumerate(labeled, start=1)]
    pairs = _pairs({table.number: table for table in tables}, rows, first, second)
    found = [one for table in tables if table.number in pairs for one in _compare(table, *pairs[table.number])]
    if format == "text":
        return _text(found)
    if format == "markdown":
        return _markdown(found)
    values = [{**dataclasses.asdict(one), "confidence": CONFIDENCE} for one in found]
    if format == "json":
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    return csv_text(pd.DataFrame(values))


def _pairs(
    tables: Mapping[str, Table], rows: Mapping[str, Sequence[_Row]], first: str, second: str
) -> dict[str, tuple[_Row, _Row]]:
    """Return the two rows in each table that has both."""
    measured = [name for name, some in rows.items() if some]
    matches = {word: {name: _matches(name, rows[name], word) for name in measured} for word in (first, second)}
    for word, by_table in matches.items():
        if not any(by_table.values()):
            methods = sorted({row[2][0].method for some in rows.values() for row in some})
            near = difflib.get_close_matches(word, methods, n=1)
            raise InputError(
                f"--compare: no measured row is named {word!r}{f' (did you mean {near[0]!r}?)' if near else ''}; "
                f"expected a method ({', '.join(methods) or 'none was measured'}), words of a label, or TABLE:ROW, "
                "such as 2:1"
            )
        if word.isdecimal() and len(measured) > 1:
            raise InputError(
                f"--compare: {word} is a row of {len(measured)} tables; expected TABLE:ROW, such as "
                f"{' or '.join(_reference(name, row) for name in measured for row in matches[word][name])}"
            )
    both = [name for name in measured if matches[first][name] and matches[second][name]]
    if not both:
        raise InputError(f"--compare: no table has both {first!r} and {second!r}; score both with the same task")
    pairs = {}
    for name in both:
        found = _with_partners(tables[name], matches[first][name], matches[second][name])
        if not all(found):
            continue
        if max(map(len, found)) > 1:
            raise InputError(f"--compare: {_choices(tables[name], found, (first, second))}")
        pairs[name] = found[0][0], found[1][0]
    if not pairs:
        raise InputError(f"--compare: {first} and {second} have no column in common; score both with the same task")
    distinct = {name: (a, b) for name, (a, b) in pairs.items() if a is not b}
    if not distinct:
        name, (row, _) = next(iter(pairs.items()))
        others = [other for other in rows[name] if other is not row]
        expected = (
            f"such as --compare {_reference(name, row)} {_reference(name, others[0])}"
            if others
            else "the table has no other"
        )
        raise InputError(
            f"--compare: {first!r} and {second!r} are both row {row[0]} of table {name}; expected two measured rows, "
            f"{expected}"
        )
    return distinct


def _matches(table: str, rows: Sequence[_Row], word: str) -> list[_Row]:
    """Return the rows of a number, of a method or label, or with words of a label; the first of these that exists."""
    key = word.casefold()
    exact = [
        row
        for row in rows
        if key in (row[0], f"{table}:{row[0]}".casefold(), row[1].text.casefold(), row[2][0].method.casefold())
    ]
    whole = re.compile(rf"(?<!\w)(?<!\d\.){re.escape(key)}(?!\w|\.\d)")  # 0.2 is no part of 10.2 or 0.2.5
    return exact or [row for row in rows if key.strip() and whole.search(row[1].text.casefold())]


def _with_partners(table: Table, first: Sequence[_Row], second: Sequence[_Row]) -> tuple[list[_Row], list[_Row]]:
    """Return the rows of each name that have a column in common with a row of the other name."""
    a, b = (
        [row for row in some if any(_common(table, row, one) for one in others)]
        for some, others in ((first, second), (second, first))
    )
    return a, b


def _common(table: Table, first: _Row, second: _Row) -> set[str]:
    """Return the keys of the columns in which both rows have a value."""
    a, b = (
        {key for record in records for key, metric in table.place(record).items() if metric in record.metrics}
        for _, _, records in (first, second)
    )
    return a & b


def _choices(table: Table, found: Sequence[Sequence[_Row]], words: Sequence[str]) -> str:
    """Return the error of a name that has several rows: what to type for each of them, and what tells it apart."""
    position = 0 if len(found[0]) > 1 else 1
    some, others = found[position], found[1 - position]
    choices = []
    for row in some:
        partners = [one for one in others if one is not row and _common(table, row, one)]
        if partners:
            partner = min(partners, key=lambda one: bool(_unlike(table, min(_common(table, row, one)), row[2], one[2])))
            other = shlex.quote(words[1 - position]) if len(others) == 1 else _reference(table.number, partner)
            typed = [_reference(table.number, row), other]
            choices.append(f"--compare {' '.join(typed if position == 0 else typed[::-1])} ({_apart(row, some)})")
    more = f", or {len(choices) - _CHOICES} more" if len(choices) > _CHOICES else ""
    return f"{words[position]!r} is the name of {len(some)} rows of table {table.number}; " + (
        f"expected one row: write {', or '.join(choices[:_CHOICES])}{more}"
        if choices
        else "no two of them have a column in common; score both with the same task"
    )


def _reference(table: str, row: _Row) -> str:
    return shlex.quote(f"{table}:{row[0]}")


def _apart(row: _Row, some: Sequence[_Row]) -> str:
    """Return the parts of a row's label that not all of these rows have."""
    own, *parts = [re.split(r"[,;] | ?[()]", one[1].text) for one in (row, *some)]
    return ", ".join(part for part in own if part and any(part not in others for others in parts)) or row[1].text


def _compare(table: Table, first: _Row, second: _Row) -> list[Comparison]:
    averaged = averaged_columns(table, [first[2], second[2]])
    (cells_a, measured_a), (cells_b, measured_b) = (cells_of(table, row[2], averaged) for row in (first, second))
    found = []
    for column in table.columns([*first[2], *second[2]]):
        if column.key not in measured_a or column.key not in measured_b:
            continue
        values = [_by_seed(some[column.key]) for some in (measured_a, measured_b)]
        a, b = map(_samples, values)
        over = "pre-training"
        if len(a) == len(b) == 1:  # a single pre-training of each: its transfer seeds are all there is
            over = "transfer"
            a, b = (next(iter(some.values())) for some in values)
        way, difference = _difference(a, b)
        n_a, n_b = (len(a.keys() & b.keys()),) * 2 if way == "paired" else (len(a), len(b))
        keys = averaged if column.key == table.average else [column.key]
        unlike = next((text for key in keys if (text := _unlike(table, key, first[2], second[2]))), "")
        if unlike:
            difference = Difference(difference.mean, None, None)
        low, high = (
            difference.mean + sign * difference.half if difference.half is not None else None for sign in (-1, 1)
        )
        found.append(
            Comparison(
                table=table.number,
                column=column.flat,
                row_a=f"{first[1].text} [{first[0]}]",
                row_b=f"{second[1].text} [{second[0]}]",
                a=cells_a[column.key].cell,
                b=cells_b[column.key].cell,
                difference=difference.mean,
                low=low,
                high=high,
                df=difference.df,
                way=way if low is not None else "",
                over=over,
                n_a=n_a,
                n_b=n_b,
                verdict=unlike or _verdict(low, high, over, n_a, n_b),
            )
        )
    return found


def _by_seed(measurements: Sequence[Measurement]) -> _BySeed:
    values: _BySeed = defaultdict(dict)
    for value, record in measurements:
        values[record.pretrain_seed][record.transfer_seed] = value
    return values


def _samples(by_seed: _BySeed) -> dict[int | None, float]:
    return {seed: statistics.mean(values.values()) for seed, values in by_seed.items()}


def _difference(a: Mapping[int | None, float], b: Mapping[int | None, float]) -> tuple[str, Difference]:
    """Pair equal seeds if those are all seeds of one of the two, and else compare two independent samples."""
    shared = sorted(seed for seed in a.keys() & b.keys() if seed is not None)
    if len(shared) == min(len(a), len(b)) and len(shared) > 1:
        return "paired", paired([a[seed] for seed in shared], [b[seed] for seed in shared])
    return "Welch", welch(list(a.values()), list(b.values()))


def _unlike(table: Table, column: str, first: Sequence[ResultRecord], second: Sequence[ResultRecord]) -> str:
    """Return in words how the evaluations of a column differ; empty if they are the same."""
    records = [next(r for r in row if table.place(r).get(column) in r.metrics) for row in (first, second)]
    if {record.schema == 1 for record in records} == {True, False}:
        return "not comparable: settings recorded by an earlier version are unknown"
    flats = [{**_resolved(record), "dataset": record.dataset} for record in records]
    words = [
        f"{readable_key('evaluation', key)} {' / '.join(shorten_fingerprints(flat.get(key, 'none')) for flat in flats)}"
        for key in varying(flats)
    ]
    if not words:
        return ""
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"not comparable: {', '.join(words[:_SHOWN])}{more}"


def _resolved(record: ResultRecord) -> dict[str, str]:
    """Return the flattened evaluation, in which the number itself replaces a setting "checkpoint"."""
    config = flatten(record.config)
    return {
        key: config.get(key.removeprefix("settings."), value) if value == "checkpoint" else value
        for key, value in flatten(record.evaluation).items()
    }


def _verdict(low: float | None, high: float | None, over: str, n_a: int, n_b: int) -> str:
    if low is None or high is None:
        return f"n is too small to tell: {n_a} and {n_b}, expected at least 2 of each"
    dagger = "†" if over == "transfer" else ""
    if low > 0:
        return f"A is higher{dagger}"
    if high < 0:
        return f"B is higher{dagger}"
    if low == high:
        return "equal"
    return f"no difference to be seen at n = {n_a if n_a == n_b else f'{n_a} and {n_b}'}{dagger}"


def _markdown(found: Sequence[Comparison]) -> str:
    texts = []
    for name in dict.fromkeys(one.table for one in found):
        some = [one for one in found if one.table == name]
        grid = tabulate(
            [_cells(one) for one in some],
            headers=_HEADINGS,
            tablefmt="pipe",
            colalign=["left", "right", "right", "right", "right", "left", "left"],
            disable_numparse=True,
        )
        start = f"**Table {escape_markdown(name)}.**"
        rows = f"- A: {escape_markdown(some[0].row_a)}\n- B: {escape_markdown(some[0].row_b)}"
        texts.append(f"{start}\n\n{rows}\n\n{grid}\n")
    return "\n".join([*texts, *(f"- {note}" for note in _notes(found)), ""])


def _text(found: Sequence[Comparison]) -> str:
    texts = []
    for name in dict.fromkeys(one.table for one in found):
        some = [one for one in found if one.table == name]
        rows = f"{paragraph(some[0].row_a, 'A:')}\n{paragraph(some[0].row_b, 'B:')}"
        texts.append(
            f"{paragraph(f'Table {name}.')}\n\n{rows}\n\n{grid(_HEADINGS, list(map(_cells, some)), texts=(5, 6))}\n"
        )
    return "\n".join([*texts, *(paragraph(note, "-") for note in _notes(found)), ""])


def _notes(found: Sequence[Comparison]) -> list[str]:
    return [_NOTE, *([_ONE_PRETRAINING] if any("†" in one.a + one.b + one.verdict for one in found) else [])]


def _cells(one: Comparison) -> list[str]:
    return [one.column, one.a, one.b, *_numbers(one), one.way, one.verdict]


def _numbers(one: Comparison) -> tuple[str, str]:
    """Return the difference and its interval with two digits of the interval's half width."""
    if one.low is None or one.high is None:
        return rounded(one.difference, 2), "unknown"
    half = (one.high - one.low) / 2
    decimals = decimals_of_spread(half)
    sign = "+" if one.difference > 0 else ""
    return sign + rounded(one.difference, decimals), f"{rounded(one.low, decimals)} to {rounded(one.high, decimals)}"
