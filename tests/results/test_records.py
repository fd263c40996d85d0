"""Records: validation, the key, the store, and many writers at once."""

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from intl_bench.core.errors import InputError, ResourceError
from intl_bench.records import RecordStore, ResultRecord


def make(**changes: Any) -> ResultRecord:
    values: dict[str, Any] = {
        "task": "linear",
        "method": "INTL",
        "dataset": "cifar10",
        "backbone": "resnet18",
        "metrics": {"top1": 92.6, "best_top1": 92.7},
        "details": {"best_epoch": 480},
        "pretraining": {"settings": {"lr": 0.5, "views": [{"size": 32}]}, "data": "ef" * 32, "progress": "complete"},
        "evaluation": {"settings": {"epochs": 500}, "data": {"train": "12" * 32, "test": "34" * 32}},
        "pretrain_seed": 0,
        "transfer_seed": 1,
        "protocol": {"epochs": 500, "lr": 0.01, "selection": "last", "augmented": False, "engine": None},
        "scale": "paper",
        "weights_sha256": "56" * 32,
        "checkpoint_sha256": "ab" * 32,
        "config": {"epochs": 500},
        "code": {"version": "0.1.0", "commit": None, "modified": True},
        "libraries": {"torch": "2.10.0"},
        "hardware": {"device": "cpu"},
        "wall_time_s": 12.5,
        "peak_memory_mib": 800.0,
        "created": "2024-05-31T12:00:00+00:00",
    }
    return ResultRecord(**{**values, **changes})


def test_round_trip(tmp_path: Path) -> None:
    record = make(method="W-MSE 4 (größer)", checkpoint_sha256=None)
    path = RecordStore(tmp_path).append(record)
    assert path == tmp_path / "linear" / f"w-mse-4-gr-er-cifar10-p0-t1-{record.key}.json"
    (loaded,) = RecordStore(tmp_path).load()
    assert loaded == record
    assert (record.file, loaded.file) == ("", str(path))
    assert RecordStore(tmp_path).find(record.key) == record
    assert RecordStore(tmp_path).find("0" * 16) is None


def test_the_list_of_a_record_is_beside_it(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    first = store.append(make(), b"a/1.png\n")
    assert first.with_suffix(".txt").read_bytes() == b"a/1.png\n"
    assert len(store.load()) == 1
    second = store.replace(make(weights_sha256="78" * 32), b"a/2.png\n")  # of a repeated pre-training
    assert sorted(path for path in first.parent.iterdir()) == sorted([second, second.with_suffix(".txt")])
    assert second.with_suffix(".txt").read_bytes() == b"a/2.png\n"


def test_names_and_details_that_look_like_the_digest_are_content(tmp_path: Path) -> None:
    store, unset = RecordStore(tmp_path), "0" * 64
    record = make(dataset=f"intl_bench_sha256{unset}", details={"intl_bench_sha256": unset})
    assert store.load() == []
    store.append(record)
    assert store.load() == [record]


def test_a_record_with_an_unknown_pre_training_seed_can_be_stored(tmp_path: Path) -> None:
    record = make(pretrain_seed=None, weights_sha256=None)
    assert RecordStore(tmp_path).append(record).name == f"intl-cifar10-punknown-t1-{record.key}.json"
    assert RecordStore(tmp_path).load() == [record]


def test_key_is_the_hash_of_the_identifying_fields() -> None:
    pretraining = f'{{"data":"{"ef" * 32}","progress":"complete","settings":{{"lr":0.5,"views":[{{"size":32}}]}}}}'
    evaluation = f'{{"data":{{"test":"{"34" * 32}","train":"{"12" * 32}"}},"settings":{{"epochs":500}}}}'
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (pretraining, evaluation)]
    identity = (
        f'{{"dataset":"cifar10","evaluation_sha256":"{digests[1]}","method":"INTL","pretrain_seed":0,'
        f'"pretraining_sha256":"{digests[0]}","task":"linear","transfer_seed":1,"weights_sha256":"{"56" * 32}"}}'
    )
    assert make().key == hashlib.sha256(identity.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"wall_time_s": 1.0, "metrics": {"top1": 1.0}}, True),
        ({"config": {}, "protocol": {}, "checkpoint_sha256": None, "scale": "adapted"}, True),
        ({"transfer_seed": 2}, False),
        ({"pretrain_seed": None}, False),
        ({"weights_sha256": None}, False),
        ({"pretraining": {"settings": {"lr": 0.25}}}, False),
        ({"evaluation": {}}, False),
    ],
)
def test_key_depends_on_the_identifying_fields_only(changes: dict[str, Any], same: bool) -> None:
    assert (make(**changes).key == make().key) is same


