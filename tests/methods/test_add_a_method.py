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
    # The tests of all methods include the new one without a change.
    (tmp_path / "tests/methods/test_methods.py").symlink_to(ROOT / "tests/methods/test_methods.py")
    files = [f"tests/methods/test_{name}.py" for name in ("spread", "methods")]
    printed = copy.run("-m", "pytest", "-vv", *files, "-k", "spread", "-p", "no:cacheprovider")
    assert printed.count(f"{files[0]}::") == 3
    assert "[spread] PASSED" in printed.partition(f"{files[1]}::")[2]
    path = "runs/pretrain/spread_demo/seed0/checkpoint.pt"
    printed = copy.commands(
        ["pretrain", "spread_demo", *TINY, "--dry-run", "--verbose"],
        ["pretrain", "spread_demo", *TINY],
        ["knn", path],
        ["tables"],
        ["spectrum", path],
    )
    planned, _, rest = printed.partition("checkpoint:")
    scored, _, tables = rest.partition("knn5")
    assert "a training step" in planned
    assert "Spread" in scored
    assert "| Spread" in tables
    assert "embedding" in tables
