"""Child processes that start in milliseconds: a server imports PyTorch and this project once and forks for each case.

`ForkServer` is for tests. Run as a program, this file is the server. It computes nothing and has one thread, so that a
fork of it is as a new process.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What the commands import when they run.
_MODULES = (
    *(
        "torch",
        "torch.distributed",
        "torch.utils.tensorboard",
        "torchvision",
        "pandas",
        "tabulate",
        "matplotlib.pyplot",
    ),
    *("fvcore.nn.precise_bn", "pycocotools.cocoeval", "pycocotools.mask", "torch.nn.parallel", "safetensors.torch"),
    *("intl_bench.cli", "intl_bench.runs", "intl_bench.tables", "intl_bench.ablations.grid", "intl_bench.launch.seeds"),
    *("intl_bench.launch.processes", "pretrain.train", "pretrain.dry_run.plan", "pretrain.images.pack_command"),
    *("transfer.convert", "transfer.linear", "transfer.knn", "transfer.finetune", "transfer.coco", "transfer.voc"),
    *("transfer.detection.engines.builtin", "transfer.detection.evaluation.coco", "transfer.detection.evaluation.voc"),
)
_SUPPORT = Path(__file__).resolve().parent
Step = tuple[str, dict[str, Any]]  # "module:function" and its arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """A child process that has ended; `code` is negative if a signal ended it."""

    code: int
    stdout: str
    stderr: str
    calls: list[str]  # of `faults.install`

    @property
    def lines(self) -> list[str]:
        """The lines of stderr as a terminal would keep them, without those of progress."""
        kept = [line.split("\r")[-1].strip() for line in self.stderr.splitlines()]
        return [line for line in kept if line and " images/s" not in line and not line.startswith("[W")]


class ForkServer:
    """The server as a child process. Cases run in folders `case`: `case/work` is their working directory."""

    def __init__(self, *, path: Sequence[str] = ()) -> None:
        search = os.pathsep.join([str(_SUPPORT), *path, *filter(None, [os.environ.get("PYTHONPATH")])])
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": search, "CUDA_VISIBLE_DEVICES": "", **one},
        )

    def close(self) -> None:
        """End the server and wait for it."""
        self._server.communicate()

    def _ask(self, **request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the fork server has ended"
        return json.loads(answer)

    def start(
        self,
        case: Path,
        arguments: Sequence[str] = (),
        *,
        setup: Sequence[Step] = (),
        target: Step | None = None,
        name: str = "",
    ) -> "Child":
        """Start `intl-bench ARGUMENTS` in `case/work`, or the function `target`, after the functions of `setup`."""
        (case / "work").mkdir(parents=True, exist_ok=True)
        request = {"case": str(case), "arguments": list(arguments), "setup": setup, "target": target, "name": name}
        process = self._ask(**request)
        return Child(self, case, name, process)

    def run(self, case: Path, arguments: Sequence[str] = (), *, timeout: float = 300, **options: Any) -> Ended:
        """Start a child and wait for its end; see `start`."""
        return self.start(case, arguments, **options).wait(timeout)


class Child:
    """A child process."""

    def __init__(self, server: ForkServer, case: Path, name: str, process: int) -> None:
        self.server, self.case, self.name, self.process = server, case, name, process

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.process, number)

    def kill(self) -> Ended:
        """Kill the process and all that it has started, at once, and wait for their end."""
        return self._ended(self.server._ask(kill=self.process, case=str(self.case)))

    def wait(self, timeout: float = 300) -> Ended:
        """Wait for the end of the process. Fail after `timeout` seconds."""
        status = self.server._ask(wait=self.process, timeout=timeout)
        if status is None:
            ended = self.kill()
            raise AssertionError(f"{self.case}: still running after {timeout:g} s: {ended.stderr[-2000:]}")
        return self._ended(status)

    def wait_briefly(self, timeout: float) -> Ended:
        """Wait for the end of the process; raise `TimeoutError` if it has not ended after `timeout` seconds."""
        status = self.server._ask(wait=self.process, timeout=timeout)
        if status is None:
            raise TimeoutError
        return self._ended(status)

    def _ended(self, status: int) -> Ended:
        def read(name: str) -> str:
            path = self.case / f"{self.name}{name}"
            return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

        return Ended(
            code=os.waitstatus_to_exitcode(status),
            stdout=read("stdout"),
            stderr=read("stderr"),
            calls=read("calls").splitlines(),
        )


class _Forked:
    """Stands in for `subprocess.Popen` of `python -m intl_bench ARGUMENTS`, for the processes of one run."""

    def __init__(self, command: Sequence[str], env: dict[str, str], pass_fds: Sequence[int] = ()) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _note(os.environ["INTL_BENCH_CASE"])
            _own_signals()
            os.environ.clear()
            os.environ.update(env)
            _end(_main, list(command[3:]))

    def poll(self) -> int | None:
        if self.returncode is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("intl-bench", timeout or 0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _own_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _note(case: str) -> None:
    """Note this process among those that `Child.kill` ends."""
    with open(Path(case) / "processes", "a") as stream:
        stream.write(f"{os.getpid()}\n")


def _main(arguments: list[str]) -> int:
    from intl_bench.cli import main

    sys.argv = ["intl-bench", *arguments]
    return main(arguments)


def _find(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _end(function: Any, *args: Any, **options: Any) -> None:
    code = 1
    try:
        code = function(*args, **options) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _child(request: dict[str, Any]) -> None:
    case = Path(request["case"])
    os.setsid()
    _note(str(case))
    _own_signals()
    os.environ["INTL_BENCH_CASE"] = str(case)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        path = case / f"{request['name']}{name}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    file = os.open(os.devnull, os.O_RDONLY)
    os.dup2(file, 0)
    os.close(file)
    os.chdir(case / "work")
    original = subprocess.Popen

    def popen(command: Any, *args: Any, **options: Any) -> Any:
        if isinstance(command, list) and command[1:3] == ["-m", "intl_bench"]:
            return _Forked(command, options["env"], options.get("pass_fds", ()))
        return original(command, *args, **options)

    subprocess.Popen = popen  # type: ignore[assignment,misc]
    for name, arguments in request["setup"]:
        _find(name)(**arguments)
    if request["target"] is not None:
        name, arguments = request["target"]
        _end(_find(name), **arguments)
    _end(_main, request["arguments"])


def _wait(process: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    pause = 0.002
    while True:
        try:
            found, status = os.waitpid(process, os.WNOHANG)
        except ChildProcessError:  # it has ended before, or its parent still runs
            found, status = int(not Path(f"/proc/{process}").exists()), 0
        if found:
            return status
        if time.monotonic() > end:
            return None
        time.sleep(pause)
        pause = min(0.02, pause * 1.2)


def _kill(process: int, case: Path) -> int:
    """Kill the processes of a case and return the status of the first."""
    processes = case / "processes"
    status, killed = 0, set[int]()
    while True:
        alive = {int(line) for line in processes.read_text().split()} - killed
        if not alive:
            return status
        for number in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for number in alive:
            ended = _wait(number, 10) or 0
            status = ended if number == process else status
        killed |= alive


def _serve() -> None:
    with contextlib.suppress(OSError, AttributeError):  # orphans of a killed case become children of this process
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    for name in _MODULES:
        importlib.import_module(name)
    import torch

    from intl_bench.cli import _COMMANDS

    for name in _COMMANDS:
        importlib.import_module(f"intl_bench.cli.{name}")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"], request["timeout"])
        elif "kill" in request:
            answer = _kill(request["kill"], Path(request["case"]))
        else:
            case = Path(request["case"])
            (case / "processes").write_text("")
            (case / f"{request['name']}calls").unlink(missing_ok=True)
            answer = os.fork()
            if answer == 0:
                answers.detach()
                _child(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
