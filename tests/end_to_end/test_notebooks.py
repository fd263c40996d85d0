"""The notebooks run from their first cell to their last, and their links lead somewhere."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the cells of code in `folder`; return their names."""
    matplotlib.use("agg")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(folder))
    names: dict[str, Any] = {}
    for code in cells(path, "code"):
        exec(compile(code, path.name, "exec"), names)
    return names


@pytest.mark.slow
def test_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(ROOT / "notebooks" / "quick_start.ipynb", tmp_path, monkeypatch)
    assert names["trained"].metrics["knn5"] > names["random"].metrics["knn5"]
    assert len(names["measured"]) == 2
    assert (tmp_path / "exports/demo-seed0/MODEL_CARD.md").is_file()


@pytest.mark.slow
def test_your_own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(ROOT / "notebooks" / "your_own_loss.ipynb", tmp_path, monkeypatch)
    first = {name: float(names["spectrum"](model)[0]) for name, model in names["models"].items()}
    assert first["INTL"] < 0.3 < first["mine"] < first["alignment alone"]  # the share of the first direction


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_resolve_and_it_is_light(path: Path) -> None:
    for text in cells(path, "markdown"):
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (path.parent / link).is_file(), link
    assert path.stat().st_size < 200_000
    assert "/tmp/" not in re.sub(r"/tmp/tmp\w+", "", path.read_text(encoding="utf-8"))
