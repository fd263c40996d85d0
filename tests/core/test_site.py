"""The site of the documentation has every page, builds without a warning, and asks nothing of other machines."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from places import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import build_site

NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^ +- (\S+\.md)$", NAVIGATION, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    copied = {path.relative_to(ROOT).as_posix() for path in build_site.site_files()}
    assert set(listed) <= copied
    assert {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")} <= set(listed)
    assert yaml.safe_load(NAVIGATION)["site_name"] == "intl-bench"


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="needs zensical: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "docs" / "build_site.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "pages").rglob("*.md"):
        built = tmp_path / "site" / page.relative_to(tmp_path / "pages").with_suffix(".html")
        html = (built.with_name("index.html") if page.name == "README.md" else built).read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"?https?://[^\" >]*", html), page.name


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="needs zensical: pip install -e '.[docs]'")
def test_a_broken_link_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("# One\n\n[two](docs/two.md)\n")
    (tmp_path / "mkdocs.yml").write_text(NAVIGATION[: NAVIGATION.index("nav:")])
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    assert build_site.build(tmp_path / "built") != 0


def test_every_protocol_is_on_the_page_with_its_source() -> None:
    text = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    listed = {name: row[-1].rstrip(" |") for row in rows for name in re.findall(r"`(\w+/\w+)`", row[0])}
    tasks = ("linear", "knn", "finetune", "transfer", "coco", "voc")
    paths = {f"{task}/{path.stem}": path for task in tasks for path in (ROOT / "configs" / task).glob("*.yaml")}
    assert listed.keys() == paths.keys()
    for name, path in paths.items():
        header = " ".join(
            line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
        )
        source = re.search(r"source: +(.*?)published:", header)
        assert source, name
        assert source[1].startswith(listed[name].split(" and ")[0]), (name, source[1], listed[name])
