"""`intl_bench.tables(...)`: the package `intl_bench.tables` can be called, because a function cannot share its name."""

import os
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord


def tables(
    results: str | os.PathLike[str] | Iterable[ResultRecord] = "results",
    *,
    tables: Sequence[str | int] | str | int | None = None,
    format: str = "markdown",
    schedule: str | None = None,
    datasets: Sequence[str] | str | None = None,
    measured_only: bool = False,
    notes: str = "full",
    per_class: bool = False,
) -> str:
    """Return the paper's tables with the measured rows beside the published ones, as `intl-bench tables` prints them.

    Args:
        results: the folder of the records, as `--results`; or records, such as those of `evaluate`.
        tables: which, such as "2" or ["1", "2"]. None means tables 1, 2 and 3, and what else was measured.
        format: text, markdown, latex, bibtex, csv, json or html.
        schedule: limits a detection table to one schedule, such as "2x".
        datasets: limits tables, columns and rows to these data sets, such as "cifar10".
        measured_only: leaves out the published rows.
        notes: the footnotes: "full", "short" or "none".
        per_class: shows the AP of each class, for detection tables.

    Returns:
        The text of the tables.

    Raises:
        InputError: there is no such folder, table, format or schedule; or a record is damaged.
    """
    from intl_bench.tables import render

    if isinstance(results, str | os.PathLike):
        folder = Path(results)
        if not folder.is_dir():
            raise InputError(f"results={str(results)!r}: no such folder; expected a folder with records/, or records")
        records: Iterable[ResultRecord] = RecordStore(folder / "records").load()
    else:
        records = [results] if isinstance(results, ResultRecord) else list(results)
        for record in records:
            if not isinstance(record, ResultRecord):
                raise TypeError(f"results: found {type(record).__name__}; expected a folder, or records of evaluate()")
    names = [tables] if isinstance(tables, str | int) else tables
    chosen = None if names is None else [str(name) for name in names]
    return render(
        records,
        tables=chosen,
        format=format,
        schedule=schedule,
        datasets=[datasets] if isinstance(datasets, str) else datasets,
        measured_only=measured_only,
        notes=notes,
        per_class=per_class,
    )


class CallableModule(types.ModuleType):
    """A module that is called like the function `tables`."""

    def __call__(self, *args: Any, **options: Any) -> str:
        return tables(*args, **options)