def write_earlier(folder: Path, **changes: Any) -> Path:
    """Write a file in the format of the first version."""
    values = dataclasses.asdict(make(**changes))
    for name in ("pretraining", "evaluation", "weights_sha256", "file"):
        del values[name]
    path = folder / values["task"] / "earlier-0123456789abcdef.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values | {"schema": 1, "config_sha256": "cd" * 32}))
    return path


def test_identities_of_the_first_schema_hold_the_summary(tmp_path: Path) -> None:
    path = write_earlier(tmp_path, protocol={"pretrain_epochs": 4, "pretrain_lr": 0.5, "lr": 0.01, "k": None})
    (record,) = RecordStore(tmp_path).load()
    assert record.schema == 1
    assert record.pretraining == {
        "schema": 1,
        "known": {"pretrain_epochs": 4, "pretrain_lr": 0.5},
        "weights": "ab" * 32,
    }
    assert record.evaluation == {"schema": 1, "known": {"lr": 0.01, "k": None}}
    assert (record.pretrain_seed, record.transfer_seed, record.scale) == (0, 1, "paper")
    assert (record.weights_sha256, record.checkpoint_sha256) == ("ab" * 32, "ab" * 32)
    assert record.file == str(path)
    assert RecordStore(tmp_path).find(record.key) is None
    with pytest.raises(ValueError, match="schema is 1, expected 3"):
        RecordStore(tmp_path).append(record)
    assert list(tmp_path.rglob("*.json")) == [path]


def test_a_file_without_a_schema_has_the_first_schema(tmp_path: Path) -> None:
    path = write_earlier(tmp_path)
    path.write_text(path.read_text().replace('"schema": 1, ', ""))
    assert RecordStore(tmp_path).load()[0].schema == 1


def test_weights_of_a_pre_training_in_the_first_schema_are_unknown(tmp_path: Path) -> None:
    write_earlier(tmp_path, task="pretrain", checkpoint_sha256=None, details={"checkpoint_sha256": "cd" * 32})
    (record,) = RecordStore(tmp_path).load()
    assert record.weights_sha256 is None
    assert record.pretraining["weights"] == "cd" * 32


