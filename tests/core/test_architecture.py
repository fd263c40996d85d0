"""The direction of the arrows in the design, as import rules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"intl_bench", "pretrain", "transfer"}

# part of the tree (the longest matching prefix decides): prefixes of our modules that it may import
RULES: dict[str, tuple[str, ...]] = {
    "intl_bench/core": ("intl_bench.core",),
    "intl_bench/records.py": ("intl_bench.core",),
    "intl_bench/published": ("intl_bench.published", "intl_bench.core"),
    "intl_bench/tables": ("intl_bench.tables", "intl_bench.published", "intl_bench.records", "intl_bench.core"),
    "intl_bench": ("intl_bench", "pretrain", "transfer"),
    "pretrain": ("pretrain", "intl_bench.core"),
    "transfer": (
        "transfer",
        "intl_bench.core",
        "pretrain.backbone",
        "pretrain.checkpoint",
        "pretrain.dry_run",
        "pretrain.finite",
        "pretrain.images",
        "pretrain.states",
        "pretrain.sync_batch_norm",
    ),
}
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, `from a import b` counting as a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (ROOT / name.replace(".", "/")).is_dir() or (
                    ROOT / f"{name.replace('.', '/')}.py"
                ).is_file()
                found.add(name if is_module else str(node.module))
    return {name for name in found if name.split(".")[0] in OURS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    rule = max((prefix for prefix in RULES if place.startswith(prefix)), key=len)
    allowed = RULES[rule]
    wrong = {name for name in imported_modules(path) if not any(f"{name}.".startswith(f"{a}.") for a in allowed)}
    assert not wrong, f"{place} ({rule}) may not import {wrong}"


@pytest.mark.parametrize("module", ["intl_bench.cli", "intl_bench.records", "intl_bench.tables"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_only_core_files_writes() -> None:
    """Nothing but core/files.py opens a file for writing (TensorBoard's own writer aside)."""
    writers = {"write_text", "write_bytes", "mkdir", "rename", "replace"}
    for path in FILES:
        if path == ROOT / "intl_bench" / "core" / "files.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                on_path = not (isinstance(owner, ast.Name) and owner.id in {"files", "dataclasses"})
                on_path = on_path and "columns" not in {keyword.arg for keyword in node.keywords}  # of a DataFrame
                if node.func.attr in writers - {"replace"}:
                    assert not on_path, f"{path.name}:{node.lineno} writes by itself"


def test_no_file_is_too_long() -> None:
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not long
