"""docs/add_a_method.md does what it says: its three files, in a copy of the packages, train, resume, score and pass."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ["data.size=300", "batch_size=32", "epochs=1", "warmup_epochs=0", "projector.hidden=32", "projector.out=16"]


def test_the_documented_method_works(tmp_path: Path) -> None:
    for folder in ("intl_bench", "pretrain", "transfer", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "methods").mkdir(parents=True)
    for name in ("support", "golden"):
        (tmp_path / "tests" / name).symlink_to(ROOT / "tests" / name)
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    text = (ROOT / "docs" / "add_a_method.md").read_text()
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, flags=re.DOTALL)
    added = [path for path, _ in blocks]
    assert added == ["pretrain/methods/spread.py", "configs/pretrain/spread_demo.yaml", "tests/methods/test_spread.py"]
    for path, content in blocks:
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(content)

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "3 passed" in run("-m", "pytest", "tests/methods/test_spread.py", "-p", "no:cacheprovider")
    assert "checkpoint:" in run("-m", "intl_bench", "pretrain", "spread_demo", *TINY)
    path = "runs/pretrain/spread_demo/seed0/checkpoint.pt"
    run("-m", "intl_bench", "knn", path)
    assert "Spread" in run("-m", "intl_bench", "tables", "--table", "2")
    assert "embedding" in run("-m", "intl_bench", "spectrum", path)
