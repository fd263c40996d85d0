"""`--fresh` of a grid. It replaces the results of a cell when the cell's turn comes, and goes on after an interruption.

The file `fresh.json` of a grid's results lists the records that are to be replaced, by their digests: ends of cells and
scores at random initialization. A record that is listed and still there waits for its turn. In a sweep, the final runs
of a setting that the repeated search did not choose wait until one chooses it.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from intl_bench.core import files, inputs
from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest
from intl_bench.records import RecordStore, ResultRecord, content_of

_FILE = "fresh.json"
_SCHEMA = 1


def start(results: Path, replaced: Sequence[ResultRecord]) -> None:
    """List records, and no others."""
    listed = {"schema": _SCHEMA, "records": [digest(content_of(record)) for record in replaced]}
    files.write_text(results / _FILE, files.json_text(listed))


def listed(records: Sequence[ResultRecord], results: Path) -> list[ResultRecord]:
    """Return the records that are listed.

    Raises:
        InputError: the list is damaged.
    """
    digests = _read(results / _FILE)
    return [record for record in records if digests and digest(content_of(record)) in digests]


def end(results: Path) -> None:
    """Remove the list, unless a record that is listed is still there."""
    if not listed(RecordStore(results / "records").load(), results):
        (results / _FILE).unlink(missing_ok=True)


def _read(path: Path) -> Collection[str]:
    if not path.exists():
        return ()
    try:
        content = json.loads(inputs.read_text(path, "the list of --fresh"))
        if content["schema"] == _SCHEMA:
            return frozenset(content["records"])
        found = f"schema {content['schema']}, expected {_SCHEMA}"
    except (ValueError, KeyError, TypeError) as error:
        found = f"damaged ({error})"
    raise InputError(f"{path}: {found}; delete it, and add --fresh to start over again")
