"""Pre-trains on CIFAR-10 and scores it, as far as nine minutes go; the same command goes on where it was stopped.

    python benchmarks/gpu_accuracy.py --out OUT                    both parts below, all in bf16
    python benchmarks/gpu_accuracy.py --out OUT --only full graph=true
    python benchmarks/gpu_accuracy.py --out OUT --device cpu --small

subset: INTL, 1000 epochs on the 5,170 lossless images of cifar10_subset.npz. full: INTL, Barlow Twins and SimSiam,
`--epochs` each, on all 50,000 images of cifar10_jpeg.tar.xz, a copy of the data set that was compressed as JPEG; its
name is cifar10_jpeg in every record (docs/gpu_day.md says where it is from). Each is scored by 5-NN and by three linear
classifiers. Overrides key=value are for all pre-trainings. OUT gets `accuracy.tar.gz`, records and logs, anew whenever
something is scored. Runs and images live in RUNS, outside of the tree.
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
SCORING = 60  # seconds that are kept for scoring a checkpoint
SUBSET, JPEG = "cifar10_subset.npz", "cifar10_jpeg.tar.xz"
METHODS = ("intl", "barlow_twins", "simsiam")


Splits = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images and labels of "train" and "test"."""


class Unfinished(Exception):
    """The time is up; the same command goes on."""


def bench(words: list[str], options: argparse.Namespace, seconds: float) -> str:
    """What a command of intl-bench printed; one that takes longer is stopped, and can go on.

    Raises:
        Unfinished: it was stopped.
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
        raise Unfinished(f"{' '.join(words[:2])}: the time is up; the same command goes on")
    if process.returncode:
        sys.exit(f"intl-bench {' '.join(words)}: exit code {process.returncode}")
    return printed


def write_npz(path: Path, splits: Splits, small: bool) -> None:
    """An archive as `data.kind=npz` reads it; with `small` about a hundred images of each split."""
    arrays = {}
    for split, (images, labels) in splits.items():
        chosen = slice(None, None, max(1, len(images) // 100) if small else None)
        arrays |= {f"{split}_x": images[chosen], f"{split}_y": labels[chosen]}
    np.savez(path, **arrays)


def from_npz(path: Path) -> Splits:
    with np.load(path) as archive:
        return {split: (archive[f"{split}_x"], archive[f"{split}_y"]) for split in ("train", "test")}


def from_jpeg(packed: Path) -> Splits:
    """The decoded images of a compressed folder of train.pack and val.pack, and their labels."""
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
    """The settings of a part's data, which is put where the runs are, so that records hold no path of one machine."""
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
    """Says what came out, and keeps all records and logs that there are."""
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
        raise Unfinished(f"{name}: the time is up; the same command goes on")
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
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of every pre-training, such as graph=true")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--only", choices=["subset", "full"], help="this part alone")
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "gpu_day", help=f"folder of {SUBSET} and {JPEG}")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "gpu_day_runs")
    parser.add_argument("--epochs", type=int, default=50, help="of each method on all images")
    parser.add_argument("--seconds", type=float, default=520, help="in which to come to an end")
    options = parser.parse_args()
    if options.small:
        options.runs /= "small"  # whose images and runs nobody is to take for the others
    parts = {"subset": ("intl",), "full": METHODS}
    if options.only:
        parts = {options.only: parts[options.only]}
    needed = {"subset": options.data / SUBSET, "full": options.data / JPEG}
    for part in parts:
        if not needed[part].exists():
            print(
                f"{needed[part]}: not there, part {part} needs it (docs/gpu_day.md); --only names the other",
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
