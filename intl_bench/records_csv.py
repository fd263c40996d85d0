"""Records as one CSV file, to be pooled with those of other people: export and import.

A line holds one record. Its columns are the fields of the record's file; each metric has a column of its own, and other
nested fields are JSON. The digest of the file is one of them, so a record whose line was changed is refused.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from intl_bench.core import files, inputs, seals
from intl_bench.core.errors import InputError
from intl_bench.core.escapes import csv_text, text_of_csv
from intl_bench.records import IMAGE_LIST, SCHEMA, RecordStore, ResultRecord, content_of, parse

_METRIC = "metrics."
_LIST = "image_list"  # the column of the text file beside a record
_TEXTS = (
    *("task", "method", "dataset", "backbone", "scale", "created", "weights_sha256", "checkpoint_sha256"),
    *("pretraining_sha256", "evaluation_sha256", seals.KEY),
)
# The columns that people look at come first.
_FIRST = ("task", "method", "dataset", "backbone", "scale", "pretrain_seed", "transfer_seed", "created")
_CHANGED = "the line was changed after the export, maybe by a program for spreadsheets; export the records again"


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        added: numbers of records that are new.
        known: number of records with a result that is already there.
        conflicts: for each record that contradicts another one, what it is and what it contradicts.
    """

    added: int
    known: int
    conflicts: Sequence[str]


def export(store: RecordStore, path: Path) -> tuple[int, int]:
    """Write all records to a new file.

    Returns:
        the numbers of records that were written, and of those of an earlier version, which are left out because records
        of that version are only read.

    Raises:
        InputError: the file exists, or there are no records.
    """
    if path.exists():
        raise InputError(f"{path}: the file exists; name another one, or delete it first")
    records = store.load()
    kept = [dataclasses.replace(record, schema=SCHEMA) for record in records if record.schema > 1]
    if not kept:
        raise InputError(f"{store.folder}: no records to export; expected those of a scoring command; see --results")
    lines = [_line(record) for record in kept]
    names = {name: None for line in lines for name in line}
    metrics = sorted(name for name in names if name.startswith(_METRIC))
    others = [name for name in names if name not in (*_FIRST, *metrics)]
    frame = pd.DataFrame(lines, columns=[*_FIRST, *metrics, *others]).fillna("")
    files.write_text(path, csv_text(frame))
    return len(kept), len(records) - len(kept)


def import_(store: RecordStore, paths: Sequence[Path], *, dry_run: bool = False) -> Imported:
    """Add the records of exported files. A record that is there is never changed.

    Args:
        dry_run: find out what would happen, and write nothing.

    Raises:
        InputError: a line is not a record as it was exported. Then nothing is added.
    """
    incoming = [found for path in paths for found in _read(path)]
    known = _Known()
    for record in store.load():
        known.add(record)
    added = there = 0
    conflicts = []
    for where, record, image_list in incoming:
        if known.has(record):
            there += 1
        elif (reason := known.conflict(record)) is not None:
            conflicts.append(f"{where}: {record.task} of {record.method} on {record.dataset}: {reason}")
        else:
            known.add(dataclasses.replace(record, file=where))
            added += 1
            if not dry_run:
                store.append(record, image_list)
    return Imported(added, there, conflicts)


def _line(record: ResultRecord) -> dict[str, str]:
    content = json.loads(files.sealed_json(content_of(record)))
    line = {f"{_METRIC}{name}": json.dumps(value) for name, value in content.pop("metrics").items()}
    for name, value in content.items():
        plain = value is None or (name in _TEXTS and isinstance(value, str))
        line[name] = (value or "") if plain else json.dumps(value, ensure_ascii=False, sort_keys=True)
    if (digest := record.details.get(IMAGE_LIST)) is not None:
        beside = Path(record.file).with_suffix(".txt")
        line[_LIST] = json.dumps(os.fsdecode(_matching(inputs.read_bytes(beside), digest, str(beside))))
    return line


def _matching(image_list: bytes, digest: object, where: str) -> bytes:
    """Return a list of images if it is the one that a record names; raise InputError otherwise."""
    if hashlib.sha256(image_list).hexdigest() != digest:
        raise InputError(f"{where}: not the list of images that the record names; it was changed; restore it")
    return image_list


