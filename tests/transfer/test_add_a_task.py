"""The example in docs/add_a_task.md works: the new task is a command, and its results are records."""

import json
from pathlib import Path

import pytest
from documented import Copy

TINY = ["data.size=300", "batch_size=32", "epochs=1", "warmup_epochs=0", "projector.hidden=32", "projector.out=16"]


@pytest.mark.slow
def test_the_documented_task_works(tmp_path: Path) -> None:
    copy = Copy(tmp_path, "add_a_task.md")
    assert copy.added == [
        "transfer/centroid.py",
        "transfer/__init__.py",
        "configs/centroid/default.yaml",
        "tests/transfer/test_centroid.py",
    ]
    assert "4 passed" in copy.run("-m", "pytest", "tests/transfer/test_centroid.py", "-p", "no:cacheprovider")
    assert "nearest class centroid" in copy.run("-m", "intl_bench", "--help")
    path = "runs/pretrain/demo/seed0/checkpoint.pt"
    printed = copy.commands(
        ["pretrain", "demo", *TINY],
        ["centroid", path, "--dry-run", "--verbose"],
        ["centroid", path, "--init", "random", "--seeds", "2"],
        ["centroid", path],
        ["tables"],
    )
    assert "normalize: true" in printed
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "records").rglob("*.json")]
    assert len(records) == 3
    assert {record["task"] for record in records} == {"centroid"}
    assert all(0 <= record["metrics"]["centroid_top1"] <= 100 for record in records)
    assert "centroid_top1" in printed.rpartition("Table")[2].replace("\\", "")
