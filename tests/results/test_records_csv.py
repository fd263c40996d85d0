"""`records export` and `records import`: exact copies, conflicts, and files that something else has changed."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import COCO, KNN, LINEAR, R18, make

from intl_bench import cli
from intl_bench.core.escapes import csv_text, text_of_csv
from intl_bench.records import RecordStore, ResultRecord


def linear(seed: int | None = 0, top1: float = 60.0, **more: Any) -> ResultRecord:
    return make("linear", "cifar10", {"top1": top1, "top5": 99.0}, {**LINEAR, **R18}, pretrain_seed=seed, **more)


def store(name: str, *records: ResultRecord) -> RecordStore:
    made = RecordStore(Path(name) / "records")
    for record in records:
        made.append(record)
    return made


def contents(name: str) -> dict[str, bytes]:
    folder = Path(name) / "records"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*"))}


def run(*words: str) -> int:
    return cli.main(["records", *words])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_import_writes_the_exported_files_byte_for_byte(capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"method": '=1+1,"x"\n\'é', "details": {"deep": [1, {"a": None, "b": 1e-300}], "text": "a,b\r\nc"}}
    first = store("one", linear(), make("knn", "shapes", {"knn5": 100}, KNN, **odd))
    first.append(make("coco", "cells", {"bbox/AP": 0.1 + 0.2}, COCO), b"a.jpg\nb c.jpg\n\xff.jpg\n")
    store("two", linear(1, 61.0))
    assert run("export", "one.csv", "--results", "one") == 0
    assert run("export", "two.csv", "--results", "two") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("one.csv: 3 records; they hold paths of this machine")
    assert run("import", "one.csv", "two.csv", "--results", "both") == 0
    assert capsys.readouterr().out == "both/records: 4 added, 0 already there, 0 in conflict\n"
    assert contents("both") == contents("one") | contents("two")
    assert run("import", "two.csv", "one.csv", "--results", "both") == 0
    assert capsys.readouterr().out == "both/records: 0 added, 4 already there, 0 in conflict\n"


def test_a_list_of_images_that_was_changed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    one = store("one")
    path = one.append(linear(), b"a.jpg\nb.jpg\n")
    assert run("export", "one.csv", "--results", "one") == 0
    text = Path("one.csv").read_text(encoding="utf-8")
    assert text.count("b.jpg") == 1
    Path("one.csv").write_text(text.replace("b.jpg", "c.jpg"), encoding="utf-8")
    assert run("import", "one.csv", "--results", "two") == 2
    assert "not the list of images that the record names" in capsys.readouterr().err
    assert not Path("two").exists()
    path.with_suffix(".txt").write_text("other")
    assert run("export", "two.csv", "--results", "one") == 2


def test_a_line_is_readable_in_a_spreadsheet() -> None:
    store("one", linear(2, 61.5), make("knn", "shapes", {"knn5": 50.0}, KNN, method="=HYPERLINK(1)"))
    assert run("export", "one.csv", "--results", "one") == 0
    with open("one.csv", encoding="utf-8", newline="") as stream:
        knn, top = csv.DictReader(stream)
    assert list(top)[:8] == [
        *("task", "method", "dataset", "backbone", "scale", "pretrain_seed", "transfer_seed", "created"),
    ]
    assert (top["task"], top["pretrain_seed"], top["metrics.top1"], top["metrics.knn5"]) == ("linear", "2", "61.5", "")
    assert knn["method"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (linear(), linear(top1=61.0), "has other scores of the same weights and seeds (there / here: top1 60.0 / 61.0"),
        (linear(), linear(weights_sha256="b" * 64), "has other weights of the same pre-training and seed 0"),
        (
            linear(),
            linear(weights_sha256="b" * 64, transfer_seed=1),
            "has other weights of the same pre-training and seed 0",
        ),
        (
            linear(weights_sha256="a" * 64),
            linear(1, weights_sha256="a" * 64),
            "the same weights under the seed 0, not 1",
        ),
    ],
)
def test_a_conflict_is_reported_and_nothing_is_overwritten(
    there: ResultRecord, here: ResultRecord, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store("mine", there)
    store("theirs", here, linear(5))
    before = contents("mine")
    assert run("export", "a.csv", "--results", "theirs") == 0
    capsys.readouterr()
    assert run("import", "a.csv", "--results", "mine") == 2
    output = capsys.readouterr()
    (line,) = (line for line in output.out.splitlines() if line.startswith("conflict: "))
    assert line.startswith("conflict: a.csv, record ")
    assert "linear of INTL on cifar10: mine/records/linear/intl-cifar10-p0-t0-" in line
    assert message in line
    assert "1 added, 0 already there, 1 in conflict" in output.out
    assert output.err.startswith("intl-bench: 1 records contradict others and were not added")
    assert before.items() < contents("mine").items()
    assert cli.main(["tables", "--results", "mine"]) == 0  # the tables stay readable
    if "scores" not in message:
        store("mine", here)
        assert cli.main(["tables", "--results", "mine"]) == 2


def test_conflicts_between_imported_files_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    for name, top1 in (("a", 60.0), ("b", 61.0)):
        store(name, linear(top1=top1))
        assert run("export", f"{name}.csv", "--results", name) == 0
    assert run("import", "a.csv", "b.csv", "--results", "both") == 2
    assert "conflict: b.csv, record 1: linear of INTL on cifar10: a.csv, record 1 has" in capsys.readouterr().out
    assert len(contents("both")) == 1


def test_another_run_with_the_same_scores_is_already_there(capsys: pytest.CaptureFixture[str]) -> None:
    store("mine", linear())
    store("theirs", linear(created="2025-01-01T00:00:00+00:00", wall_time_s=9.0, hardware={"cpu": "another"}))
    before = contents("mine")
    assert run("export", "a.csv", "--results", "theirs") == 0
    assert run("import", "a.csv", "--results", "mine") == 0
    assert "0 added, 1 already there" in capsys.readouterr().out
    assert contents("mine") == before


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    store("one", linear())
    assert run("export", "a.csv", "--results", "one") == 0
    assert run("import", "a.csv", "--results", "two", "--dry-run") == 0
    assert "two/records: 1 would be added, 0 already there, 0 in conflict" in capsys.readouterr().out
    assert not Path("two").exists()


def change(name: str, column: str, value: str) -> None:
    path = Path(name)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    rows[-1][column] = value
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "metrics.top1",
            "99.0",
            "its values do not match its intl_bench_sha256; the line was changed after the export",
        ),
        ("pretrain_seed", "7", "its values do not match its intl_bench_sha256"),
        ("created", "31.05.2024 12:00", "its values do not match its intl_bench_sha256"),
        ("metrics.top1", "6,0", "metrics.top1: not valid JSON"),
        ("pretraining", "{", "pretraining: not valid JSON"),
        ("intl_bench_sha256", "", "its values do not match its intl_bench_sha256"),
    ],
)
def test_a_changed_line_is_refused_and_nothing_is_added(
    column: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store("one", linear(), linear(1))
    assert run("export", "a.csv", "--results", "one") == 0
    change("a.csv", column, value)
    assert run("import", "a.csv", "--results", "two") == 2
    line = capsys.readouterr().err
    assert line.startswith("intl-bench: a.csv, record 2")
    assert message in line
    assert line.count("\n") == 1
    assert not Path("two").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.csv: not a CSV file (No columns to parse from file); expected one of records export"),
        (
            "task;method\nlinear;INTL\n",
            "a.csv: the column task is missing; expected a file of records export, with commas",
        ),
        ("table,row\n1,2\n", "a.csv: the column task is missing"),
    ],
)
def test_another_file_is_refused(content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text(content, encoding="utf-8")
    assert run("import", "a.csv") == 2
    assert message in capsys.readouterr().err


def test_an_export_neither_overwrites_a_file_nor_writes_an_empty_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "a.csv", "--results", "nowhere") == 2
    assert "nowhere/records: no records to export" in capsys.readouterr().err
    store("one", linear())
    Path("a.csv").write_text("mine")
    assert run("export", "a.csv", "--results", "one") == 2
    assert "a.csv: the file exists" in capsys.readouterr().err
    assert Path("a.csv").read_text() == "mine"


@settings(deadline=None, max_examples=50)
@given(
    st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["'=1", "''+", "'", "'a", " =1", "\t", "\r"])
)
def test_a_text_survives_its_cell(text: str) -> None:
    import pandas as pd

    table = csv_text(pd.DataFrame({"a": [text], "b": ["x"]}))
    frame = pd.read_csv(io.StringIO(table, newline=""), dtype=str, keep_default_na=False, lineterminator="\n")
    assert text_of_csv(str(frame["a"][0])) == text