def _read(path: Path) -> Iterator[tuple[str, ResultRecord, bytes | None]]:
    """Yield (place in the file, record, list of images) of each line."""
    try:
        text = inputs.read_text(path, "records")
        frame = pd.read_csv(io.StringIO(text, newline=""), dtype=str, keep_default_na=False, lineterminator="\n")
    except ValueError as error:  # a ParserError, or an EmptyDataError
        raise InputError(
            f"{path}: not a CSV file ({' '.join(str(error).split())}); expected one of records export"
        ) from error
    for name in (*_FIRST, "pretraining", "evaluation", seals.KEY):
        if name not in frame.columns:
            raise InputError(f"{path}: the column {name} is missing; expected a file of records export, with commas")
    for number, cells in enumerate(frame.to_dict("records"), start=1):
        where = f"{path}, record {number}"
        line = {str(name): text_of_csv(str(cell)) for name, cell in cells.items()}
        image_list = line.pop(_LIST, "")
        content = _content(line, where)
        digest = content.get(seals.KEY)
        sealed = files.sealed_json({**content, seals.KEY: seals.UNSET})
        if json.loads(sealed)[seals.KEY] != digest:
            raise InputError(f"{where}: its values do not match its {seals.KEY}; {_CHANGED}")
        record = parse(sealed, where, _CHANGED)
        digest = record.details.get(IMAGE_LIST)
        listed = None if digest is None else _matching(_bytes_of(image_list, where), digest, where)
        yield where, record, listed


def _bytes_of(image_list: str, where: str) -> bytes:
    try:
        return os.fsencode(json.loads(image_list))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {_LIST} is not a list of images; {_CHANGED}") from error


def _content(line: dict[str, str], where: str) -> dict[str, Any]:
    """Return the content of a record's file. An empty cell is null, and a metric that the record does not have."""
    content: dict[str, Any] = {"metrics": {}}
    for name, cell in line.items():
        if name.startswith(_METRIC):
            if cell:
                content["metrics"][name.removeprefix(_METRIC)] = inputs.parse_json(cell, f"{where}, {name}")
        elif not cell:
            content[name] = None
        else:
            content[name] = cell if name in _TEXTS else inputs.parse_json(cell, f"{where}, {name}")
    return content


class _Known:
    """Records by what a further one may contradict."""

    def __init__(self) -> None:
        self._results: dict[Hashable, ResultRecord] = {}
        self._weights: dict[Hashable, ResultRecord] = {}
        self._seeds: dict[Hashable, ResultRecord] = {}

    def add(self, record: ResultRecord) -> None:
        result, experiment, weights = _keys(record)
        self._results.setdefault(result, record)
        if record.weights_sha256 is not None:
            self._weights.setdefault(experiment, record)
            self._seeds.setdefault(weights, record)

    def has(self, record: ResultRecord) -> bool:
        """Return whether the same result is there with the same scores."""
        other = self._results.get(_keys(record)[0])
        return other is not None and other.metrics == record.metrics

    def conflict(self, record: ResultRecord) -> str | None:
        """Return what a record contradicts; None for a record that tables can show beside the others."""
        result, experiment, weights = _keys(record)
        if other := self._results.get(result):
            scores = ", ".join(f"{name} {other.metrics.get(name)} / {x}" for name, x in sorted(record.metrics.items()))
            return f"{other.file} has other scores of the same weights and seeds (there / here: {scores})"
        if record.weights_sha256 is None:
            return None
        other = self._weights.get(experiment)
        if other and other.weights_sha256 != record.weights_sha256:
            return f"{other.file} has other weights of the same pre-training and seed {record.pretrain_seed}"
        other = self._seeds.get(weights)
        if other and other.pretrain_seed != record.pretrain_seed:
            return f"{other.file} has the same weights under the seed {other.pretrain_seed}, not {record.pretrain_seed}"
        return None


def _keys(record: ResultRecord) -> tuple[Hashable, Hashable, Hashable]:
    """Return what is equal for the same result, for the same pre-training and seed, and for the same weights."""
    experiment = (record.task, record.method, record.dataset, record.pretraining_sha256, record.evaluation_sha256)
    weights = (record.method, record.pretraining_sha256, record.weights_sha256)
    return (record.key, record.schema == 1), (*experiment, record.pretrain_seed), weights
