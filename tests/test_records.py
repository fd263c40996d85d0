"""Records: validation, the key, the store, and many writers at once."""

import dataclasses
import hashlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord


def make(**changes: Any) -> ResultRecord:
    values: dict[str, Any] = {
        "task": "linear",
        "method": "INTL",
        "dataset": "cifar10",
        "backbone": "resnet18",
        "metrics": {"top1": 92.6, "best_top1": 92.7},
        "details": {"best_epoch": 480},
        "pretrain_seed": 0,
        "transfer_seed": 1,
        "protocol": {"epochs": 500, "lr": 0.01, "selection": "last", "augmented": False, "engine": None},
        "scale": "paper",
        "checkpoint_sha256": "ab" * 32,
        "config": {"epochs": 500},
        "config_sha256": "cd" * 32,
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
    assert RecordStore(tmp_path).load() == [record]
    assert RecordStore(tmp_path).find(record.key) == record
    assert RecordStore(tmp_path).find("0" * 16) is None


def test_key_is_the_hash_of_what_identifies_a_result() -> None:
    identity = (
        f'{{"checkpoint_sha256":"{"ab" * 32}","config_sha256":"{"cd" * 32}","dataset":"cifar10","method":"INTL",'
        '"pretrain_seed":0,"task":"linear","transfer_seed":1}'
    )
    assert make().key == hashlib.sha256(identity.encode()).hexdigest()[:16]
    assert make(wall_time_s=1.0, metrics={"top1": 1.0}).key == make().key
    assert make(transfer_seed=2).key != make().key


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    first = store.append(make())
    before = first.read_bytes()
    assert store.append(make(metrics={"top1": 1.0})) == first
    assert first.read_bytes() == before


def test_a_removed_record_can_be_written_again(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(make())
    store.append(make(transfer_seed=2))
    store.remove(make().key)
    store.remove(make().key)
    assert [record.transfer_seed for record in store.load()] == [2]
    store.append(make(metrics={"top1": 1.0}))
    assert store.load()[0].metrics == {"top1": 1.0}


def test_load_is_sorted_and_ignores_what_is_no_record(tmp_path: Path) -> None:
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
        ({"scale": "huge"}, "scale is 'huge', expected one of paper, reduced, demo"),
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
        ({"checkpoint_sha256": 3}, "checkpoint_sha256 is 3, expected a text or null"),
        ({"schema": 2}, "schema is 2, expected 1"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "[]", "expected a JSON object"),
        (lambda text: text.replace('"scale": "paper"', '"scale": "huge"'), "scale is 'huge', expected one of paper"),
        (lambda text: text.replace('"top1": 92.6', '"top1": NaN'), "metrics.*is nan, expected a finite number"),
        (lambda text: text.replace('"backbone": "resnet18",', ""), "backbone is missing, expected a text"),
        (lambda text: text.replace('"backbone"', '"spine"'), "backbone is missing"),
        (lambda text: text.replace('"code"', '"extra": 1,\n "code"'), "unknown field 'extra'"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema is 2, expected at most 1; update intl-bench"),
        (lambda text: text.replace('"wall_time_s": 12.5', '"wall_time_s": "12.5"'), "wall_time_s is '12.5', expected"),
    ],
)
def test_a_broken_file_is_named_with_its_field(tmp_path: Path, change: Any, message: str) -> None:
    store = RecordStore(tmp_path)
    path = store.append(make())
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        store.load()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def append_one_of_their_own_and_a_shared_one(folder: Path, process: int) -> None:
    store = RecordStore(folder)
    store.append(make(transfer_seed=process))
    store.append(make(transfer_seed=99, metrics={"top1": float(process)}))


def test_sixteen_processes_append_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = [(tmp_path, process) for process in range(16)]
    processes = [context.Process(target=append_one_of_their_own_and_a_shared_one, args=pair) for pair in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 16
    records = RecordStore(tmp_path).load()
    assert sorted(record.transfer_seed for record in records) == [*range(16), 99]
    assert len(list((tmp_path / "linear").iterdir())) == 17  # no temporary file is left
    for path in (tmp_path / "linear").iterdir():
        assert set(json.loads(path.read_text())) == {field.name for field in dataclasses.fields(ResultRecord)}


def test_importing_records_needs_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import intl_bench.records\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'intl_bench'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
