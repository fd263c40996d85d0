"""Follow a page of docs/ as its reader does: put its blocks into a copy of the packages and run its commands."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from places import ROOT

# A block begins with the place of its content: a new file, or a table of an existing file.
_BLOCK = re.compile(r"```\w+\n# (?P<path>[^\s,]+)(?:, in (?P<table>\w+))?\n(?P<content>.*?)```", re.DOTALL)


class Copy:
    """A copy of the packages in `folder`, with what a page of docs/ adds."""

    def __init__(self, folder: Path, page: str) -> None:
        self.folder = folder
        for part in ("intl_bench", "pretrain", "transfer", "configs"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("support", "golden", "conftest.py"):
            (folder / "tests").mkdir(exist_ok=True)
            (folder / "tests" / part).symlink_to(ROOT / "tests" / part)
        (folder / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
        self.added = []
        for block in _BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")):
            path = folder / block["path"]
            if block["table"] is None:
                assert not path.exists(), f"{page}: {block['path']} exists already"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block["content"], encoding="utf-8")
            else:
                text = path.read_text(encoding="utf-8")
                opening = re.search(rf"^{block['table']}\b[^\n]*[{{(\[]\n", text, re.MULTILINE)
                assert opening, f"{page}: {block['path']} has no table {block['table']}"
                path.write_text(text[: opening.end()] + block["content"] + text[opening.end() :], encoding="utf-8")
            self.added.append(block["path"])

    def commands(self, *commands: Sequence[str]) -> str:
        """Run commands of `intl-bench` in one process, which imports PyTorch once; returns what they printed."""
        code = f"from intl_bench import cli\nfor words in {commands!r}:\n    assert cli.main(words) == 0, words"
        return self.run("-c", code)

    def run(self, *words: str) -> str:
        """Run `python WORDS` in the copy; returns what it printed."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
