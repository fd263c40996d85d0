"""R4: whatever call fails, a run ends with exit 4 and one line, or goes on without a by-product."""

import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import reliability_commands as commands
import torture
from fork_server import Ended, ForkServer

pytestmark = pytest.mark.slow  # the children take most of the time; `make check` leaves them out

ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT")
_SHORT = {"ablation": 3}  # number of failing calls in the short form; of other commands 2
# Calls that may fail without an effect: what is not removed is removed by a later start; a folder may exist already.
_HARMLESS = ("unlink", "rmdir", "mkdir")


def wrong_with(ended: Ended, failed: Sequence[str], number: int) -> list[str]:
    """Return what is wrong with the end of a run whose calls `failed`, "NAME PATH", ended in the error `number`."""
    lines = [line for line in ended.lines if line.startswith("intl-bench: ")]
    wrong = [f"a traceback: {ended.stderr[-900:]!r}"] if "Traceback" in ended.stderr else []
    paths = [call.partition(" ")[2] for call in failed]
    if ended.code == 0:
        for part in commands.BY_PRODUCTS:
            warned = [line for line in ended.lines if part in line and "read from the cache" not in line]
            calls = [call for call in failed if part in call and part not in commands.SILENT]
            needed = any(not call.startswith(_HARMLESS) for call in calls)  # TensorBoard makes its folder twice
            if not needed <= len(warned) <= bool(calls):
                wrong.append(f"{len(warned)} warnings of {part}: {warned}")
        wrong += [f"exit 0 after {call}" for call in failed if not may_fail(call)]
        return wrong
    if ended.code != 4:
        wrong.append(f"exit {ended.code}")
    if len(lines) != 1:
        wrong.append(f"{len(lines)} lines of intl-bench: {ended.stderr[-300:]!r}")
        return wrong
    line = lines[0]
    if os.strerror(number) not in line:
        wrong.append(f"no reason: {line}")
    if number in (errno.ENOSPC, errno.EDQUOT) and failed[-1].startswith("write") and not re.search(r"\d bytes", line):
        wrong.append(f"no number of bytes: {line}")
    names = {re.sub(r"^\.(.+?)\.[^.]+\.tmp$", r"\1", Path(path).name) for path in paths}
    names |= {re.sub(r"\.[12]\.pt(\.sha256)?$", ".pt", name) for name in names}
    if not any(name in line for name in names) or ".tmp" in line:
        wrong.append(f"not the path {names}: {line}")
    return wrong


def may_fail(call: str) -> bool:
    """Return whether a run may go on after the failure of a call: it has no effect, or is for a by-product."""
    name, _, path = call.partition(" ")
    above = name == "fsync" and any(Path(path) in Path(part).parents for part in commands.BY_PRODUCTS)
    return name in _HARMLESS or above or any(part in path for part in commands.BY_PRODUCTS)


def wrong_afterward(
    server: ForkServer, command: str, case: Path, expected: dict[str, str], before: dict[str, str], *, whole: bool
) -> list[str]:
    """Run the command again, without a fault, and return what is wrong then.

    Args:
        before: the records before.
        whole: whether by-products have to exist too.
    """
    again = server.run(case, commands.COMMANDS[command], name="again-")
    if again.code:
        return [f"exit {again.code} of the next start: {again.stderr[-300:]!r}"]
    found, now = commands.results(case / "work"), commands.records(case / "work")
    if not whole:
        expected, found = (
            {key: value for key, value in one.items() if not any(part in key for part in commands.BY_PRODUCTS)}
            for one in (expected, found)
        )
    wrong = commands.changed(expected, found, command)
    wrong += [f"the record {name} was lost or changed" for name, text in before.items() if now.get(name) != text]
    return wrong + [f"{name} is left" for name in commands.temporaries(case / "work")]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("command", commands.COMMANDS)
