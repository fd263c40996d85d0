"""Records of results. Each record is one JSON file, which is written once and never changed."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import types
import typing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from intl_bench.core import files, inputs, seals
from intl_bench.core.errors import InputError
from intl_bench.core.identity import SCALES, digest

__all__ = ["SCHEMA", "RecordStore", "ResultRecord", "content_of", "parse"]
SCHEMA = 3  # schema 2 had no digest of the file; schema 1 had no identities
_DIGESTED = ("pretraining", "evaluation")
_KEY = (
    *("task", "method", "dataset", "pretraining_sha256", "evaluation_sha256"),
    *("pretrain_seed", "transfer_seed", "weights_sha256"),
)
_RESULT = _KEY[:-1]  # equal for the results of a repeated pre-training too


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """The result of one run of one task, and how it was measured.

    Attributes:
        task: "linear", "knn", "finetune", "coco", "voc", "pretrain" or any other lower-case name.
        method: display name, such as "INTL".
        metrics: {standard name: value from 0 to 100}, such as {"top1": 73.1} or {"bbox/AP": 41.2}.
        details: further numbers, such as counts and the best epoch.
        pretraining: identity of the pre-training without its seed: all of its settings, and digests of its inputs.
        evaluation: identity of the evaluation without its seed; empty for the task "pretrain".
        pretrain_seed: None if it is unknown, as for a checkpoint of another project.
        protocol: a summary for people, never an identity. Keys that start with "pretrain_" describe the pre-training;
            all others describe the evaluation.
        scale: one of `SCALES`.
        weights_sha256: digest of the backbone's tensors. It is the same for a checkpoint and its export.
        checkpoint_sha256: digest of the checkpoint's file.
        created: ISO 8601 time in UTC.
        schema: version of the file that the record was read from. With schema 1 the two identities are unknown except
            for the summary, {"schema": 1, "known": {...}}, and `weights_sha256` is the digest of the checkpoint's file.
        file: the path that the record was read from. It is not part of the record.

    Raises:
        ValueError: a field has the wrong type or an impossible value. The message starts with the name of the field.
    """

    task: str
    method: str
    dataset: str
    backbone: str
    metrics: dict[str, float]
    details: dict[str, Any]
    pretraining: dict[str, Any]
    evaluation: dict[str, Any]
    pretrain_seed: int | None
    transfer_seed: int
    protocol: dict[str, str | int | float | bool | None]
    scale: str
    weights_sha256: str | None
    checkpoint_sha256: str | None
    config: dict[str, Any]
    code: dict[str, Any]
    libraries: dict[str, Any]
    hardware: dict[str, Any]
    wall_time_s: float
    peak_memory_mib: float
    created: str
    schema: int = SCHEMA
    file: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in _TYPES:
            _check_type(name, getattr(self, name))
        if self.schema not in _EXPECTED:
            raise ValueError(f"schema is {self.schema}, expected 1 to {SCHEMA}")
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
                    f"protocol[{name!r}] is {entry!r}, expected a string, a finite number, true, false or null"
                )
        for name in ("pretrain_seed", "transfer_seed", "wall_time_s", "peak_memory_mib"):
            number = getattr(self, name)
            if number is not None and (not _is_number(number) or number < 0):
                raise ValueError(f"{name} is {number}, expected a finite number of at least 0")
        if self.created_at.utcoffset() != timedelta(0):
            raise ValueError(f"created is {self.created!r}, expected a time in UTC, such as 2024-05-31T12:00:00+00:00")

    @functools.cached_property
    def created_at(self) -> datetime:
        """`created` as a datetime.

        Raises:
            ValueError: `created` is not an ISO 8601 time.
        """
        try:
            return datetime.fromisoformat(self.created)
        except ValueError:
            raise ValueError(
                f"created is {self.created!r}, expected an ISO 8601 time, such as 2024-05-31T12:00:00+00:00"
            ) from None

    @functools.cached_property
    def pretraining_sha256(self) -> str:
        """The digest of the pre-training's identity."""
        return digest(self.pretraining)

    @functools.cached_property
    def evaluation_sha256(self) -> str:
        """The digest of the evaluation's identity."""
        return digest(self.evaluation)

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits, equal for records with equal task, method, data set, identities, seeds and weights."""
        return digest({name: getattr(self, name) for name in _KEY})[:16]


IMAGE_LIST = "image_list_sha256"  # the name in `details` of the digest of the text file beside a record


class RecordStore:
    """The records in `folder`/<task>/*.json. Several processes may append and read at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def append(self, record: ResultRecord, image_list: bytes | None = None) -> Path:
        """Write the record and return its path. An existing record with the same key is not changed.

        Args:
            image_list: content of a text file that is written beside the record, with the suffix `.txt`. The details of
                the record get its digest.

        Raises:
            InputError: the folder cannot be written.
            ResourceError: the disk is full.
            ValueError: the record has an earlier schema, which is only read; or a field holds a NaN.
        """
        path = self._path(record)
        record = _with_list(path, record, image_list)
        files.create_json(path, content_of(record))
        return path

    def replace(self, record: ResultRecord, image_list: bytes | None = None) -> Path:
        """Write the record and delete earlier records of the same result; return its path.

        Earlier records have the same key, or differ from it in the digest of the weights only: the pre-training was
        repeated. They are deleted after the new record is on the disk.

        Args:
            image_list: see `append`.

        Raises:
            InputError: the folder cannot be written.
            ResourceError: the disk is full.
            ValueError: see `append`.
        """
        path = self._path(record)
        record = _with_list(path, record, image_list)
        files.write_bytes(path, files.sealed_json(content_of(record)))
        for other in self._paths():
            with contextlib.suppress(InputError):  # a damaged record is another result, which `load` reports
                old = _read(other)
                if other != path and all(getattr(old, name) == getattr(record, name) for name in _RESULT):
                    _delete(other)
        return path

    def remove(self, record: ResultRecord) -> None:
        """Delete a record that `load` returned, and its list of images; nothing happens if it is gone."""
        _delete(Path(record.file))

    def load(self) -> list[ResultRecord]:
        """Return all records in the order of their paths; an empty list if the folder does not exist.

        Raises:
            InputError: a file is not a record. The message names the file, the field and the expected value.
        """
        records = []
        for path in self._paths():
            try:
                records.append(_read(path))
            except InputError:
                if os.path.lexists(path):  # else another process has removed it since it was listed
                    raise
        return records

    def find(self, key: str) -> ResultRecord | None:
        """Return the record with this `ResultRecord.key`; None if there is none.

        A record of schema 1 is never found, because its identities are not fully known.

        Raises:
            InputError: see `load`.
        """
        paths = self._paths(key)
        return _read(paths[0]) if paths else None

    def _path(self, record: ResultRecord) -> Path:
        if record.schema != SCHEMA:
            raise ValueError(
                f"schema is {record.schema}, expected {SCHEMA}: records of an earlier version are read-only"
            )
        pretrain_seed = "unknown" if record.pretrain_seed is None else record.pretrain_seed
        seeds = f"p{pretrain_seed}-t{record.transfer_seed}"
        name = f"{_slug(record.method)}-{_slug(record.dataset)}-{seeds}-{record.key}.json"
        return self.folder / record.task / name

    def _paths(self, key: str = "") -> list[Path]:
        # A name that starts with a dot is a file that another process is still writing.
        paths = (path for path in self.folder.glob("*/*.json") if not path.name.startswith("."))
        return sorted(path for path in paths if path.name.endswith(f"{key}.json"))


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".txt").unlink(missing_ok=True)


