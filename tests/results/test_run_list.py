"""`intl-bench ls runs` on folders in every state."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from intl_bench import cli, run_list
from intl_bench.core.locks import lock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/pretrain/flowers/seed0")
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "epoch": step / 5, "loss": 3 - step / 4}) for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "lo')
    (folder / "config.yaml").write_text("epochs: 4\nmax_steps: null\n")
    (folder / "checkpoint.pt").touch()
    return folder


def test_a_stopped_a_running_and_a_finished_run(run: Path) -> None:
    (row,) = run_list.runs()
    assert {key: row[key] for key in ("name", "state", "progress", "loss")} == {
        "name": str(run),
        "state": "stopped",
        "progress": "step 8 of 20 (40%)",
        "loss": "1",
    }
    with lock(run):
        assert run_list.runs()[0]["state"] == "running"
    (run / "backbone.safetensors").touch()
    (row,) = run_list.runs()
    assert (row["state"], row["progress"]) == ("finished", "step 8")


def test_a_run_that_ended_with_a_summary(run: Path) -> None:
    (run / "summary.json").write_text('{"state": "diverged", "step": 8, "steps": 40}')
    (row,) = run_list.runs()
    assert (row["state"], row["progress"]) == ("diverged", "step 8 of 40 (20%)")
    os.utime(run / "summary.json", (time.time() - 60, time.time() - 60))  # the run was started again, and killed
    (row,) = run_list.runs()
    assert (row["state"], row["progress"]) == ("stopped", "step 8 of 20 (40%)")


def test_a_run_of_limited_steps(run: Path) -> None:
    (run / "config.yaml").write_text("epochs: 4\nmax_steps: 10\n")
    assert run_list.runs()[0]["progress"] == "step 8 of 10 (80%)"


def test_the_age_is_that_of_the_newest_file_and_the_latest_run_is_first(run: Path) -> None:
    older = run.with_name("seed1")
    older.mkdir()
    (older / "metrics.jsonl").write_text("")
    for file in older.iterdir():
        os.utime(file, (time.time() - 7200, time.time() - 7200))
    rows = run_list.runs()
    assert [Path(row["name"]).name for row in rows] == ["seed0", "seed1"]
    assert rows[1]["age"] == "2.0 h"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]\n", b'{"step": "x", "loss": null}\n', b'{"loss": NaN}\n'])
def test_damaged_files_are_no_end_of_the_list(content: bytes, run: Path) -> None:
    for name in ("metrics.jsonl", "checkpoint.pt", "config.yaml", "summary.json"):
        (run / name).write_bytes(content)
    (row,) = run_list.runs()
    assert (row["state"], row["loss"]) == ("stopped", "")


def test_an_unfinished_scoring_run_is_listed(run: Path) -> None:
    folder = Path("runs/linear/abc")
    folder.mkdir(parents=True)
    (folder / "state_seed0.pt").touch()
    (folder / "metrics.jsonl").write_text('{"epoch": 3, "loss": 0.5}\n')
    row = next(row for row in run_list.runs() if row["name"] == str(folder))
    assert (row["state"], row["progress"], row["loss"]) == ("stopped", "epoch 3", "0.5")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", "[" * 200_000),
        ("metrics.jsonl", '{"step": 1, "epoch": 1, "loss": ' + "9" * 400 + "}\n"),
        ("metrics.jsonl", '{"step": ' + "9" * 5000 + "}\n"),
        ("metrics.jsonl", "\x00\n5\n[]\nnull\n"),
        ("summary.json", "[" * 200_000),
        ("summary.json", '{"steps": ' + "9" * 400 + "}"),
        ("config.yaml", "epochs: 0\n"),
        ("config.yaml", "epochs: [\n"),
    ],
)
def test_one_damaged_run_hides_no_other(run: Path, name: str, content: str) -> None:
    other = Path("runs/pretrain/trees/seed0")
    shutil.copytree(run, other)
    (run / name).write_text(content)
    later = time.time() + 10
    os.utime(run / name, (later, later))  # a summary that is older than the log is not read
    assert {row["name"] for row in run_list.runs()} == {str(run), str(other)}
    assert cli.main(["watch", str(run)]) == 0
