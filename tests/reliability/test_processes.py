"""A rank that is stopped or killed, a launcher that is killed: the run ends, says which rank, and resumes exactly.

The short form is in `tests/launch/`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT
from stopped_run import wait
from tiny_command import Run, assert_same_result, children

from intl_bench.core import owners
from intl_bench.core.peers import SILENT
from intl_bench.launch.children import _STOPPED

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
PROCESSES = ["--processes", "2"]
EPOCHS = "epochs=8"  # of five steps
MARGIN = 15.0
# TCP sockets that listen, in /proc/net/tcp.
LISTENS = "0A"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two processes without a fault."""
    run = Run(tmp_path_factory.mktemp("whole"), EPOCHS)
    run.finish(*PROCESSES)
    return run


def all_gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def listening(process: int) -> list[str]:
    """Return the addresses on which a process listens, as /proc writes them."""
    own = set()
    for path in Path(f"/proc/{process}/fd").iterdir():
        try:
            own.add(os.readlink(path))
        except OSError:  # it was closed in the meantime
            continue
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in own:
                addresses.append(fields[1].partition(":")[0])
    return addresses


def break_and_resume(
    folder: Path, whole: Run, do: Callable[[int, list[int]], None], timeout: float = 0.0
) -> tuple[int, str]:
    """Do something to the launcher and the ranks of a run. Return the exit code of the launcher, and what it said.

    The run must end in time, leave no process, and resume to the weights and the log of the whole run. No other machine
    may reach it before.
    """
    run = Run(folder, EPOCHS, "save_minutes=0.01")
    process = run.start(*PROCESSES)
    run.reach(10, process)
    ranks = children(process.pid)
    assert len(ranks) == 2
    sockets = [listening(number) for number in (process.pid, *ranks)]
    assert all(sockets), "the store and the ranks listen somewhere"
    assert {address for found in sockets for address in found} == {"0100007F"}  # 127.0.0.1
    started = time.monotonic()
    do(process.pid, ranks)
    errors = process.communicate(timeout=300)[1].strip()
    wait(lambda: all_gone(ranks))
    assert time.monotonic() - started < timeout + MARGIN
    run.finish(*PROCESSES)
    assert_same_result(run, whole)
    return process.returncode, errors


NAMED = r"intl-bench: rank 1 of 2 \(process \d+, pretrain demo: step \d+ of 40\) "


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_rank_is_named_with_its_step(tmp_path: Path, whole: Run) -> None:
    code, errors = break_and_resume(tmp_path, whole, lambda _, ranks: os.kill(ranks[1], signal.SIGKILL))
    assert code == 4
    assert re.fullmatch(NAMED + r"was killed by SIGKILL, [^\n]*", errors), errors


@pytest.mark.long
@pytest.mark.slow
def test_a_rank_without_memory_is_named_with_its_step(tmp_path: Path, whole: Run) -> None:
    """Its address space may not grow any more."""
    import resource

    def limit(_: int, ranks: list[int]) -> None:
        resource.prlimit(ranks[1], resource.RLIMIT_DATA, (1 << 20, 1 << 20))

    code, errors = break_and_resume(tmp_path, whole, limit)
    assert code == 4, errors
    assert re.search(r"rank 1\b.*step \d+ of 40", errors), errors


@pytest.mark.slow
@pytest.mark.long  # it waits for the timeout
def test_a_stopped_rank_is_named_with_its_step(tmp_path: Path, whole: Run) -> None:
    code, errors = break_and_resume(tmp_path, whole, lambda _, ranks: os.kill(ranks[1], signal.SIGSTOP), _STOPPED)
    assert code == 4
    assert re.fullmatch(NAMED + r"was stopped \(SIGSTOP\) for 60 s and was ended; [^\n]*", errors), errors


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_rank_saves_its_state_after_a_signal(tmp_path: Path, whole: Run, number: signal.Signals) -> None:
    def do(launcher: int, ranks: list[int]) -> None:
        os.kill(ranks[1], signal.SIGSTOP)
        while not owners.is_stopped(ranks[1]):  # the signal takes effect later
            time.sleep(0.01)
        os.kill(launcher, number)

    code, errors = break_and_resume(tmp_path, whole, do)
    assert code == {signal.SIGTERM: 75, signal.SIGHUP: 129, signal.SIGINT: 130}[number]
    first, last = errors.splitlines()
    assert re.fullmatch(NAMED + "was stopped; it continues, to save its state", first)
    assert f"stopped by {number.name} after step" in last


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_is_left_when_the_launcher_is_killed(tmp_path: Path, whole: Run, stopped: bool) -> None:
    """Also where a rank was stopped and the other one waits for it."""

    def do(launcher: int, ranks: list[int]) -> None:
        if stopped:
            os.kill(ranks[1], signal.SIGSTOP)
            time.sleep(1)
        os.kill(launcher, signal.SIGKILL)

    code, errors = break_and_resume(tmp_path, whole, do)
    assert code == -signal.SIGKILL
    assert all("stopped by SIGTERM" in line for line in errors.splitlines())


