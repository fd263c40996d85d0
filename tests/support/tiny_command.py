"""The command line that pre-trains on generated images in seconds, as a process of its own, and what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from places import ROOT
from stopped_run import wait

from pretrain import states

TINY = [
    *("data.size=160", "batch_size=32", "backbone.name=resnet10_narrow", "projector.hidden=64", "projector.out=256"),
    *("warmup_epochs=0", "base_lr=0.002", "log_every=1", "device=cpu"),
]


class Run:
    """`intl-bench pretrain demo` in `folder`."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words = folder, [*TINY, *words]
        self.run = folder / "runs/pretrain/demo/seed0"

    def start(self, *words: str, **options: Any) -> "subprocess.Popen[str]":
        """Start the command, with further words."""
        command = [sys.executable, "-m", "intl_bench", "pretrain", "demo", *self.words, *words]
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RANK", "WORLD_SIZE")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, **{"stderr": subprocess.PIPE, **options}
        )

    def finish(self, *words: str) -> None:
        """Run the command to its end, which must be good."""
        process = self.start(*words)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors

    def steps(self) -> int:
        """Return the number of steps in the log."""
        log = self.run / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def reach(self, step: int, process: "subprocess.Popen[str]") -> None:
        """Wait until the log has so many steps."""
        wait(lambda: self.steps() >= step or process.poll() is not None)
        assert process.poll() is None, process.communicate()

    def saved_step(self) -> int:
        return int(states.load(self.run / "checkpoint.pt")[0]["step"])

    def result(self) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        """Return the final weights, and the lines of the log without measured times."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        timed = {"img/s", "data", "seconds"}
        return states.load(self.run / "checkpoint.pt")[0]["method"], [
            {key: value for key, value in line.items() if key not in timed} for line in lines
        ]


def assert_same_result(run: Run, expected: Run) -> None:
    """Weights and logs of two runs are equal bit for bit."""
    (weights, lines), (expected_weights, expected_lines) = run.result(), expected.result()
    assert lines == expected_lines
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        assert torch.equal(weights[name], value), name


def children(process: int) -> list[int]:
    """Processes that `process` started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process and status != "Z":
            found.append(int(folder.name))
    return sorted(found)