def _with_list(path: Path, record: ResultRecord, image_list: bytes | None) -> ResultRecord:
    """Write the list of a record, before the record, so that a record whose images were drawn has its list."""
    if image_list is None:
        return record
    files.write_bytes(path.with_suffix(".txt"), image_list)
    return dataclasses.replace(record, details={**record.details, IMAGE_LIST: hashlib.sha256(image_list).hexdigest()})


def content_of(record: ResultRecord) -> dict[str, Any]:
    """Return the content of a record's file, in which `seals.KEY` is not set yet."""
    values = {field: getattr(record, field) for field in _FIELDS}
    values |= {f"{name}_sha256": getattr(record, f"{name}_sha256") for name in _DIGESTED}
    return values | {seals.KEY: seals.UNSET}


def _read(path: Path) -> ResultRecord:
    remedy = "restore the file from a copy, or delete it and run the task again"
    return parse(inputs.read_bytes(path, f"record {path}"), f"record {path}", remedy, file=str(path))


def parse(content: bytes, where: str, remedy: str, *, file: str = "") -> ResultRecord:
    """Return the record in the content of a file.

    Args:
        where: the beginning of messages.
        remedy: the end of messages.
        file: see `ResultRecord`.

    Raises:
        InputError: this is not a record. The message names the field and the expected value.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a JSON object at the top level; {remedy}")
    schema = values.setdefault("schema", 1)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise InputError(f"{where}: schema is {schema!r}, expected a whole number up to {SCHEMA}; {remedy}")
    if schema > SCHEMA:
        raise InputError(f"{where}: schema is {schema}, expected at most {SCHEMA}; update intl-bench to read it")
    expected = _EXPECTED[schema]
    for name in sorted(expected.keys() ^ values.keys()):
        if name not in values:
            raise InputError(f"{where}: {name} is missing, expected {expected[name]}; {remedy}")
        raise InputError(f"{where}: unknown field {name!r}, expected only those of schema {schema}; {remedy}")
    if values.pop(seals.KEY, None) is None and schema == SCHEMA:
        raise InputError(f"{where}: {seals.KEY} is missing; {remedy}")
    digests = {name: values.pop(f"{name}_sha256") for name in _DIGESTED} if schema > 1 else {}
    try:
        record = ResultRecord(**(values if digests else _upgraded(values)), file=file)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}; {remedy}") from error
    for name, stored in digests.items():
        if stored != (actual := getattr(record, f"{name}_sha256")):
            raise InputError(
                f"{where}: {name}_sha256 is {stored!r}, expected {actual}, the digest of its {name}: one of the "
                f"two was changed after the file was written; {remedy}"
            )
    if seals.check(io.BytesIO(content))[1] is False:
        raise InputError(f"{where}: its content does not match its {seals.KEY}; {remedy}")
    return record


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of schema 1 as fields of a record. Its identities hold the summary and the weights only."""
    values = {name: value for name, value in values.items() if name != "config_sha256"}
    protocol, details = (values[name] if isinstance(values[name], dict) else {} for name in ("protocol", "details"))
    known: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for name, value in protocol.items():
        known[name.startswith("pretrain_")][name] = value
    # Pre-trainings with equal summaries may differ in other settings. Only equal weights show that they are the same.
    weights = (details if values["task"] == "pretrain" else values).get("checkpoint_sha256")
    return values | {
        "pretraining": {
            "schema": 1,
            "known": known[True],
            "weights": weights or f"unknown, of record {digest(values)}",
        },
        "evaluation": {"schema": 1, "known": known[False]},
        "weights_sha256": None if values["task"] == "pretrain" else values["checkpoint_sha256"],
    }


