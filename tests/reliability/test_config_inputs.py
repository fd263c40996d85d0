"""R6: whatever a configuration file, an override or a command line holds, it is used, or refused in one line."""

import re
from pathlib import Path

import pytest
import torture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intl_bench import cli
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain.recipe import Recipe, load_recipe
from transfer import TASKS, find_task

TEXTS = [path.read_text() for path in sorted(configs.CONFIGS.glob("*/*.yaml"))]
PIECES = [
    "&a ",
    "*a",
    "<<: ",
    "${",
    "}",
    "[",
    "]",
    "{",
    ": ",
    "- ",
    "!!python/name:os ",
    "\n---\n",
    "\t",
    "\0",
    "\x1b",
    "'",
]
PIECES += ['"', "9" * 40, "nan", ".inf", "null", "~", "1e999", "base: a.yaml\n", "views:\n", "é", "\u202e", "|\n", "? "]


@st.composite
def changed_texts(draw: st.DrawFn) -> str:
    """Return the text of a packaged file with a few changes."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 3, 40]))
        text = text[:start] + draw(st.sampled_from(["", *PIECES]) | st.text(max_size=5)) + text[end:]
    return text


@settings(
    max_examples=20_000 if torture.LONG else 150,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=changed_texts())
def test_changed_files(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    for schema in (Recipe, find_task("linear").config, find_task("coco").config):
        try:
            configs.build(schema, configs.read(path), "config a.yaml")
        except InputError as error:
            assert len(str(error)) < 5000  # noqa: PT017


KEYS = sorted(
    {*Recipe.__dataclass_fields__, "views[0].size", "data.root", "method.name", "backbone.name", "a.b", "", "["}
)


@settings(max_examples=20_000 if torture.LONG else 300, deadline=2000)
@given(
    key=st.sampled_from(KEYS) | st.text(max_size=8),
    value=st.sampled_from(PIECES) | st.text(max_size=12) | st.floats().map(str) | st.integers().map(str),
)
def test_any_override(key: str, value: str) -> None:
    try:
        load_recipe("demo", [f"{key}={value}"])
    except InputError as error:
        assert len(str(error)) < 5000  # noqa: PT017


WORDS = [
    *(
        ["pretrain", "x" * 5000],
        ["pretrain", "demo", "demo"],
        ["pretrain", "--nothing"],
        ["pretrain", "a\0b"],
        ["nothing"],
    ),
    *(["pretrain", "demo", "--processes", value] for value in ("0", "-1", "x", "1.5", "9" * 30)),
    *(["linear", "--seeds", value] for value in ("", "0", "-1", "x", "1,,2", "1,1", "1.5", "9" * 30, ",")),
    *(["linear", "--pretrain-seed", value, "x.pt"] for value in ("-1", "x", "9" * 30)),
    *(
        ["knn", "x.pt", option, "\x1b[31m"]
        for option in ("--method", "--group", "--config", "--from", "--init", "--device")
    ),
    *([task, "nowhere.pt"] for task in TASKS),
    *([task, "nowhere.pt", "--config", "nowhere"] for task in TASKS),
    *(["coco", "--engine", "other"], ["coco", "--visualize", "x"], ["convert"], ["convert", "a", "b", "--to", "other"]),
    *(["convert", "nowhere.pt", "out.pt", "--to", "timm"], ["tables", "--table", "9"], ["tables", "--format", "x"]),
    *(
        ["ablation", "nowhere"],
        ["ablation", "../x"],
        ["spectrum", "nowhere.pt"],
        ["data", "pack", "nowhere", "out"],
        [],
    ),
]


@pytest.mark.parametrize(
    "words", WORDS, ids=[re.sub(r"\W+", " ", " ".join(words))[:40] or "no words" for words in WORDS]
)
def test_malformed_command_lines(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(words)
    except SystemExit as ended:  # of argparse
        code = int(str(ended.code))
    error = capsys.readouterr().err
    assert code == 2, error
    *_, line = error.splitlines()
    assert line.startswith("intl-bench")
    assert "\x1b" not in error
    assert "Traceback" not in error
    assert "intl-bench: bug" not in error
    assert not list(tmp_path.iterdir())