CHILD = """
import signal, sys, time
from types import SimpleNamespace
from intl_bench.core import heartbeat
signal.signal(signal.SIGTERM, lambda *_: None)
heartbeat.at(SimpleNamespace(label="work", steps=7, total=9))
heartbeat.start()
if sys.argv[1] == "silent":
    time.sleep(0.5)
    import ctypes
    ctypes.PyDLL(None).sleep(60)  # it holds Python's lock
time.sleep(60)
"""
LAUNCHER = """
import json, os, sys, time
from intl_bench.launch import children
children._COMMAND = [sys.executable, "child.py"]
for name, value in json.loads(sys.argv[2]).items():
    setattr(children, name, value)
from intl_bench import cli
from intl_bench.launch import processes
cli._parse = lambda _: __import__("argparse").Namespace(debug=True, run=lambda _: processes.run([sys.argv[1]], 2))
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize(
    ("kind", "limits", "signals", "said"),
    [
        ("silent", {"_SILENT": 1.0}, [], r"did not answer for \d s and was ended; run the same command again"),
        ("hung", {"_SAVING": 1.0}, [signal.SIGTERM], r"did not end within \d s after the signal and was ended; run"),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_step(
    tmp_path: Path, kind: str, limits: dict[str, float], signals: list[signal.Signals], said: str
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    process = subprocess.Popen(
        [sys.executable, "launcher.py", kind, json.dumps(limits | {"_STOPPED": 60.0})],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait(lambda: len(children(process.pid)) == 2)
    ranks = children(process.pid)
    time.sleep(1.5)
    for number in signals:
        process.send_signal(number)
    errors = process.communicate(timeout=60)[1].splitlines()[-1]
    assert re.search(r"rank \d of 2 \(process \d+, work: step 7 of 9\) " + said, errors), errors
    assert process.returncode == (75 if signals else 4)
    assert all_gone(ranks)


def test_a_store_of_our_own_listens_on_this_machine_only() -> None:
    from intl_bench.core import rendezvous

    store = rendezvous.local_store()
    assert "0100007F" in listening(os.getpid())
    assert "00000000" not in listening(os.getpid())
    store.set("key", "value")
    assert store.get("key") == b"value"


class TwoMachines:
    """Two network namespaces, joined by a cable, on this machine."""

    def __init__(self) -> None:
        self.holders = [subprocess.Popen(["unshare", "--net", "sleep", "1000"]) for _ in range(2)]
        time.sleep(0.5)  # until they are in their namespaces
        other = str(self.holders[1].pid)
        self.run(0, "ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", other)
        for machine in range(2):
            self.run(machine, "ip", "address", "add", f"10.77.0.{machine + 1}/24", "dev", f"cable{machine}")
            for name in ("lo", f"cable{machine}"):
                self.run(machine, "ip", "link", "set", name, "up")

    def inside(self, machine: int, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self.holders[machine].pid), "--net", *command]

    def run(self, machine: int, *command: str) -> None:
        subprocess.run(self.inside(machine, *command), check=True, capture_output=True)

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()
            holder.wait()

    def start(self, machine: int, folder: Path, words: list[str]) -> "subprocess.Popen[str]":
        """Start a rank of a pre-training with torchrun."""
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(machine)]
        torchrun += ["--master-addr", "10.77.0.1", "--master-port", "29411"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": f"cable{machine}"}
        program = ["-m", "intl_bench", "pretrain", "demo", *words]
        command = self.inside(machine, sys.executable, *torchrun, *program)
        return subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.long  # it waits for the timeout
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nsenter"), reason="makes network namespaces")
def test_a_cut_network_ends_both_machines(tmp_path: Path, whole: Run) -> None:
    try:
        machines = TwoMachines()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot make network namespaces: {error}")
    try:
        run = Run(tmp_path, EPOCHS, "save_minutes=0.01")
        processes = [machines.start(machine, tmp_path, run.words) for machine in range(2)]
        run.reach(10, processes[0])
        ranks = [rank for process in processes for rank in children(process.pid)]
        assert ranks
        machines.run(0, "ip", "link", "set", "cable0", "down")
        cut = time.monotonic()
        errors = [process.communicate(timeout=SILENT + 60)[1] for process in processes]
        wait(lambda: all_gone(ranks))
        assert time.monotonic() - cut < SILENT + MARGIN
        for machine, text in enumerate(errors):
            assert processes[machine].returncode != 0
            (line,) = [line for line in text.splitlines() if line.startswith("intl-bench: ")]
            beginning = rf"intl-bench: rank {machine} \(pretrain demo: step \d+ of 40\): no sign of life for 120 s"
            # The cut comes within seconds of the start, maybe before the other machine has told something.
            assert re.match(rf"{beginning} from rank {1 - machine} \([^)]+\); check the network", line), line
        machines.run(0, "ip", "link", "set", "cable0", "up")
        processes = [machines.start(machine, tmp_path, run.words) for machine in range(2)]
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
        assert_same_result(run, whole)
    finally:
        machines.close()
