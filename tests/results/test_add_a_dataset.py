"""The example in docs/add_a_dataset.md works: pre-training, scores and a column of the table on the new data set."""

from pathlib import Path

import pytest
from documented import Copy
from transfer_cases import make_folder

TINY = [
    *("backbone.name=resnet10_narrow", "projector.hidden=32", "projector.out=16", "batch_size=32", "epochs=1"),
    *("warmup_epochs=0", "precision=fp32", "workers=0", "views=[{size: 32}, {size: 32}]", "device=cpu"),
]


@pytest.mark.slow
def test_the_documented_data_set_works(tmp_path: Path) -> None:
    copy = Copy(tmp_path, "add_a_dataset.md")
    assert copy.added == [
        "intl_bench/core/datasets.py",
        "configs/pretrain/stl10_r18_intl.yaml",
        "configs/linear/stl10.yaml",
    ]
    make_folder(tmp_path / "images", classes=10, train=8, test=2)
    root = f"data.root={tmp_path / 'images'}"
    path = "runs/pretrain/stl10_r18_intl/seed0/checkpoint.pt"
    small = ["workers=0", "device=cpu", "resize=32", "crop=32"]
    printed = copy.commands(
        ["pretrain", "stl10_r18_intl", root, *TINY, "--dry-run"],
        ["pretrain", "stl10_r18_intl", root, *TINY],
        ["linear", path, *small, "epochs=1", "batch_size=32"],
        ["knn", path, *small],
        ["tables", "--dataset", "stl10"],
    )
    planned, _, table = printed.partition("knn5")
    assert "stl10" in planned
    assert "STL-10" in table
    assert "Linear top-1" in table
    assert "5-nn" in table
    normalization = "mean 0.447 0.44 0.407, std 0.26 0.257 0.271"
    assert normalization in "".join(p.read_text() for p in (tmp_path / "results" / "records").rglob("*.json"))
