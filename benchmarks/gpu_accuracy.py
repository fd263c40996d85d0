"""Pre-train on CIFAR-10 and score the results within nine minutes; run the same command again to resume.

    python benchmarks/gpu_accuracy.py --out OUT                    both parts below, all in bf16
    python benchmarks/gpu_accuracy.py --out OUT --only full graph=true
    python benchmarks/gpu_accuracy.py --out OUT --device cpu --small

subset: INTL, 1000 epochs on the 5,170 lossless images of cifar10_subset.npz. full: INTL, Barlow Twins and SimSiam,
`--epochs` each, on all 50,000 images of cifar10_jpeg.tar.xz, a JPEG-compressed copy of the data set. Its name is
cifar10_jpeg in every record; docs/gpu_day.md gives its source. Each model is scored by 5-NN and by three linear
classifiers. Overrides key=value apply to all pre-training runs. After each score, `accuracy.tar.gz` with records and
logs is written to OUT. Runs and images are in RUNS, outside of the repository.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_timing
import numpy as np
from gpu_step import SMALL

from intl_bench.core.errors import PREEMPTED, InputError
from pretrain.images.data import DataConfig, normalization, open_source

ROOT = Path(__file__).resolve().parents[1]
SCORING = 60  # seconds reserved for the score of a checkpoint
SUBSET, JPEG = "cifar10_subset.npz", "cifar10_jpeg.tar.xz"
METHODS = ("intl", "barlow_twins", "simsiam")


Splits = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images and labels of "train" and "test"."""


class Unfinished(Exception):
    """Error if the time is over; run the same command again to resume."""


def bench(words: list[str], options: argparse.Namespace, seconds: float) -> str:
    """Run a command of intl-bench and return its output; stop it after `seconds`, so that it can be resumed.

    Raises:
        Unfinished: the command was stopped.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "intl_bench", *words]
    with subprocess.Popen(command, cwd=options.runs, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = process.communicate(timeout=max(1.0, seconds))[0]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            printed = process.communicate(timeout=60)[0]
    if process.returncode in (PREEMPTED, -signal.SIGTERM):
        raise Unfinished(f"{' '.join(words[:2])}: the time is over; run the same command again to resume")
    if process.returncode:
        sys.exit(f"intl-bench {' '.join(words)}: exit code {process.returncode}")
    return printed


def write_npz(path: Path, splits: Splits, small: bool) -> None:
    """Write an archive for `data.kind=npz`; with `small`, about a hundred images of each split."""
    arrays = {}
    for split, (images, labels) in splits.items():
        chosen = slice(None, None, max(1, len(images) // 100) if small else None)
        arrays |= {f"{split}_x": images[chosen], f"{split}_y": labels[chosen]}
    np.savez(path, **arrays)


def from_npz(path: Path) -> Splits:
    with np.load(path) as archive:
        return {split: (archive[f"{split}_x"], archive[f"{split}_y"]) for split in ("train", "test")}


def from_jpeg(packed: Path) -> Splits:
    """Decode the images of a compressed folder with train.pack and val.pack; return images and labels."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        (pack,) = Path(folder).rglob("train.pack")
        config = DataConfig(kind="imagefolder", root=str(pack.parent), name="cifar10_jpeg")
        sources = {split: open_source(config, split) for split in ("train", "test")}
        return {
            split: (np.stack([source.image(number) for number in range(len(source))]), source.labels)
            for split, source in sources.items()
        }


def prepare(part: str, options: argparse.Namespace) -> list[str]:
    """Put the data of a part next to the runs, so that records contain no local path; return its settings."""
    mean, std = normalization(DataConfig(kind="cifar10"))
    name, file = ("cifar10", SUBSET) if part == "subset" else ("cifar10_jpeg", "cifar10_jpeg.npz")
    path = options.runs / file
    if not path.exists():
        splits = from_npz(options.data / SUBSET) if part == "subset" else from_jpeg(options.data / JPEG)
        unfinished = path.with_suffix(".new.npz")
        write_npz(unfinished, splits, options.small)
        unfinished.rename(path)
    return ["data.kind=npz", f"data.root={file}", f"data.name={name}", f"data.mean={[*mean]}", f"data.std={[*std]}"]


def report(options: argparse.Namespace, text: str) -> None:
    """Print a result, and save all records and logs."""
    print(text, flush=True)
    with tarfile.open(options.out / "accuracy.tar.gz", "w:gz") as archive:
        kept = [*options.runs.glob("results/records/*/*.json"), *options.runs.glob("runs/pretrain/*/*/metrics.jsonl")]
        for path in kept:
            archive.add(path, str(path.relative_to(options.runs)))


def train_and_score(part: str, method: str, data: list[str], options: argparse.Namespace) -> None:
    name = f"{part}_{method}"
    epochs = 1 if options.small else 1000 if part == "subset" else options.epochs
    settings = [f"name={name}", f"epochs={epochs}", f"device={options.device}", "precision=bf16", *data]
    settings += [*([*SMALL, "workers=0"] if options.small else []), *options.settings]
    if gpu_timing.left(options.seconds) < SCORING:
        raise Unfinished(f"{name}: the time is over; run the same command again to resume")
    bench(["pretrain", f"cifar10_r18_{method}", *settings], options, gpu_timing.left(options.seconds) - SCORING)
    checkpoint = f"runs/pretrain/{name}/seed0/checkpoint.pt"
    for task in ("knn", "linear"):
        words = [task, checkpoint, "--device", options.device, *(["--seeds", "3"] if task == "linear" else [])]
        words += ["epochs=2"] if task == "linear" and options.small else []
        report(options, f"{part}, {epochs} epochs: " + bench(words, options, gpu_timing.left(options.seconds)).strip())
    log = (options.runs / checkpoint).with_name("metrics.jsonl").read_text().splitlines()
    rates = sorted(json.loads(line)["img/s"] for line in log)
    report(options, f"{part}, {epochs} epochs: {method} trained at {rates[len(rates) // 2]:.0f} img/s")


def main() -> None:
    parser = gpu_timing.device_options(__doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="overrides of every pre-training, such as graph=true"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--only", choices=["subset", "full"], help="run only this part")
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "gpu_day", help=f"folder of {SUBSET} and {JPEG}")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "gpu_day_runs")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of each method on all images")
    parser.add_argument("--seconds", type=float, default=520, help="time limit in seconds")
    options = parser.parse_args()
    if options.small:
        options.runs /= "small"  # separate from the images and runs of full size
    parts = {"subset": ("intl",), "full": METHODS}
    if options.only:
        parts = {options.only: parts[options.only]}
    needed = {"subset": options.data / SUBSET, "full": options.data / JPEG}
    for part in parts:
        if not needed[part].exists():
            print(
                f"{needed[part]}: missing, but needed by part {part} (docs/gpu_day.md); use --only for the other part",
                file=sys.stderr,
            )
            sys.exit(InputError.exit_code)
    options.out.mkdir(parents=True, exist_ok=True)
    options.runs.mkdir(parents=True, exist_ok=True)
    try:
        for part, names in parts.items():
            data = prepare(part, options)
            for method in names:
                train_and_score(part, method, data, options)
    except Unfinished as reason:
        report(options, str(reason))


if __name__ == "__main__":
    main()
