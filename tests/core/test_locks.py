"""The lock on a run's folder, with real processes."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from intl_bench.core import locks, owners
from intl_bench.core.errors import InputError, ResourceError
from intl_bench.core.locks import lock

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

# Takes the lock, says so, and holds it until its standard input ends.
HOLD = """
import sys
from pathlib import Path
from intl_bench.core.locks import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

# Waits for the file "go", then retries until it had the lock; it dies inside or leaves, as it is told.
RACE = """
import errno, os, signal, sys, time
from pathlib import Path
from intl_bench.core.errors import InputError
from intl_bench.core.locks import lock
folder, log, dies, links = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "dies", sys.argv[4] == "links"
if not links:
    def no_link(source, target): raise OSError(errno.EPERM, "Operation not permitted")
    os.link = no_link
inside = folder.with_name("inside")
folder.with_name(f"ready-{os.getpid()}").touch()
while not folder.with_name("go").exists():
    time.sleep(0.001)
while True:
    try:
        with lock(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails unless it is alone
            with log.open("a") as stream:
                stream.write(f"{os.getpid()}\\n")
            time.sleep(0.005)
            inside.unlink()
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
        break
    except InputError:
        time.sleep(0.001)
"""


def machine_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this machine have this permanent name, and have started as "this"."""
    known = {"/etc/machine-id": name, "/proc/sys/kernel/random/boot_id": "this"}
    read = owners.read_text
    monkeypatch.setattr(owners, "read_text", lambda path: known[path] if path in known else read(path))


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def _guards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the guard files of takeovers into the test's folder, those of child processes too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x"


def lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python on some code; what still runs at the end of the test is killed."""
    started = []

    def run(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def holding(start: Start, folder: Path) -> subprocess.Popen[str]:
    process = start(HOLD, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def forge(folder: Path, **changes: Any) -> None:
    """Writes this process's lock with some of its fields changed."""
    with lock(folder):
        content = json.loads(lock_file(folder).read_text())
    assert changes.keys() <= content.keys()
    lock_file(folder).write_text(json.dumps(content | changes))


def refusal(folder: Path) -> str:
    """The message of a refusal, which must be one line and leave the lock as it was."""
    before = lock_file(folder).read_bytes()
    with pytest.raises(InputError) as caught, lock(folder):
        pytest.fail("two hold the lock")
    assert lock_file(folder).read_bytes() == before
    message = str(caught.value)
    assert message.startswith(f"{folder}: in use")
    assert "\n" not in message
    return message


@pytest.fixture
def dead(start: Start) -> int:
    """The number of a process that is gone."""
    process = start("")
    process.communicate()
    return process.pid


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


class TestHeld:
    def test_another_process_waits_inside(self, folder: Path, start: Start) -> None:
        process = holding(start, folder)
        message = refusal(folder)
        content = json.loads(lock_file(folder).read_text())
        for part in (f"process {process.pid} on {content['host']}", content["since"], str(folder), "stop"):
            assert part in message
        assert "delete" not in message
        process.communicate("")
        assert process.returncode == 0
        assert not lock_file(folder).exists()
        with lock(folder):
            pass

    def test_the_folder_may_be_removed_and_made_again(self, folder: Path, start: Start) -> None:
        folder.mkdir(parents=True)
        holding(start, folder)
        shutil.rmtree(folder)
        refusal(folder)
        folder.mkdir()
        refusal(folder)

    def test_other_folders_are_free(self, folder: Path) -> None:
        with lock(folder), lock(folder / "seed0"), lock(folder.with_name("y")):
            assert lock_file(folder / "seed0").exists()
        assert not list(folder.parent.rglob("*.lock*"))

    def test_nested(self, folder: Path) -> None:
        with lock(folder):
            assert f"this process, {os.getpid()} " in refusal(folder)
        assert not lock_file(folder).exists()

    def test_two_threads(self, folder: Path) -> None:
        said = []
        with lock(folder):
            thread = threading.Thread(target=lambda: said.append(refusal(folder)))
            thread.start()
            thread.join()
        assert len(said) == 1

    def test_whatever_the_command_line(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["a\nb", "\udcff", "x" * 300])
        with lock(folder):
            command = json.loads(lock_file(folder).read_text())["command"]
            assert command == "a\nb ? " + "x" * 194
            refusal(folder)
        assert not lock_file(folder).exists()

    @pytest.mark.parametrize("relative", [".", "a"])
    def test_relative_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: str) -> None:
        work = tmp_path / "work"
        work.mkdir()
        monkeypatch.chdir(work)
        with lock(Path(relative)):
            assert lock_file(work / relative).exists()
            monkeypatch.chdir(tmp_path)
        assert not lock_file(work / relative).exists()


class TestReleased:
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_on_exceptions(self, folder: Path, error: type[BaseException]) -> None:
        with pytest.raises(error), lock(folder):
            raise error
        assert not list(folder.parent.iterdir())

    def test_only_its_own(self, folder: Path, start: Start) -> None:
        with lock(folder):
            lock_file(folder).unlink()
            process = holding(start, folder)
        assert json.loads(lock_file(folder).read_text())["process"] == process.pid

    def test_not_by_a_forked_child(self, folder: Path) -> None:
        with lock(folder):
            code = (
                "import os, sys; from pathlib import Path; from intl_bench.core.locks import lock\n"
                "with lock(Path(sys.argv[1]) / 'y'):\n"
                "    child = os.fork()\n"
                "    if child == 0: sys.exit()\n"
                "    os.waitpid(child, 0)\n"
                "    print(Path(sys.argv[1], 'y.lock').exists())"
            )
            output = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
        assert output.stdout == "True\n"
        assert not lock_file(folder / "y").exists()

    def test_someone_elses_garbage_stays(self, folder: Path) -> None:
        with lock(folder):
            lock_file(folder).write_text("{")
        assert lock_file(folder).exists()


class TestLeft:
    @LINUX
    @pytest.mark.parametrize("noticed", [True, False])
    def test_by_a_killed_process(
        self, folder: Path, start: Start, capsys: pytest.CaptureFixture[str], noticed: bool
    ) -> None:
        process = holding(start, folder)
        process.kill()
        if noticed:
            process.wait()
        else:  # a zombie: gone, though its parent has not asked yet
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with lock(folder):
            assert json.loads(lock_file(folder).read_text())["process"] == os.getpid()
            refusal(folder)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith(f"{folder}: took over the lock of process {process.pid}, which is gone")
        assert not lock_file(folder).exists()

    @LINUX
    def test_number_given_to_another_process(self, folder: Path, start: Start) -> None:
        process = holding(start, folder.with_name("y"))
        forge(folder, process=process.pid, process_start="1")
        with lock(folder):
            pass
        assert not lock_file(folder).exists()

    def test_start_not_known(self, folder: Path, start: Start) -> None:
        """A process that is there is taken to be the holder."""
        process = holding(start, folder.with_name("y"))
        forge(folder, process=process.pid, process_start="")
        refusal(folder)

    def test_machine_restarted(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine_is("3d12", monkeypatch)
        forge(folder, boot_id="earlier", pid_namespace="pid:[1]")
        with lock(folder):
            pass
        assert not lock_file(folder).exists()

    def test_machines_without_a_name_are_not_known_to_be_one(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine_is("", monkeypatch)
        forge(folder, boot_id="earlier")
        assert "delete" in refusal(folder)

    def test_without_proc(self, folder: Path, dead: int, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on macOS: the host and the number are all there is."""
        monkeypatch.setattr(owners, "read_text", lambda path: "")
        process = holding(start, folder.with_name("y"))
        forge(folder, process=process.pid)
        refusal(folder)
        lock_file(folder).unlink()
        forge(folder, process=dead)
        with lock(folder):
            pass
        assert not lock_file(folder).exists()

    @LINUX
    @pytest.mark.parametrize("dies", ["dies", "leaves"])
    @pytest.mark.parametrize("links", ["links", "no links"])
    def test_one_winner_at_a_time(self, folder: Path, dead: int, start: Start, dies: str, links: str) -> None:
        log = folder.with_name("log")
        forge(folder, process=dead)
        racers = [start(RACE, folder, log, dies, links) for _ in range(16)]
        deadline = time.monotonic() + 60
        while len(list(folder.parent.glob("ready-*"))) < 16:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        folder.with_name("go").touch()
        said = [racer.communicate(timeout=120)[1] for racer in racers]
        assert [racer.returncode for racer in racers] == [-signal.SIGKILL if dies == "dies" else 0] * 16, said
        assert sorted(map(int, log.read_text().split())) == sorted(racer.pid for racer in racers)
        assert sum("took over" in text for text in said) == (16 if dies == "dies" else 1), said


class TestElsewhere:
    @pytest.mark.parametrize(
        "changes",
        [
            {"host": "node7"},
            {"host": "node7", "boot_id": "earlier"},
            {"pid_namespace": "pid:[1]"},
            {"boot_id": "earlier", "machine_id": "another"},
            {"boot_id": "", "machine_id": ""},
        ],
        ids=str,
    )
    def test_never_taken_over(self, folder: Path, dead: int, changes: dict[str, str]) -> None:
        forge(folder, process=dead, **changes)
        message = refusal(folder)
        assert f"process {dead} on {changes.get('host', '')}" in message
        assert f"if it is gone, delete {lock_file(folder)}" in message

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff\xfe", b"[]", b"7", b"{}", b'{"host": "a", "process": 1}'],
        ids=str,
    )
    def test_garbage(self, folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
        monkeypatch.setattr(locks, "_PATIENCE_S", 0.1)
        folder.parent.mkdir()
        lock_file(folder).write_bytes(content)
        assert f"delete {lock_file(folder)}" in refusal(folder)

    @pytest.mark.parametrize("process", [0, -1, 2**40, "x", None])
    def test_no_number_of_a_process(self, folder: Path, monkeypatch: pytest.MonkeyPatch, process: object) -> None:
        monkeypatch.setattr(locks, "_PATIENCE_S", 0.1)
        forge(folder, process=process)
        assert f"delete {lock_file(folder)}" in refusal(folder)


class TestFileSystems:
    @pytest.mark.usefixtures("no_links")
    def test_without_hard_links(self, folder: Path, start: Start, dead: int) -> None:
        with lock(folder):
            assert json.loads(lock_file(folder).read_text())["process"] == os.getpid()
            refusal(folder)
        assert not list(folder.parent.iterdir())
        process = holding(start, folder)
        assert str(process.pid) in refusal(folder)
        process.communicate("")
        forge(folder, process=dead)
        with lock(folder):
            pass
        assert not list(folder.parent.iterdir())

    def test_a_disk_that_is_full_leaves_no_empty_lock(self, folder: Path) -> None:
        before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
        try:
            with pytest.raises(ResourceError, match="free some space"), lock(folder):
                pytest.fail("locked without a lock")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
            signal.signal(signal.SIGXFSZ, handler)
        assert not list(folder.parent.iterdir())

    def test_a_lock_that_is_being_written(self, folder: Path) -> None:
        """Where hard links are missing it is empty for a moment."""
        with lock(folder):
            content = lock_file(folder).read_text()
            lock_file(folder).write_text("")
            threading.Timer(0.3, lock_file(folder).write_text, [content]).start()
            with pytest.raises(InputError, match="this process"), lock(folder):
                pytest.fail("two hold the lock")

    def test_given_back_while_it_is_looked_at(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        forge(folder)
        read = locks._read

        def late(path: Path, of: Path) -> Any:
            path.unlink(missing_ok=True)
            return read(path, of)

        monkeypatch.setattr(locks, "_read", late)
        with lock(folder):
            assert lock_file(folder).exists()

    def test_a_request_that_the_server_answers_twice(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The link is made, but the second answer says that it exists already."""
        link = os.link

        def twice(source: str, target: Path) -> None:
            link(source, target)
            link(source, target)

        monkeypatch.setattr(os, "link", twice)
        with lock(folder):
            monkeypatch.undo()
            refusal(folder)
        assert not lock_file(folder).exists()

    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"cannot write .*x\.lock"), lock(tmp_path / "file" / "runs" / "x"):
            pytest.fail("locked without a lock")

    def test_takeover_where_nothing_can_be_written(
        self, folder: Path, dead: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        forge(folder, process=dead)
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(ResourceError, match="Read-only"), lock(folder):
            pytest.fail("locked without a lock")
        assert json.loads(lock_file(folder).read_text())["process"] == dead

    def test_a_lock_that_points_nowhere(self, folder: Path) -> None:
        folder.parent.mkdir()
        lock_file(folder).symlink_to(folder.with_name("missing"))
        with pytest.raises(InputError, match=r"cannot read .*x\.lock"), lock(folder):
            pytest.fail("locked without a lock")
