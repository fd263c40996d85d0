"""Compare training in several gloo processes with one process at the same global batch: images per second and loss.

    python benchmarks/processes.py                                  1 and 2 processes, two minutes on 2 cores
    python benchmarks/processes.py --processes 1 2 4 --batch-size 256

The step is ResNet-18 with the CIFAR stem on generated images, with one computing thread per process. The batches are
made beforehand. The numbers of processes alternate; the best step counts. With ideal scaling, the speedup is the ratio
of the numbers of processes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def work(options: argparse.Namespace) -> None:
    """Do the steps of one process; the first process prints the seconds and the losses."""
    import torch

    from intl_bench.core import distributed
    from pretrain import train
    from pretrain.images.data import open_source
    from pretrain.images.loader import training_batches
    from pretrain.recipe import load_recipe

    size = options.batch_size
    overrides = ["data={kind: shapes, name: shapes, size: 2048}", f"batch_size={size}", "warmup_epochs=0"]
    recipe = load_recipe("cifar10_r18_intl", [*overrides, "base_lr=0.01", "device=cpu"])
    torch.set_num_threads(1)
    with distributed.start("cpu") as process:
        source = open_source(recipe.data, "train")
        training = train.build_training(recipe, process, len(source))
        part = {"rank": process.rank, "world_size": process.world_size}
        batches = list(
            training_batches(source, recipe.views, seed=0, batch_size=size, last_step=options.steps + 1, **part)
        )
        seconds, losses = [], []
        for batch in batches:
            distributed.barrier()
            started = time.perf_counter()
            losses.append(training.take_step(batch).values()["loss"])
            distributed.barrier()
            seconds.append(time.perf_counter() - started)
        if process.is_main:
            print(json.dumps({"seconds": seconds[1:], "losses": losses}))  # the first step includes setup


def measure(processes: int, options: argparse.Namespace) -> dict[str, list[float]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, __file__, "--work"]
    command += ["--batch-size", str(options.batch_size), "--steps", str(options.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=128, help="over all processes (default: 128)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each run (default: 3)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    seconds: dict[int, list[float]] = {count: [] for count in options.processes}
    losses: dict[int, list[float]] = {}
    for _ in range(options.repeats):
        for count in options.processes:
            result = measure(count, options)
            seconds[count] += result["seconds"]
            losses[count] = result["losses"]
    first = options.processes[0]
    print(f"ResNet-18 CIFAR step, batch {options.batch_size}, one thread per process, {os.cpu_count()} cores, gloo")
    print(
        f"| processes | seconds per step | img/s | / {first} process | difference of loss |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for count in options.processes:
        best = min(seconds[count])
        differences = [abs(a - b) / abs(b) for a, b in zip(losses[count], losses[first], strict=True)]
        rate, gain = options.batch_size / best, min(seconds[first]) / best
        print(f"| {count} | {best:.2f} | {rate:.1f} | {gain:.2f} | {max(differences):.1e} |")


if __name__ == "__main__":
    main()
