"""The log of a run: TensorBoard's events are a by-product, whose failure never ends a run."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intl_bench.cli import main
from intl_bench.core import files
from intl_bench.core.errors import ResourceError

FOLDER = Path("runs/pretrain/demo/seed0")
TINY = ["data.size=80", "epochs=2", "batch_size=40", "warmup_epochs=0", "projector.hidden=16", "projector.out=16"]
COMMAND = ["pretrain", "demo", *TINY, "log_every=1", "spectrum_every=1000", "method={name: simsiam}"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def logged() -> list[int]:
    return [json.loads(line)["step"] for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_reads_the_values_of_the_log() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(COMMAND) == 0
    board = EventAccumulator(str(FOLDER / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in board.Scalars("loss")] == [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def a_file() -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "tensorboard").write_text("")


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)


def full(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    write, count = files.append_bytes, [0]

    def append_bytes(path: Path, content: bytes) -> None:
        count[0] += path.parent.name == "tensorboard"  # the log of the run has room
        if path.parent.name == "tensorboard" and count[0] > after:
            raise ResourceError(f"cannot write {path}: No space left on device")
        write(path, content)

    monkeypatch.setattr(files, "append_bytes", append_bytes)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "a file in its place": lambda _: a_file(),
    "a link to nowhere": lambda _: (FOLDER.mkdir(parents=True), os.symlink("/proc/none/a", FOLDER / "tensorboard")),
    "no space at the start": lambda patch: full(patch, 0),
    "no space for the first step": lambda patch: full(patch, 1),
    "no space later": lambda patch: full(patch, 3),
    "not installed": lambda patch: without(patch, "tensorboard.summary.writer.record_writer"),
    "broken": lambda patch: without(patch, "tensorboard.compat.proto.event_pb2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_one_warning(fault: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    FAULTS[fault](monkeypatch)
    assert main(COMMAND) == 0
    error = capfd.readouterr().err
    assert error.count("warning: no more TensorBoard events: ") == 1
    assert "Traceback" not in error
    assert logged() == [1, 2, 3, 4]
    assert (FOLDER / "backbone.safetensors").exists()
