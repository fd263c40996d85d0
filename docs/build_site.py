"""Build the site of the documentation with zensical: README.md, docs/, and every file that their links lead to.

    python docs/build_site.py [FOLDER]      # FOLDER/site/index.html; FOLDER is build/site by default

The files are copied to FOLDER/pages, because the pages link to files outside of docs/. A warning of zensical, such as a
link that leads nowhere, is an error.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(<?([^()\s>#]+)(?:#[^()\s>]*)?>?(?: \"[^\"]*\")?\)")


def site_files() -> list[Path]:
    """Return README.md, the pages of docs/, and every file below `ROOT` that links of Markdown pages lead to."""
    found: list[Path] = []
    waiting = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file() or not path.is_relative_to(ROOT):
            continue
        found.append(path)
        if path.suffix == ".md":
            links = _LINK.findall(path.read_text(encoding="utf-8"))
            waiting += [(path.parent / link).resolve() for link in links if "://" not in link]
    return found


def build(folder: Path) -> int:
    """Copy the pages and build the site; return the exit code of zensical."""
    shutil.rmtree(folder / "pages", ignore_errors=True)
    for path in site_files():
        target = folder / "pages" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copyfile(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=folder).returncode


if __name__ == "__main__":
    raise SystemExit(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"))
