"""Measure the share of a pre-training that its own scores take, on the CPU.

    python benchmarks/monitor.py --photos IMAGENETTE --npz CIFAR10.npz      eight minutes on 2 idle cores

Each run is a whole pre-training with its fixed costs and pictures. The settings of the scores are the default ones.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain import train
from pretrain.monitor import Monitor
from pretrain.recipe import load_recipe

SHORT = {
    "own_images": ["data.kind=imagefolder", "data.name=photos", "data.limit=0.2", "epochs=30", "warmup_epochs=2"],
    "cifar10_small_intl": ["data.kind=npz", "data.name=cifar_sample", "epochs=10", "warmup_epochs=1"],
    "demo": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="an image folder")
    parser.add_argument("--npz", type=Path, required=True, help="images of CIFAR-10")
    options = parser.parse_args()
    roots = {"own_images": options.photos.resolve(), "cifar10_small_intl": options.npz.resolve()}
    seconds: list[float] = []
    score = Monitor.score

    def timed(monitor: Monitor) -> dict[str, float]:
        started = time.perf_counter()
        scores = score(monitor)
        seconds.append(time.perf_counter() - started)
        return scores

    Monitor.score = timed  # type: ignore[assignment, method-assign]
    os.chdir(tempfile.mkdtemp())
    print("| pre-training | seconds | scorings | their seconds | share |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name, overrides in SHORT.items():
        root = [f"data.root={roots[name]}"] if name in roots else []
        recipe = load_recipe(name, [*overrides, *root, "device=cpu", "workers=0", f"name={name}"])
        seconds.clear()
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            train.run(recipe, fresh=True)
        whole = time.perf_counter() - started
        print(
            f"| {name} | {whole:.0f} | {len(seconds)} | {sum(seconds):.2f} | {sum(seconds) / whole:.1%} |", flush=True
        )


if __name__ == "__main__":
    main()
