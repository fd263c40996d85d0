"""Every relative link, anchor and image in the texts leads somewhere, and the texts keep their size and version."""

import re
from pathlib import Path

import pytest
from places import ROOT

import intl_bench

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
_LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?: \"[^\"]*\")?\)|<img[^>]*src=\"([^\"]+)\"")


def prose(text: str) -> str:
    """Return a Markdown text without code."""
    return re.sub(r"^```.*?^```|^ {4}[^\n]*$|`[^`\n]*`", "_", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page: GitHub's slugs of its headings."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", text, flags=re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def broken(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    wrong = []
    for link, image in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
        target = link or image
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and (path.suffix != ".md" or anchor not in anchors(path))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `x.py`: two\n\n```\n# Code\n```\n\n## Twice\n\n## Twice\n")
    good = "[a](other.md) [b](other.md#one-xpy-two) [c](other.md#twice-1) [d](#here) [e](https://x.org/y) `[f](no.md)`"
    bad = ["no.md", "other.md#code", "other.md#twice-2", "#there", "no.png", "no2.png", "no3.png"]
    links = '[a](no.md) [b](other.md#code) [c](other.md#twice-2) [d](#there) ![e](no.png) <img src="no2.png"> '
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{good}\n")
    assert broken(page) == []
    page.write_text(f"# Here\n\n{good}\n\n{links}[![f](no3.png)](other.md)\n")
    assert sorted(broken(page)) == sorted(bad)


def test_the_readme_is_short_and_lists_all_pages() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for page in sorted(ROOT.glob("docs/*.md")):
        assert f"(docs/{page.name})" in text, f"README.md: no link to docs/{page.name}"


def test_the_citation_has_the_version_of_the_package() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", text, flags=re.MULTILINE) == [intl_bench.__version__]
