"""Run a step of the GPU day with all its jobs in this process.

    python tests/support/gpu_day_at_once.py gpu_speed|gpu_accuracy [options of the script]

Each job is a process on the day. To start that many and import PyTorch in each takes most of the time of small jobs.
"""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TextIO
from unittest import mock

from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_accuracy
import gpu_speed

from intl_bench import cli


def run_script(
    command: Sequence[str], env: Mapping[str, str], stdout: TextIO, stderr: TextIO, timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Run `python SCRIPT WORDS` in this process, without the limit of time."""
    _, script, *words = command
    code: Any = 0
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch.object(sys, "argv", [script, *words]),
        mock.patch.dict(os.environ, env),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=stderr)
                code = 1
    return subprocess.CompletedProcess([*command], code)


class OneAfterTheOther:
    """A pool whose calls run where their results are read."""

    def __init__(self, workers: int) -> None:
        pass

    def __enter__(self) -> "OneAfterTheOther":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[str], Any], names: Iterable[str]) -> Iterator[Any]:
        return map(function, names)


def bench(words: list[str], options: Any, seconds: float) -> str:
    """Return what a command of intl-bench prints, without the limit of time."""
    with contextlib.chdir(options.runs), contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main(words)
    if code:
        sys.exit(f"intl-bench {' '.join(words)}: exit code {code}")
    return printed.getvalue()


def main(step: str) -> None:
    scripts = {"gpu_speed": gpu_speed.main, "gpu_accuracy": gpu_accuracy.main}
    one_process = SimpleNamespace(run=run_script, TimeoutExpired=subprocess.TimeoutExpired)
    with (
        mock.patch.object(gpu_speed, "subprocess", one_process),
        mock.patch.object(gpu_speed, "ThreadPoolExecutor", OneAfterTheOther),
        mock.patch.object(gpu_accuracy, "bench", bench),
    ):
        scripts[step]()


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    main(sys.argv[0])
