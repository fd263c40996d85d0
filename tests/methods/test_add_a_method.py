"""The example in docs/add_a_method.md works: three new files are enough to train, score, plan and test a new method."""

from pathlib import Path

import pytest
from documented import Copy
from places import ROOT

TINY = ["data.size=300", "batch_size=32", "epochs=1", "warmup_epochs=0", "projector.hidden=32", "projector.out=16"]


@pytest.mark.slow
def test_the_documented_method_works(tmp_path: Path) -> None:
    copy = Copy(tmp_path, "add_a_method.md")
    assert copy.added == [
        "pretrain/methods/spread.py",
        "configs/pretrain/spread_demo.yaml",
        "tests/methods/test_spread.py",
    ]
    assert "3 passed" in copy.run("-m", "pytest", "tests/methods/test_spread.py", "-p", "no:cacheprovider")
    # The tests of all methods include the new one without a change.
    (tmp_path / "tests/methods/test_methods.py").symlink_to(ROOT / "tests/methods/test_methods.py")
    common = ["tests/methods/test_methods.py", "-k", "spread or tables or recipes", "-p", "no:cacheprovider"]
    assert "[spread]" in copy.run("-m", "pytest", "-vv", *common)
    path = "runs/pretrain/spread_demo/seed0/checkpoint.pt"
    assert "a training step" in copy.run("-m", "intl_bench", "pretrain", "spread_demo", *TINY, "--dry-run", "--verbose")
    assert "checkpoint:" in copy.run("-m", "intl_bench", "pretrain", "spread_demo", *TINY)
    copy.run("-m", "intl_bench", "knn", path)
    assert "Spread" in copy.run("-m", "intl_bench", "tables")
    assert "embedding" in copy.run("-m", "intl_bench", "spectrum", path)
