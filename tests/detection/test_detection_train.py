"""Training, resuming and detecting with the built-in engine, on a few generated images."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_cases import TINY
from detection_worker import take_step
from PIL import Image
from places import SUPPORT

from intl_bench.core import distributed, files
from intl_bench.core.errors import DivergedError, InputError, Preempted
from intl_bench.core.signals import StopRequest
from transfer.detection import build_model
from transfer.detection.annotations import generated
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig, DetectionConfig
from transfer.detection.data import training_batches
from transfer.detection.engines import builtin
from transfer.detection.engines.optim import build_sgd, learning_rate

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DetectionConfig:
    root = tmp_path_factory.mktemp("figures")
    generated.write(root, train=12, test=4)
    return DetectionConfig(
        data=AnnotatedDataConfig(root=str(root), name="figures"),
        model=dataclasses.replace(TINY, num_classes=5),
        engine="builtin",
        iterations=6,
        milestones=(4,),
        warmup_iterations=2,
        batch_size=4,
        min_sizes=(64, 80),
        max_size=120,
        test_min_size=64,
        test_max_size=120,
        precise_bn=2,
        checkpoint_every=100,
        workers=0,
        device="cpu",
    )


def backbone(config: DetectionConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = build_model(config.model).state_dict()
    parts = ("backbone.", "roi_heads.res5.")
    return {
        key.removeprefix("backbone.").removeprefix("roi_heads."): value
        for key, value in state.items()
        if key.startswith(parts) and not key.startswith("roi_heads.res5.norm")
    }


def run(
    config: DetectionConfig,
    folder: Path,
    evaluate: Callable[[list[Any]], dict[str, float]] = lambda results: {},
    **identity: int,
) -> list[dict[str, Any]]:
    splits = [read_split(config.data, split, masks=True) for split in ("train", "test")]
    with distributed.start("cpu") as process, StopRequest() as stop:
        return builtin.run(
            backbone(config),
            config,
            0,
            folder=folder,
            train=splits[0],
            test=splits[1],
            identity=identity,
            evaluate=evaluate,
            process=process,
            stop=stop,
        )


def detector(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "detector.pth", weights_only=True)["model"]
    return state


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights_and_detections(
    config: DetectionConfig, tmp_path: Path, accumulate: int
) -> None:
    config = dataclasses.replace(config, accumulate=accumulate)
    whole = run(config, tmp_path / "whole")

    def stop(results: list[Any]) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {}

    stopping = dataclasses.replace(config, eval_every=2)
    with pytest.raises(Preempted, match="after step 3 of 6"):
        run(stopping, tmp_path / "parts", stop)
    assert not (tmp_path / "parts" / "detector.pth").exists()
    parts = run(config, tmp_path / "parts")
    assert whole == parts
    a, b = detector(tmp_path / "whole"), detector(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [json.loads(line)["iteration"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [2, 3, 6]


def test_tensorboard_has_the_losses_and_the_evaluations_of_the_log(config: DetectionConfig, tmp_path: Path) -> None:
    """Values of steps that a resumed run repeats are not there twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(config, eval_every=2, checkpoint_every=2)
    run(config, tmp_path, lambda results: {"bbox/AP": 12.5})
    for age in (0, 1):  # the newest states; the run resumes from the first one
        files.earlier(tmp_path / "state.pt", age).unlink()
    run(config, tmp_path, lambda results: {"bbox/AP": 12.5})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = {key for row in rows for key in row if key not in ("iteration", "seconds", "time")}
    assert tags >= {"lr", "loss", "loss_mask", "loss_rpn_cls", "bbox/AP"}
    for tag in ("lr", "loss", "bbox/AP"):
        logged = [(row["iteration"], row[tag]) for row in rows if tag in row]
        assert [event.step for event in board.Scalars(tag)] == [step for step, _ in logged]
        assert [event.value for event in board.Scalars(tag)] == pytest.approx([value for _, value in logged])


def test_weights_do_not_depend_on_the_number_of_workers(config: DetectionConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "a")
    run(dataclasses.replace(config, workers=2), tmp_path / "b")
    a, b = detector(tmp_path / "a"), detector(tmp_path / "b")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_all_weights_and_statistics_of_the_backbone_change(config: DetectionConfig, tmp_path: Path) -> None:
    run(config, tmp_path)
    torch.manual_seed(0)
    before, after = backbone(config), detector(tmp_path)
    for key, value in before.items():
        name = f"roi_heads.{key}" if key.startswith("res5.") else f"backbone.{key}"
        assert not torch.equal(value, after[name]), f"{name} did not change"


def test_statistics_are_those_of_the_batches_with_the_final_weights(config: DetectionConfig, tmp_path: Path) -> None:
    """The running mean of the stem equals an independent mean of the output of its convolution over the batches."""
    config = dataclasses.replace(config, iterations=1, precise_bn=3)
    run(config, tmp_path)
    state = detector(tmp_path)
    model = build_model(config.model)
    model.load_state_dict(state)
    train_split = read_split(config.data, "train", masks=True)
    total, count = torch.zeros(TINY.width, dtype=torch.float64), 0
    for batch in training_batches(
        train_split,
        seed=0,
        batch_size=4,
        min_sizes=config.min_sizes,
        max_size=config.max_size,
        masks=True,
        first_iteration=0,
        last_iteration=3,
        purpose="precise bn order",
    ):
        maps = torch.conv2d(
            model.preprocess([image.pixels for image in batch.images]), state["backbone.stem.conv1.weight"], None, 2, 3
        ).double()
        total += maps.sum((0, 2, 3))
        count += maps.numel() // TINY.width
    torch.testing.assert_close(
        state["backbone.stem.conv1.norm.running_mean"].double(), total / count, rtol=1e-4, atol=1e-5
    )


