"""What the machine has, and how sizes and times are written."""

import shutil
from pathlib import Path

import pytest

from intl_bench.core import machine, planned


@pytest.mark.parametrize(("text", "most"), [("max 100000\n", 8), ("250000 100000\n", 3), ("1000 100000\n", 1), ("", 8)])
def test_a_container_may_have_fewer_cores(
    text: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    assert machine.cores() == 8
    (tmp_path / "cpu.max").write_text(text)
    assert machine.cores() == most


@pytest.mark.parametrize(("text", "least"), [("max\n", 64), ("2147483648\n", 2), ("137438953472\n", 64), ("", 64)])
def test_a_container_may_have_less_memory(
    text: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}.__getitem__)
    monkeypatch.setattr(machine, "_MEMORY_LIMIT", tmp_path / "memory.max")
    assert machine.memory_bytes() == 64 * 2**30
    (tmp_path / "memory.max").write_text(text)
    assert machine.memory_bytes() == least * 2**30


def test_free_space_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert machine.free_bytes(tmp_path / "runs" / "x") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


def test_sizes_and_times_in_words() -> None:
    assert [planned.size(n) for n in (0, 700, 1536, 200 * 2**20, 2**30, 3 * 2**40)] == [
        *("0 B", "700 B", "1.5 KiB", "200 MiB", "1.0 GiB", "3,072 GiB")
    ]
    assert [planned.duration(s) for s in (0.04, 59, 91, 3600, 86400, 40 * 86400)] == [
        *("40 ms", "59 s", "1.5 min", "60 min", "24 h", "40 days")
    ]
    assert [planned.clock(s) for s in (0.0, 89.9, 3600, 40 * 86400)] == ["0:00:00", "0:01:29", "1:00:00", "960:00:00"]


def test_a_row_fits_80_columns_and_keeps_paths_whole() -> None:
    path = "/a/very/long/path" * 6
    lines = planned.rows([("data", f"{'many words ' * 20}{path}"), ("none", "")]).splitlines()
    assert lines[0].startswith("data       many words")
    assert lines[-1] == f"{'':11}{path}"
    assert all(len(line) <= 80 for line in lines[:-1])
