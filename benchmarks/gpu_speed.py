"""Measure the speed of this project on a GPU: one process per job, in the order of `jobs`; print a growing table.

    python benchmarks/gpu_speed.py --out OUT                       all of it, in at most nine minutes
    python benchmarks/gpu_speed.py --out OUT --only detection      a job that the time limit cut off
    python benchmarks/gpu_speed.py --out OUT --device cpu --small

The script writes `speed.jsonl` with every number and `kernels.txt` with the time of each kernel in a step to OUT.
Compiled steps come last, each with its own time limit. The roofline column is the time of the matrix products and the
memory traffic of a step at the rates measured first (`pretrain --dry-run` counts them), divided by the measured time.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_timing
from gpu_step import recipe_of

from pretrain.dry_run import plan
from pretrain.dry_run.costs import Device

HERE = Path(__file__).resolve().parent
CIFAR, TWO, SIX = "cifar10_r18_intl", "imagenet_r50_intl", "imagenet_r50_intl_multicrop_100ep"
HEAD = (
    "| recipe | settings | ms (range) | img/s | roofline | host ms | first step s | peak MiB |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)
FAILED = "failed"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One process: a script of benchmarks/ and its arguments.

    Attributes:
        small: arguments that replace `words` with --small.
        limit: time limit in seconds.
        environment: variables added to the environment of this process.
    """

    words: tuple[str, ...]
    small: tuple[str, ...] | None = None
    limit: float = 120
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def steps(recipe: str, *words: str, **options: Any) -> Job:
    return Job(words=("gpu_step.py", recipe, *words), **options)


def jobs(out: Path) -> dict[str, Job]:
    """Return the jobs by name, the most important first."""
    few = ("--steps", "10")  # a step takes a tenth of a second
    return {
        "rates": Job(words=("gpu_timing.py",)),
        "cifar": steps(CIFAR, "precision=bf16", "precision=fp16", "precision=fp32", "--parts"),
        "cifar-graph": steps(CIFAR, "precision=bf16,graph=true", "precision=fp16,graph=true"),
        "cifar-kernels": steps(
            CIFAR, "precision=bf16", "precision=fp16", "precision=bf16,graph=true", "--profile", f"{out}/kernels.txt"
        ),
        "two-views": steps(TWO, "precision=bf16", "precision=fp16", *few, "--parts"),
        "six-crops": steps(SIX, "precision=bf16", *few, "--parts"),
        "two-views-kernels": steps(TWO, "precision=bf16", *few, "--profile", f"{out}/kernels.txt"),
        "detection": Job(words=("gpu_detection.py",)),
        "knn": Job(words=("knn.py",), small=("knn.py", "--train", "500", "--test", "100", "--width", "32")),
        "probe": Job(
            words=("probe.py",),
            small=("probe.py", *("--train", "500", "--test", "100", "--width", "32", "--epochs", "2", "--turn", "1")),
        ),
        "deterministic": steps(CIFAR, "precision=bf16,deterministic=true"),
        "cudnn-benchmark-off": steps(CIFAR, "precision=bf16", "--no-cudnn-benchmark"),
        "expandable-segments-off": steps(
            CIFAR, "precision=bf16", environment={"PYTORCH_ALLOC_CONF": "expandable_segments:False"}
        ),
        "two-views-graph": steps(TWO, "precision=bf16,graph=true", *few),
        "six-crops-graph": steps(SIX, "precision=bf16,graph=true", *few),
        "cifar-compiled": steps(
            CIFAR, "precision=bf16,compile=true", "precision=bf16,compile=true,graph=true", limit=150
        ),
        "two-views-compiled": steps(TWO, "precision=bf16,compile=true", *few, limit=200),
        "two-views-compiled-graph": steps(TWO, "precision=bf16,compile=true,graph=true", *few, limit=200),
        "six-crops-compiled": steps(SIX, "precision=bf16,compile=true", *few, limit=400),
    }