def test_a_non_finite_loss_ends_the_run(config: DetectionConfig, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="lower lr"):
        run(dataclasses.replace(config, lr=1e20, warmup_iterations=0), tmp_path)
    assert not (tmp_path / "detector.pth").exists()


def test_state_of_another_run_is_refused(config: DetectionConfig, tmp_path: Path) -> None:
    run(config, tmp_path, seed=1)
    with pytest.raises(InputError, match=r"belongs to another run \(seed: 1 -> 2\)"):
        run(config, tmp_path, seed=2)


def test_bf16_and_channels_last_change_the_loss_only_slightly(config: DetectionConfig, tmp_path: Path) -> None:
    short = dataclasses.replace(config, iterations=1, model=dataclasses.replace(config.model, width=16))
    run(short, tmp_path / "plain")
    run(dataclasses.replace(short, precision="bf16", channels_last=True), tmp_path / "half")
    values = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("plain", "half")]
    assert values[0]["loss"] == pytest.approx(values[1]["loss"], rel=0.03)
    assert values[0]["loss"] != values[1]["loss"]


def test_narrow_channels_last_on_a_cpu_is_refused(config: DetectionConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="channels_last"):
        run(dataclasses.replace(config, channels_last=True), tmp_path)


def step_of(processes: int, folder: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Take one step with several processes, and return the weights."""
    words = [*words, "iterations=1", "precise_bn=0"]
    if processes == 1:
        take_step(folder, words)
        return detector(folder)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [*launch, str(SUPPORT / "detection_worker.py"), str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return detector(folder)


@pytest.mark.slow
def test_two_processes_share_a_batch(config: DetectionConfig, tmp_path: Path) -> None:
    """One step of two processes gives the same weights as one process.

    A batch is one image four times, because padding depends on the other images of a process.
    """
    root = Path(config.data.root)
    listing = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    listing["images"] = listing["images"][:1]
    listing["annotations"] = [a for a in listing["annotations"] if a["image_id"] == listing["images"][0]["id"]]
    one = tmp_path / "one.json"
    one.write_text(json.dumps(listing))
    words = ["data.name=figures", f"data.root={root}", f"data.train=[{one}]"]
    a, b = (step_of(processes, tmp_path / str(processes), words) for processes in (1, 2))
    assert a.keys() == b.keys()
    for key in a:
        if a[key].is_floating_point():
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_two_processes_in_two_parts_take_the_step_of_one_process(config: DetectionConfig, tmp_path: Path) -> None:
    """A batch is one symmetric image four times, and all proposals are taken. So all parts have the same statistics."""
    Image.linear_gradient("L").resize((48, 64)).convert("RGB").save(tmp_path / "left.png")
    image = np.asarray(Image.open(tmp_path / "left.png")).copy()
    image[20:44, 30:] = (200, 90, 30)
    Image.fromarray(np.concatenate([image, image[:, ::-1]], axis=1)).save(tmp_path / "one.png")
    box = [30, 20, 36, 24]
    outline = [[30, 20, 66, 20, 66, 44, 30, 44]]
    listing = json.loads((Path(config.data.root) / "annotations" / "instances_train2017.json").read_text())
    listing["images"] = [{"id": 1, "file_name": "one.png", "width": 96, "height": 64}]
    one = {"id": 1, "image_id": 1, "category_id": listing["categories"][0]["id"], "iscrowd": 0, "area": 864}
    listing["annotations"] = [{**one, "bbox": box, "segmentation": outline}]
    (tmp_path / "one.json").write_text(json.dumps(listing))
    words = ["data.name=figures", f"data.root={config.data.root}", f"data.train=[{tmp_path}/one.json]"]
    words += [f"data.train_images={tmp_path}", "model.roi_batch=32", "model.post_nms_train=7"]
    whole = step_of(1, tmp_path / "whole", words)
    parts = step_of(2, tmp_path / "parts", [*words, "accumulate=2"])
    trained = [key for key in whole if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(trained) > 30
    for key in trained:
        torch.testing.assert_close(
            whole[key], parts[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_learning_rate_follows_warmup_and_milestones() -> None:
    config = DetectionConfig(iterations=100, milestones=(60, 90), warmup_iterations=10, lr=0.5, warmup_factor=0.1)
    assert learning_rate(config, 0) == pytest.approx(0.05)
    assert learning_rate(config, 5) == pytest.approx(0.05 + 0.45 * 0.5)
    steps = [learning_rate(config, iteration) for iteration in (10, 59, 60, 89, 90, 99)]
    assert steps == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])


def test_norms_have_their_own_weight_decay() -> None:
    model = build_model(TINY)
    groups = build_sgd(model, DetectionConfig()).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    norms = {id(p) for group in groups[1:] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in norms) == (".norm." in name), name
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
