"""Tables in a terminal: they fit its width, lose nothing, and are the default there alone."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from table_cases import nasty, synthetic

from intl_bench import cli
from intl_bench.records import RecordStore
from intl_bench.tables import render, render_comparison
from intl_bench.tables.text import grid


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_fit_the_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render([*synthetic(), *nasty()], format="text") + render_comparison(synthetic(), "1:1", "1:2", format="text")
    lines = text.splitlines()
    assert columns - 5 < max(map(len, lines)) <= columns
    assert not any(line != line.rstrip() for line in lines)


def test_no_cell_is_lost_and_nothing_is_escaped() -> None:
    text = render(synthetic(), tables=["2"], format="text")
    (table,) = json.loads(render(synthetic(), tables=["2"], format="json"))
    shown = Counter(cell.strip(" *") for line in text.splitlines() for cell in line.split("  "))
    for value, count in Counter(cell["cell"] for cell in table["cells"] if cell["mean"] is not None).items():
        assert shown[value] == count, value
    assert "\\" not in text
    assert "**" not in text
    assert "*92.94" in text  # bold in the paper


def test_columns_that_do_not_fit_follow_below_with_the_first_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = grid(["Row", "a long heading", "b", "c"], [["one two three four five", "1" * 12, "2" * 11, "3" * 11]])
    assert text.splitlines() == [
        "                     a long",
        "Row                 heading            b",
        "-------------  ------------  -----------",
        "one two three  111111111111  22222222222",
        "  four five",
        "",
        "Row                      c",
        "-------------  -----------",
        "one two three  33333333333",
        "  four five",
    ]


def test_a_terminal_gets_text_and_a_pipe_gets_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in synthetic():
        RecordStore(tmp_path / "records").append(record)
    words = ["tables", "--table", "2", "--results", str(tmp_path)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.startswith("**Table 2.**")
    assert cli.main([*words, "--format", "text"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Table 2. Classification")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(words) == 0
    assert capsys.readouterr().out == text