def test_pre_trainings_of_the_first_schema_without_weights_always_differ(tmp_path: Path) -> None:
    diverged: dict[str, Any] = {"task": "pretrain", "checkpoint_sha256": None, "details": {"checkpoint_sha256": ""}}
    for seed in (0, 1):
        write_earlier(tmp_path / str(seed), pretrain_seed=seed, **diverged)
    first, second = (RecordStore(tmp_path / str(seed)).load()[0] for seed in (0, 1))
    assert first.pretraining["weights"].startswith("unknown, of record ")
    assert first.pretraining != second.pretraining


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"config_sha256"', '"config_sha"'), "unknown field 'config_sha'"),
        (lambda text: text.replace('"backbone": "resnet18", ', ""), "backbone is missing, expected a string"),
        (lambda text: text.replace('"pretrain_seed": 0', '"pretrain_seed": 0.5'), "pretrain_seed is 0.5"),
        (lambda text: text.replace('"protocol": {', '"protocol": [], "x": {'), "unknown field 'x'"),
    ],
)
def test_an_error_names_the_file_and_the_field_in_the_first_schema(tmp_path: Path, change: Any, message: str) -> None:
    path = write_earlier(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        RecordStore(tmp_path).load()
    assert str(path) in str(caught.value)


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    first = store.append(make())
    before = first.read_bytes()
    assert store.append(make(metrics={"top1": 1.0})) == first
    assert first.read_bytes() == before


def test_replace_deletes_earlier_records_of_the_same_result(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(make())
    store.append(make(transfer_seed=2))
    store.append(make(weights_sha256="12" * 32))
    store.replace(make(metrics={"top1": 1.0}))
    assert [(r.transfer_seed, r.metrics["top1"]) for r in store.load()] == [(1, 1.0), (2, 92.6)]
    store.replace(make(weights_sha256="34" * 32, metrics={"top1": 2.0}))  # after another pre-training
    assert [(r.transfer_seed, r.metrics["top1"]) for r in store.load()] == [(1, 2.0), (2, 92.6)]
    store.replace(make(transfer_seed=5))
    assert len(store.load()) == 3


def test_replace_keeps_the_earlier_record_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordStore(tmp_path)
    store.append(make())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        store.replace(make(weights_sha256="34" * 32))
    assert store.load() == [make()]


def test_append_works_on_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    store = RecordStore(tmp_path)
    path = store.append(make())
    store.append(make(metrics={"top1": 1.0}))
    assert store.load() == [make()]
    assert list(path.parent.iterdir()) == [path]


def test_a_record_that_another_process_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RecordStore(tmp_path)
    store.append(make())
    listed = RecordStore._paths
    monkeypatch.setattr(RecordStore, "_paths", lambda self: [*listed(self), tmp_path / "knn" / "gone.json"])
    assert store.load() == [make()]


def test_load_is_sorted_and_ignores_other_files(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records")
    assert store.load() == []
    for changes in ({"task": "knn"}, {"transfer_seed": 3}, {"transfer_seed": 2}):
        store.append(make(**changes))
    (store.folder / "linear" / ".half-written.json").write_text("{")
    (store.folder / "linear" / ".x.json.abcd").write_text("{")
    (store.folder / "linear" / "notes.txt").write_text("mine")
    (store.folder / "tables.json").write_text("[]")
    assert [(r.task, r.transfer_seed) for r in store.load()] == [("knn", 1), ("linear", 2), ("linear", 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "huge"}, "scale is 'huge', expected one of paper, adapted, reduced, demo"),
        ({"metrics": {"top1": float("nan")}}, r"metrics\['top1'\] is nan, expected a finite number from 0 to 100"),
        ({"metrics": {"top1": 100.1}}, "from 0 to 100"),
        ({"metrics": {"top1": True}}, "from 0 to 100"),
        ({"metrics": [1.0]}, "metrics is .*, expected an object"),
        ({"pretrain_seed": -1}, "pretrain_seed is -1, expected a finite number of at least 0"),
        ({"transfer_seed": 1.5}, "transfer_seed is 1.5, expected a whole number"),
        ({"transfer_seed": True}, "transfer_seed is True, expected a whole number"),
        ({"task": "../linear"}, "task is '../linear', expected lower-case letters"),
        ({"method": " "}, "method is empty"),
        ({"protocol": {"lr": float("inf")}}, r"protocol\['lr'\] is inf"),
        ({"protocol": {"lr": [1]}}, r"protocol\['lr'\] is \[1\]"),
        ({"wall_time_s": float("nan")}, "wall_time_s is nan"),
        ({"created": "yesterday"}, "created is 'yesterday', expected an ISO 8601 time"),
        ({"created": "2024-05-31T12:00:00"}, "created is .*, expected a time in UTC"),
        ({"checkpoint_sha256": 3}, "checkpoint_sha256 is 3, expected a string or null"),
        ({"weights_sha256": 3}, "weights_sha256 is 3, expected a string or null"),
        ({"pretrain_seed": "0"}, "pretrain_seed is '0', expected a whole number or null"),
        ({"pretrain_seed": False}, "pretrain_seed is False, expected a whole number or null"),
        ({"transfer_seed": None}, "transfer_seed is None, expected a whole number"),
        ({"pretraining": "ours"}, "pretraining is 'ours', expected an object"),
        ({"schema": 4}, "schema is 4, expected 1 to 3"),
    ],
)
def test_impossible_values_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "[]", "expected a JSON object"),
        (lambda text: text.replace('"scale": "paper"', '"scale": "huge"'), "scale is 'huge', expected one of paper"),
        (lambda text: text.replace('"top1": 92.6', '"top1": NaN'), "metrics.*is nan, expected a finite number"),
        (lambda text: text.replace('"backbone": "resnet18",', ""), "backbone is missing, expected a string"),
        (lambda text: text.replace('"backbone"', '"spine"'), "backbone is missing"),
        (lambda text: text.replace('"code"', '"extra": 1,\n "code"'), "unknown field 'extra'"),
        (lambda text: text.replace('"schema": 3', '"schema": 4'), "schema is 4, expected at most 3; update intl-bench"),
        (lambda text: text.replace('"schema": 3', '"schema": "3"'), "schema is '3', expected a whole number up to 3"),
        (
            lambda text: text.replace('"lr": 0.5', '"lr": 0.25'),
            "pretraining_sha256 is '[0-9a-f]{64}', expected [0-9a-f]",
        ),
        (
            lambda text: text.replace('"epochs": 500\n', '"epochs": 5\n'),
            "evaluation_sha256 is '[0-9a-f]{64}', expected",
        ),
        (lambda text: text.replace('"evaluation_sha256"', '"evaluation_sha"'), "unknown field 'evaluation_sha'"),
        (lambda text: text.replace('"wall_time_s": 12.5', '"wall_time_s": "12.5"'), "wall_time_s is '12.5', expected"),
        (
            lambda text: text.replace('"wall_time_s": 12.5', '"wall_time_s": 12.6'),
            "does not match its intl_ben",
        ),
        (lambda text: text.replace('"intl_bench_sha256"', '"intl_bench_sha255"'), "unknown field 'intl_bench_sha255'"),
        (lambda text: text.replace('"wall_time_s": 12.5', '"wall_time_s": 1e999'), "wall_time_s is inf, expected"),
        (lambda text: text.replace('"wall_time_s": 12.5', f'"wall_time_s": 1{"0" * 400}'), "wall_time_s is 1"),
        (lambda text: text.replace('"details": {', '"details": {"a": ' + "[" * 10**5), "not valid JSON"),
    ],
)
def test_an_error_names_the_file_and_the_field(tmp_path: Path, change: Any, message: str) -> None:
    store = RecordStore(tmp_path)
    path = store.append(make())
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        store.load()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def append_two(folder: Path, process: int) -> None:
    """Append one record with the process's own seed, and one with a seed that all processes share."""
    store = RecordStore(folder)
    store.append(make(transfer_seed=process))
    store.append(make(transfer_seed=99, metrics={"top1": float(process)}))


def test_sixteen_processes_append_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = [(tmp_path, process) for process in range(16)]
    processes = [context.Process(target=append_two, args=pair) for pair in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 16
    records = RecordStore(tmp_path).load()
    assert sorted(record.transfer_seed for record in records) == [*range(16), 99]
    assert len(list((tmp_path / "linear").iterdir())) == 17  # no temporary file is left
    for path in (tmp_path / "linear").iterdir():
        fields = {field.name for field in dataclasses.fields(ResultRecord)} - {"file"}
        assert set(json.loads(path.read_text())) == fields | {
            "pretraining_sha256",
            "evaluation_sha256",
            "intl_bench_sha256",
        }


def test_importing_records_needs_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import intl_bench.records\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'intl_bench'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_damaged_record_of_another_result_does_not_stop_a_replacement(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    other = store.append(make(transfer_seed=5))
    other.write_text("damaged")
    store.append(make())
    path = store.replace(make(weights_sha256="ef" * 32))
    assert sorted(file.name for file in (tmp_path / "linear").iterdir()) == sorted([other.name, path.name])
    with pytest.raises(InputError, match="not valid JSON"):
        store.load()