def test_a_call_fails(
    command: str,
    lasting: bool,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    new_case: Callable[[object], Path],
) -> None:
    """Let one call fail, of each kind the first and the last. The error changes with the number of the call."""
    if lasting and command in ("ablation", "coco-detectron2", "pretrain-2", "voc"):
        pytest.skip("its calls are those of other commands")
    expected, calls = undisturbed(command)
    failures = torture.Failures()
    first = {"once": 0, "lasting": 2}["lasting" if lasting else "once"]
    chosen = {"every": command == "convert", "last": command not in commands.SLOW}
    others = commands.OTHERS.get(command, "")
    for at in torture.numbers(calls, _SHORT.get(command, 2), "fails", command, lasting, **chosen, others=others):
        act = ERRORS[(at + first) % len(ERRORS)]
        case = new_case(at)
        step = torture.faulty(case, at=at, act=act, lasting=lasting)
        ended = server.run(case, commands.COMMANDS[command], setup=[step])
        failed = [call.removeprefix("! ") for call in ended.calls if call.startswith("! ")]
        if not failed:  # the calls of two threads come in another order
            continue
        before = commands.records(case / "work")
        wrong = wrong_with(ended, failed, getattr(errno, act))
        wrong += wrong_afterward(server, command, case, expected, before, whole=ended.code != 0)
        failures.check(at, f"{act} {torture.kind(failed[0])}", wrong)
    failures.report()


def _limit(case: Path, kind: int, value: int) -> tuple[str, dict[str, int]]:
    return "faults:limit", {"kind": kind, "value": value}


@pytest.mark.parametrize("command", ["pretrain", "linear", "coco", "knn", "convert", "pack"])
@pytest.mark.parametrize("limit", ["files", "size"])
def test_limits_of_the_process(
    command: str,
    limit: str,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    new_case: Callable[[object], Path],
) -> None:
    """Forbid more than a number of open files, or files above a size."""
    expected, _ = undisturbed(command)
    failures = torture.Failures()
    kind = resource.RLIMIT_NOFILE if limit == "files" else resource.RLIMIT_FSIZE
    values = [*range(3, 24, 1 if torture.LONG else 10)] if limit == "files" else [3000, 10**5, 10**6, 4 * 10**6]
    for value in values if torture.LONG else values[:2]:
        if torture.AT not in (0, value):
            continue
        case = new_case(value)
        ended = server.run(case, commands.COMMANDS[command], setup=[_limit(case, kind, value)])
        before = commands.records(case / "work")
        wrong = [] if ended.code in (0, 4) else [f"exit {ended.code}: {ended.stderr[-300:]!r}"]
        wrong += ["a traceback"] if "Traceback" in ended.stderr else []
        wrong += wrong_afterward(server, command, case, expected, before, whole=ended.code != 0)
        failures.check(value, limit, wrong)
    failures.report()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts an empty disk of so many bytes; the test is skipped where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def unmount() -> None:
        subprocess.run(["umount", str(folder)], capture_output=True)

    def mount(size: int) -> Path:
        unmount()
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("no right to mount a tmpfs")
        return folder

    yield mount
    unmount()


@pytest.mark.parametrize("command", ["pretrain", "finetune", "coco", "knn", "convert", "pack", "ablation"])
def test_the_disk_is_full(
    command: str,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    material: Path,
    disk: Callable[[int], Path],
) -> None:
    """Run on disks of a few sizes, then make room and run again."""
    expected, _ = undisturbed(command)
    failures = torture.Failures()
    for size in (4, 16, 64, 256, 1024, 2048, 4096, 8192, 12288, 16384) if torture.LONG else (2048,):
        if torture.AT not in (0, size):
            continue
        folder = disk(size * 1024)
        case = commands.make_case(folder / "case", material) if size > 64 else folder
        if size <= 64:
            commands.make_case(folder, material)
        ended = server.run(case, commands.COMMANDS[command])
        before = commands.records(case / "work")
        wrong = [] if ended.code in (0, 4) else [f"exit {ended.code}: {ended.stderr[-300:]!r}"]
        wrong += ["a traceback"] if "Traceback" in ended.stderr else []
        subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
        wrong += wrong_afterward(server, command, case, expected, before, whole=ended.code != 0)
        failures.check(size, "KiB", wrong)
    failures.report()
