"""docs/your_own_images.md: its commands run in their order, at small size, and print what the page shows."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from transfer_cases import make_folder

from intl_bench.cli import main

PAGE = ROOT / "docs" / "your_own_images.md"
INSTALL = [
    "git clone REPOSITORY intl-bench",
    "python3 -m venv .venv",
    "source .venv/bin/activate",
    "pip install -e intl-bench",
]
# What makes a command small. All other words are those of the page.
SMALL = {
    "pretrain": [
        "monitor.every=1",
        "max_steps=2",
        "batch_size=16",
        "size=32",
        "projector.hidden=32",
        "projector.out=32",
    ],
    "linear": ["epochs=2"],
    "finetune": ["epochs=1", "batch_size=4"],
    "knn": [],
    "data": [],
    "tables": [],
}


def blocks(language: str) -> list[str]:
    """Return the blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def transcript() -> list[tuple[str, list[str]]]:
    """Return the commands of the page, each with the lines that the page shows after it."""
    parts = re.split(r"^\$ ", "".join(blocks("console")), flags=re.MULTILINE)[1:]
    return [(lines[0], lines[1:]) for lines in (part.splitlines() for part in parts)]


def plain(line: str) -> str:
    """Return a line without what depends on the numbers: digits, the width of columns and bold cells."""
    line = re.sub(r"\d+(\.\d+)?", "N", line.replace("*", ""))
    return re.sub(r"[ :-]*-[ :-]*", "-", re.sub(r" +", " ", line)).strip()


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "imagenette96", classes=6, train=20, test=4, side=40)
    commands = transcript()
    assert [command for command, _ in commands[: len(INSTALL)]] == INSTALL
    assert {command.split()[1] for command, _ in commands[len(INSTALL) :]} == SMALL.keys()
    for command, shown in commands[len(INSTALL) :]:
        name, task, *words = shlex.split(command)
        assert name == "intl-bench"
        assert main([task, *words, *SMALL[task]]) == 0, command
        printed = [plain(line) for line in "\n".join(capsys.readouterr()).splitlines()]
        missing = [line for line in shown if plain(line) not in printed]
        assert not missing, f"{command}: the page shows {missing}; printed: {printed}"


def test_the_copies_of_large_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in (("train/a/1.jpg", (600, 300)), ("val/b/2.jpg", (300, 5000))):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(tmp_path / "photos" / name)
    (code,) = blocks("python")
    exec(compile(code, "page", "exec"), {})
    sizes = {}
    for path in sorted(Path("small").rglob("*.jpg")):
        with Image.open(path) as image:
            sizes[str(path)] = image.size
    assert sizes == {"small/train/a/1.jpg": (256, 128), "small/val/b/2.jpg": (128, 2133)}