def run(name: str, job: Job, options: argparse.Namespace) -> tuple[str, str | None]:
    """Run a job; return its output and the reason why it did not finish, or None."""
    left = gpu_timing.left(options.seconds)
    if left < 20:
        return "", f"not measured, the time is over; run again with --only {name}"
    words = job.small if options.small and job.small is not None else job.words
    command = [sys.executable, str(HERE / words[0]), *words[1:], "--device", options.device]
    command += ["--small"] if options.small and job.small is None else []
    limit = min(job.limit, left)
    # Files, not pipes: processes that outlive a job for a moment would keep pipes open.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                command, env=os.environ | job.environment, stdout=printed, stderr=errors, timeout=limit
            )
            wrong = None if done.returncode == 0 else FAILED
        except subprocess.TimeoutExpired:
            wrong = f"ended after {limit:.0f} s"
        for stream in (printed, errors):
            stream.seek(0)
        said = errors.read().strip().splitlines()
        if wrong == FAILED:
            wrong += f": {(said or ['no message'])[-1][:300]}"
        elif wrong is None:  # a step without the requested setting is not a valid measurement
            wrong = "\n".join(line for line in said if ": not used here, " in line) or None
        return printed.read(), wrong


def ideal_device(rates: Row) -> Device:
    """Return a device with the measured rates, for the plan."""
    return Device(
        name=rates["device"],
        flops={unit: rates[unit] for unit in ("half", "conv32", "matmul32")},
        bandwidth=rates["bandwidth"],
        memory=math.inf,
    )


class Report:
    """Output of the jobs, printed and saved."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ideal: Device | None = None
        self.rooflines: dict[str, float] = {}

    def add(self, name: str, printed: str) -> None:
        """Print the output of a job: lines of JSON as table rows, or a table unchanged."""
        rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{") and line.endswith("}")]
        if not rows and printed:
            print(printed.rstrip())
        if name == "rates" and rows:
            self.ideal = ideal_device(rows[0])
        if any("img/s" in row for row in rows):
            print(HEAD)
        for row in rows:
            if "img/s" in row and self.ideal is not None:
                row["roofline_ms"] = self.roofline(row["recipe"], row["settings"], self.ideal)
            with (self.options.out / "speed.jsonl").open("a") as stream:
                print(json.dumps({"job": name} | row), file=stream)
            print(*shown(row), sep="\n")

    def roofline(self, name: str, settings: str, ideal: Device) -> float:
        """Return the milliseconds of a step of a recipe at the measured rates, without launch times."""
        key = f"{name} {settings.split(',')[0]}"
        if key not in self.rooflines:
            recipe = recipe_of(name, settings, self.options.device, self.options.small)
            self.rooflines[key] = 1e3 * plan.make_plan(recipe, devices=[ideal]).estimates[0].roofline
        return self.rooflines[key]


def shown(row: Row) -> list[str]:
    """Return the lines of a row: table lines if it has a rate, else text."""
    if "img/s" not in row:
        values = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        return [", ".join(f"{key} {value}" for key, value in values.items())]
    cells = [
        row["recipe"],
        row["settings"],
        f"{row['ms']:.2f} ({row['range_percent']:.0f}%)",
        f"{row['img/s']:.0f}",
        f"{100 * row['roofline_ms'] / row['ms']:.0f}%" if "roofline_ms" in row else "–",
        f"{row['host_ms']:.2f}",
        f"{row['first_step_s']:.1f}",
        "–" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
    ]
    parts = [["– " + part, "", f"{ms:.2f}", *[""] * 5] for part, ms in row.get("parts", {}).items()]
    return [f"| {' | '.join(line)} |" for line in (cells, *parts)]


def main() -> None:
    parser = gpu_timing.device_options(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these jobs, after the rates")
    parser.add_argument("--seconds", type=float, default=520, help="time limit of all jobs in seconds")
    options = parser.parse_args()
    todo = jobs(options.out)
    if unknown := {*(options.only or [])} - {*todo}:
        parser.error(f"--only {' '.join(sorted(unknown))}: expected some of {' '.join(todo)}")
    todo = {name: job for name, job in todo.items() if not options.only or name in ("rates", *options.only)}
    options.out.mkdir(parents=True, exist_ok=True)
    report, failed = Report(options), False
    # One job at a time, because concurrent jobs disturb the measurement; with --small nothing is measured.
    with ThreadPoolExecutor(2 if options.small else 1) as pool:
        for name, (printed, wrong) in zip(
            todo, pool.map(lambda name: run(name, todo[name], options), todo), strict=True
        ):
            print(f"\n**{name}**: {' '.join(todo[name].words)}\n")
            report.add(name, printed)
            if wrong is not None:
                print(wrong)
                failed |= wrong.startswith(FAILED)
            sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()
