"""Results: one immutable JSON file each, written once and never changed."""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from intl_bench.core.errors import InputError, from_os_error
from intl_bench.core.files import create_json

SCHEMA = 1
SCALES = ("paper", "reduced", "demo")
_IDENTITY = ("task", "method", "dataset", "checkpoint_sha256", "config_sha256", "pretrain_seed", "transfer_seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """What one run of one task measured, and everything needed to say how.

    Attributes:
        task: "linear", "knn", "finetune", "coco", "voc" or any other lower-case name.
        method: display name, such as "INTL".
        metrics: flat field-standard names to values from 0 to 100, such as {"top1": 73.1} or {"bbox/AP": 41.2}.
        details: counts, the best epoch and the like.
        protocol: how it was measured; keys that start with "pretrain_" describe the pre-training, all others the
            evaluation.
        scale: "paper", "reduced" or "demo".
        created: ISO 8601 time in UTC.

    Raises:
        ValueError: a field has the wrong type or an impossible value; the message starts with the field's name.
    """

    task: str
    method: str
    dataset: str
    backbone: str
    metrics: dict[str, float]
    details: dict[str, Any]
    pretrain_seed: int
    transfer_seed: int
    protocol: dict[str, str | int | float | bool | None]
    scale: str
    checkpoint_sha256: str | None
    config: dict[str, Any]
    config_sha256: str
    code: dict[str, Any]
    libraries: dict[str, Any]
    hardware: dict[str, Any]
    wall_time_s: float
    peak_memory_mib: float
    created: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema}, expected {SCHEMA}")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.task):
            raise ValueError(f"task is {self.task!r}, expected lower-case letters, digits, - and _")
        for name in ("method", "dataset", "backbone"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty, expected a name")
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}, expected one of {', '.join(SCALES)}")
        for name, value in self.metrics.items():
            if not _is_number(value) or not 0 <= value <= 100:
                raise ValueError(f"metrics[{name!r}] is {value!r}, expected a finite number from 0 to 100")
        for name, entry in self.protocol.items():
            if not (entry is None or isinstance(entry, str | bool) or _is_number(entry)):
                raise ValueError(
                    f"protocol[{name!r}] is {entry!r}, expected a text, a finite number, true, false or null"
                )
        for name in ("pretrain_seed", "transfer_seed", "wall_time_s", "peak_memory_mib"):
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a finite number of at least 0")
        if self.created_at.utcoffset() != timedelta(0):
            raise ValueError(f"created is {self.created!r}, expected a time in UTC, such as 2024-05-31T12:00:00+00:00")

    @property
    def created_at(self) -> datetime:
        """`created` as a datetime; raises `ValueError` where it is none."""
        try:
            return datetime.fromisoformat(self.created)
        except ValueError:
            raise ValueError(
                f"created is {self.created!r}, expected an ISO 8601 time, such as 2024-05-31T12:00:00+00:00"
            ) from None

    @property
    def key(self) -> str:
        """16 hex digits that are the same for two runs of one thing: task, method, data, weights, config and seeds."""
        identity = {name: getattr(self, name) for name in _IDENTITY}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class RecordStore:
    """The records in `folder`/<task>/*.json. Many processes may append and read at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def append(self, record: ResultRecord) -> Path:
        """Writes the record and returns its path; a record with the same key that is there already stays untouched.

        Raises:
            InputError: the folder cannot be written.
            ResourceError: the disk is full.
            ValueError: `details`, `config`, `code`, `libraries` or `hardware` holds a NaN.
        """
        seeds = f"p{record.pretrain_seed}-t{record.transfer_seed}"
        name = f"{_slug(record.method)}-{_slug(record.dataset)}-{seeds}-{record.key}.json"
        path = self.folder / record.task / name
        create_json(path, dataclasses.asdict(record))
        return path

    def load(self) -> list[ResultRecord]:
        """All records, in the order of their paths; none where the folder does not exist.

        Raises:
            InputError: a file is not a record; the message names the file, the field and what was expected.
        """
        return [_read(path) for path in self._paths()]

    def find(self, key: str) -> ResultRecord | None:
        """The record with this `ResultRecord.key`, None if there is none; raises as `load`."""
        paths = self._paths(key)
        return _read(paths[0]) if paths else None

    def remove(self, key: str) -> None:
        """Deletes the record with this key, if there is one, so that its task can be run afresh."""
        for path in self._paths(key):
            path.unlink(missing_ok=True)

    def _paths(self, key: str = "") -> list[Path]:
        # A name that starts with a dot is a file that another process is still writing.
        paths = (path for path in self.folder.glob("*/*.json") if not path.name.startswith("."))
        return sorted(path for path in paths if path.name.endswith(f"{key}.json"))


def _read(path: Path) -> ResultRecord:
    remedy = "restore the file from a copy, or delete it and run that task again"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise from_os_error(error, f"cannot read record {path}") from error
    except ValueError as error:
        raise InputError(f"record {path}: not valid JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise InputError(f"record {path}: expected a JSON object at the top level; {remedy}")
    schema = values.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(f"record {path}: schema is {schema}, expected at most {SCHEMA}; update intl-bench to read it")
    fields = {field.name: field for field in dataclasses.fields(ResultRecord)}
    for name in sorted({*fields, *values} - {"schema"}):
        if name not in values:
            raise InputError(f"record {path}: {name} is missing, expected {_expected(fields[name])}; {remedy}")
        if name not in fields:
            raise InputError(f"record {path}: unknown field {name!r}, expected only those of schema {SCHEMA}; {remedy}")
    try:
        return ResultRecord(**values)
    except ValueError as error:
        raise InputError(f"record {path}: {error}; {remedy}") from error


def _expected(field: "dataclasses.Field[Any]") -> str:
    kind = typing.get_origin(field.type) or field.type
    names = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        dict: "an object",
        types.UnionType: "a text or null",
    }
    return names[typing.cast(type, kind)]


def _check_type(field: "dataclasses.Field[Any]", value: Any) -> None:
    allowed: Any = dict if typing.get_origin(field.type) is dict else field.type
    allowed = int | float if allowed is float else allowed
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise ValueError(f"{field.name} is {value!r}, expected {_expected(field)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _slug(name: str) -> str:
    # Short enough for the longest file name that file systems allow.
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "unnamed"
