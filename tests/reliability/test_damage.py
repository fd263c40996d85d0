"""R3: a file that was truncated or in which a bit was flipped is noticed, or has the content that it had."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import reliability_commands as commands
import torture
from fork_server import ForkServer

from intl_bench.core import files
from intl_bench.core.errors import BenchError
from intl_bench.core.json_lines import JsonLines
from intl_bench.records import RecordStore
from pretrain import states
from pretrain.images import fingerprint
from pretrain.images.pack import Pack
from transfer import features
from transfer.convert import read

pytestmark = pytest.mark.slow  # the children take most of the time; `make check` leaves them out

TRUNCATIONS, FLIPS = (22, 50) if torture.LONG else (3, 8)  # of each kind of file; there are ten kinds


class Kind(NamedTuple):
    """A kind of file: the command that writes it, its place, and what reads it.

    `load` returns the content. None means that the file is written again.
    """

    command: str
    pattern: str
    load: Callable[[Path], Any]


def _backbone(path: Path) -> Any:
    found = read(path)
    return found.weights_sha256, found.pretraining(), found.method, found.seed


def _state(path: Path) -> Any:
    return commands.plain(states.load(path)[0])


def _rows(path: Path) -> Any:
    """Read the log of a run as a resumed run does."""
    state = states.load(path.with_name("checkpoint.pt"))[0]
    JsonLines(path, lambda row: row["step"] <= state["step"], state["log"])
    return path.read_bytes()


def _images(path: Path) -> Any:
    pack = Pack(path.with_suffix(".pack"))
    return pack.class_names, pack.images.tolist(), [pack.read(row) for row in range(len(pack.images))]


def _features(path: Path) -> Any:
    found = features._cached(path)
    return None if found is None else found.numpy().tobytes()


def _records(path: Path) -> Any:
    (record,) = RecordStore(path.parents[1]).load()
    return record


KINDS = {
    "checkpoint": Kind("pretrain", "runs/pretrain/tiny/seed0/checkpoint.pt", _state),
    "backbone": Kind("pretrain", "runs/pretrain/tiny/seed0/backbone.safetensors", _backbone),
    "log": Kind("pretrain", "runs/pretrain/tiny/seed0/metrics.jsonl", _rows),
    "detector": Kind("coco", "runs/coco/*/detector.pth", lambda path: files.verify(path, required=True)),
    "record": Kind("knn", "results/records/knn/*.json", _records),
    "features": Kind("knn", "runs/features/*.npy", _features),
    "pack": Kind("pack", "packed/train.pack", _images),
    "index": Kind("pack", "packed/train.index", _images),
    "converted safetensors": Kind("convert", "exported.safetensors", _backbone),
    "converted PyTorch": Kind("convert-detectron2", "exported.pth", _backbone),
    "facts beside a converted file": Kind(
        "convert-detectron2", "exported.pth.json", lambda path: _backbone(path.with_suffix(""))
    ),
    "fingerprint": Kind("coco", "runs/fingerprints/*", fingerprint._read),
}


@pytest.fixture(scope="module")
def written(server: ForkServer, material: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that runs a command once and returns its working directory."""
    done: dict[str, Path] = {}

    def run(command: str) -> Path:
        if command not in done:
            case = commands.make_case(tmp_path_factory.mktemp("written") / command, material)
            ended = server.run(case, commands.COMMANDS[command])
            assert ended.code == 0, ended.stderr
            done[command] = case / "work"
        return done[command]

    return run


def damages(size: int, kind: str) -> list[tuple[str, int]]:
    """Draw truncations to a length, among them an empty file and one without its last byte, and flips of a bit."""
    draw = torture.draw("damage", kind)
    lengths = [0, size - 1, *draw.integers(1, size - 1, TRUNCATIONS - 2).tolist()]
    ends = [0, 8 * size - 1]  # of the file, where digests and headers are
    bits = [*ends, *draw.integers(8 * max(0, size - 200), 8 * size, FLIPS // 4).tolist()]
    bits += draw.integers(0, 8 * size, FLIPS - len(bits)).tolist()
    return [("truncated to", length) for length in lengths] + [("flipped bit", bit) for bit in bits]


def apply(path: Path, what: str, where: int, content: bytes) -> None:
    """Damage a file with this content."""
    changed = bytearray(content[:where] if what == "truncated to" else content)
    if what == "flipped bit":
        changed[where // 8] ^= 1 << where % 8
    path.write_bytes(changed)


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_noticed(name: str, written: Callable[[str], Path], tmp_path: Path) -> None:
    """Damage a file in many ways: each causes an error, a warning or a new file, or changes nothing that is read."""
    kind = KINDS[name]
    work = tmp_path / "work"
    shutil.copytree(written(kind.command), work, symlinks=True)
    path = sorted(work.glob(kind.pattern))[0]
    content = path.read_bytes()
    expected = kind.load(path)
    failures, noticed = torture.Failures(), 0
    for at, (what, where) in enumerate(damages(len(content), name), start=1):
        if torture.AT not in (0, at):
            continue
        apply(path, what, where, content)
        warnings, wrong = io.StringIO(), []
        try:
            with contextlib.redirect_stderr(warnings):
                found = kind.load(path)
        except BenchError as error:
            noticed += 1
            wrong += [] if str(error).count("\n") == 0 else [f"more than one line: {error}"]
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        else:
            noticed += found is None or bool(warnings.getvalue())
            if found is not None and found != expected and not warnings.getvalue():
                wrong.append("another content, and no word")
        failures.check(at, f"{what} {where}", wrong)
    print(f"{name}: {noticed} of {failures.cases} noticed; the others have the same content")
    failures.report()


@pytest.mark.parametrize(
    ("command", "pattern", "fault"),
    [
        (
            "pretrain",
            "runs/pretrain/tiny/seed0/checkpoint.pt",
            {"act": "ENOSPC", "calls": ["rename"], "path": "safetensors"},
        ),
        ("linear", "runs/linear/*/state.pt", {"act": "ENOSPC", "calls": ["link"], "path": "records"}),
        ("coco", "runs/coco/*/state.pt", {"act": "ENOSPC", "calls": ["link"], "path": "records"}),
        ("knn", "runs/features/*.npy", {"act": "ENOSPC", "calls": ["link"], "path": "records"}),
    ],
)
@pytest.mark.parametrize("what", ["flipped bit", "truncated to"])
def test_a_run_goes_on_from_what_is_intact(
    command: str,
    pattern: str,
    fault: dict[str, Any],
    what: str,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    new_case: Callable[[object], Path],
) -> None:
    """Damage the newest state of a run that stopped at its end: the same results, and one warning."""
    expected, _ = undisturbed(command)
    case = new_case("case")
    ended = server.run(case, commands.COMMANDS[command], setup=[torture.faulty(case, at=1, **fault)])
    assert ended.code == 4, ended.stderr
    path = sorted((case / "work").glob(pattern))[0]
    content = path.read_bytes()
    apply(path, what, torture.draw(command, what).integers(0, len(content)), content)
    again = server.run(case, commands.COMMANDS[command], name="again-")
    assert again.code == 0, again.stderr
    found = {name: value for name, value in commands.results(case / "work").items() if not name.endswith(".damaged")}
    assert commands.changed(expected, found) == []
    if command != "knn":  # damaged features are computed again without a word
        lines = [line for line in again.lines if not line.startswith("next: ")]  # the command that follows
        assert len([line for line in lines if path.name in line]) == 1, again.stderr
