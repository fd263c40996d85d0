"""Output that a terminal cannot obey, in every encoding, through pipes and files."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_bench import cli
from intl_bench.core.progress import Progress
from intl_bench.core.terminal import escaped_output, visible

BIDIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
COMMANDS = (["tables"], ["tables", "--format", "json"], ["--help"], ["tables", "--table", "é\x1b"])
ROOT = Path(__file__).resolve().parents[2]


@given(st.text(st.characters(exclude_categories=())))
def test_no_control_character_is_left_and_json_keeps_its_meaning(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert not [c for c in shown if unicodedata.bidirectional(c) in BIDIRECTIONAL]
    shown.encode()
    for plain in (True, False):
        assert json.loads(visible(json.dumps(text, ensure_ascii=plain))) == json.loads(json.dumps(text))


def test_usual_text_is_unchanged() -> None:
    text = "INTL 73.1 ± 0.2 – α, 日本語, العربية, \U0001f600\n\tcolumn\n"
    assert visible(text) == text


@given(st.text(st.characters(exclude_categories=())), st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8", "cp932"]))
def test_every_encoding_takes_every_text(text: str, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    before = sys.stdout
    sys.stdout = stream
    try:
        with escaped_output():
            print(json.dumps(text, ensure_ascii=False))
            assert sys.stdout.encoding == encoding
        assert sys.stdout is stream
    finally:
        sys.stdout = before
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == json.loads(json.dumps(text))


def test_streams_come_back_and_other_output_goes_through(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with contextlib.suppress(KeyError), escaped_output():
        print("a\x1b", file=sys.stderr)
        sys.stdout.writelines(["b\x1b", "\n"])
        subprocess.run(["true"], stdout=sys.stdout, stderr=sys.stderr, check=True)
        assert sys.stdout.fileno() == before[0].fileno()
        assert not sys.stdout.isatty()
        try:
            raise KeyError("c\x1b")
        finally:
            traceback.print_exc()
    assert (sys.stdout, sys.stderr) == before
    output = capfd.readouterr()
    assert output.out == "b\\u001b\n"
    assert output.err.startswith("a\\u001b\nTraceback")
    assert "\x1b" not in output.err


def test_a_program_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windowed programs and daemons have none."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with escaped_output():
        print("a")


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_the_command_line_in_ascii(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "intl_bench", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == (2 if "--table" in arguments else 0), done.stderr
    text = (done.stdout + done.stderr).decode("ascii")
    assert all(character.isprintable() or character in "\n\t" for character in text)
    if "json" in arguments:
        assert "–" in json.dumps(json.loads(done.stdout), ensure_ascii=False)


def on_terminal(columns: int, bar: Callable[[], None]) -> str:
    """Return what a progress bar writes to a terminal of so many columns."""
    control, terminal = pty.openpty()
    fcntl.ioctl(control, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    before = sys.stderr
    with os.fdopen(terminal, "w") as sys.stderr:
        try:
            bar()
        finally:
            sys.stderr = before
    shown = ""
    with contextlib.suppress(OSError):  # EIO after the last byte; one read may return only a part
        while part := os.read(control, 10_000):
            shown += part.decode()
    os.close(control)
    return shown


def test_a_progress_bar_on_a_terminal_writes_over_itself() -> None:
    def show() -> None:
        with escaped_output():
            bar = Progress(2, label="a\x1b[2J\rb")
            bar.step()
            bar.step()
            bar.close()

    shown = on_terminal(100, show)
    assert "\x1b" not in shown
    assert r"a\u001b[2J\u000db 100%" in shown
    assert shown.count("\r") >= 2


def test_an_error_begins_its_own_line_below_an_open_bar() -> None:
    def fail() -> None:
        bar = Progress(2, label="a")
        bar.step()
        cli._say("it failed")
        del bar

    shown = on_terminal(100, fail)
    assert shown.replace("\r", "\n").rstrip().endswith("\nintl-bench: it failed")
    assert re.search(r"\n+intl-bench: it failed\r?\n$", shown)


@pytest.mark.parametrize(
    ("columns", "details"),
    [
        (80, ["loss 8.469", "knn5 41.25"]),
        (132, ["loss 8.469", "knn5 41.25", "rank 0.8213", "images/s", "% waiting for data"]),
        (60, []),
    ],
)
def test_a_progress_bar_fits_the_terminal_and_cuts_no_number(columns: int, details: list[str]) -> None:
    def show() -> None:
        bar = Progress(3, images_per_step=256, label="pretrain imagenet_r50_intl")
        for _ in range(3):
            bar.step(0.0, {"loss": 8.469, "knn5": 41.25, "rank": 0.8213})
        bar.close()

    lines = [line for line in re.split(r"[\r\n]+", on_terminal(columns, show)) if line]
    assert max(map(len, lines)) < columns
    shown = lines[-1].split(" left")[1].split(", ")[1:]
    assert len(shown) == len(details)
    assert all(part.strip().endswith(expected) for part, expected in zip(shown, details, strict=True)), shown


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_in_the_file_when_it_is_printed(tmp_path: Path, unbuffered: str) -> None:
    """As in Python itself: stderr always, stdout with PYTHONUNBUFFERED, as containers set it."""
    code = """
import os, sys
from intl_bench.core.streams import unbreakable
with unbreakable():
    print("error", file=sys.stderr)
    print("output")
    os._exit(0)
"""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], env=environment, stdout=log, stderr=log, check=True)
    assert (tmp_path / "log").read_text().split() == (["error", "output"] if unbuffered else ["error"])


def test_work_goes_on_when_its_terminal_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: int) -> os.terminal_size:
        raise OSError(errno.EIO, "Input/output error")

    def show() -> None:
        bar = Progress(2, label="a")
        monkeypatch.setattr(os, "get_terminal_size", closed)
        bar.step(0.0, {"loss": 1.0})
        bar.step(0.0, {"loss": 1.0})
        bar.close()
        monkeypatch.undo()

    assert "a 100%" in on_terminal(100, show)