def _types_of(field: "dataclasses.Field[Any]") -> tuple[type, ...]:
    kind: Any = typing.get_origin(field.type) or field.type
    if kind is types.UnionType:
        return typing.get_args(field.type)
    return (int, float) if kind is float else (kind,)


_TYPE_NAMES = {
    (str,): "a string",
    (int,): "a whole number",
    (int, float): "a number",
    (dict,): "an object",
    (str, type(None)): "a string or null",
    (int, type(None)): "a whole number or null",
}
_TYPES = {field.name: _types_of(field) for field in dataclasses.fields(ResultRecord)}
_FIELDS = tuple(name for name in _TYPES if name != "file")
_FIELD_TYPE_NAMES = {name: _TYPE_NAMES[_TYPES[name]] for name in _FIELDS}
# schema: {field of a file: description of the expected value}
_EXPECTED = {
    1: {k: v for k, v in _FIELD_TYPE_NAMES.items() if k not in (*_DIGESTED, "weights_sha256")}
    | {"config_sha256": "a string"},
    2: _FIELD_TYPE_NAMES | {f"{name}_sha256": "a string" for name in _DIGESTED},
}
_EXPECTED[3] = _EXPECTED[2] | {seals.KEY: "a string"}


def _check_type(name: str, value: Any) -> None:
    if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected {_TYPE_NAMES[_TYPES[name]]}")


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -1e300 < value < 1e300  # false for NaN too, and for an integer that no float holds


def _slug(name: str) -> str:
    # 60 characters keep the file name below the length limit of file systems.
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "unnamed"
