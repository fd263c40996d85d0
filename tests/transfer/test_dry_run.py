"""The plans of `--dry-run`: counts against real passes, times against formulas, words, and that nothing is written."""

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transfer_cases import make_checkpoint, make_folder, packaged

from intl_bench import cli, dry_run, runs
from intl_bench.core import read_only
from intl_bench.core.errors import InputError
from pretrain import checkpoint as checkpoints
from pretrain.dry_run import costs
from pretrain.dry_run.machine import Machine, Preparation, time_batches
from transfer.detection import build_model
from transfer.detection.annotations import generated
from transfer.detection.config import DetectionConfig
from transfer.dry_run import classification, detection
from transfer.dry_run.work import Phase, Work
from transfer.features import build_backbone_of
from transfer.task import Outcome

HERE = Machine(
    device=costs.Device(
        name="here",
        flops={"half": 1e9, "conv32": 1e9, "matmul32": 1e9},
        bandwidth=1e9,
        memory=1e9,
        launch=0.0,
    ),
    on_gpu=False,
    cores=2,
)
PHOTOS = ["data.kind=imagefolder", "data.root=photos"]
FINETUNE = ["data.root=photos", "crop=16", "resize=16", "batch_size=3", "epochs=2", "train_percent=10"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run.machines, "measure", lambda device, **_: HERE)


@pytest.fixture
def photos() -> Path:
    """Thirty training and six test images, and a list of three of them."""
    folder = make_folder(Path("photos"), classes=3, train=10, test=2)
    names = [f"n{label:08d}_{label}.png" for label in range(3)]
    (folder / "10percent.txt").write_text("\n".join(names))
    return folder


@pytest.fixture
def backbone() -> Path:
    """The exported backbone of a run with views of 16 pixels."""
    recipe = checkpoints.recipes.load_recipe("demo", ["views=[{size: 16}, {size: 16}]", "name=small"])
    source = make_checkpoint(stem="imagenet")
    changes = {"recipe": recipe, "seed": 0, "origin": checkpoints.Origin.EXPORTED, "epoch": recipe.epochs}
    checkpoints.export_backbone(Path("own.safetensors"), dataclasses.replace(source, **changes))
    return Path("own.safetensors")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """Return the rows of a plan by label; only a long path goes beyond 80 columns."""
    assert cli.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or max(map(len, line.split())) > 69 for line in lines)  # a long path stays whole
    rows: dict[str, str] = {}
    label = ""
    for line in lines:
        label = line[:11].strip() or label
        rows[label] = f"{rows.get(label, '')} {line[11:]}".strip()
    return rows


def phases(work: Work) -> dict[str, Phase]:
    return {phase.name: phase for phase in work.phases}


def test_features_cost_a_forward_pass_of_each_image(photos: Path) -> None:
    checkpoint = make_checkpoint()
    config = packaged("knn", "imagefolder", checkpoint, ["data.root=photos", "resize=16", "crop=16"])
    work = classification.knn(checkpoint, config, HERE)
    model, images = build_backbone_of(checkpoint).eval(), torch.zeros(36, 3, 16, 16)
    real = costs.count_forward(lambda: model(images))
    found = phases(work)
    assert found["features"].cost.flops == real.flops
    assert (found["features"].steps, found["features"].images) == (1, 36)
    assert found["neighbors"].cost.flops == 2 * 30 * 6 * model.num_features
    assert work.results == 36 * model.num_features * 4
    assert "30 training images and 6 test images" in work.data
    assert work.preparation is not None
    assert 0 < work.preparation.loading < 1


def test_fine_tuning_costs_a_backward_pass_and_a_frozen_backbone_none(photos: Path) -> None:
    checkpoint = make_checkpoint()
    tuned = phases(classification.finetune(checkpoint, packaged("finetune", "imagefolder", None, FINETUNE), HERE))
    frozen_config = packaged("linear", "imagefolder", None, [*FINETUNE[:3], "batch_size=8", "epochs=2"])
    frozen = phases(classification.linear(checkpoint, frozen_config, HERE))
    forward = tuned["tests"].cost.flops / 6
    # Forward, gradients of the weights and of the inputs; those of the pixels are not computed.
    assert tuned["training"].cost.flops / 3 == pytest.approx(3 * forward, rel=0.005)
    assert frozen["training"].cost.flops / 8 == pytest.approx(forward, rel=0.001)
    assert (tuned["training"].steps, tuned["training"].images) == (2, 6)
    assert (frozen["training"].steps, frozen["training"].images) == (8, 2 * 30)  # the last batch has six images
    assert (frozen["tests"].steps, frozen["tests"].images) == (2, 12)
    backbone = sum(value.numel() for value in build_backbone_of(checkpoint).parameters())
    width = frozen["training"].trained / 4
    assert tuned["training"].trained == 4 * (backbone + width)


def test_detection_costs_what_the_detector_computes() -> None:
    sizes = ["test_min_size=64", "test_max_size=64", "min_sizes=[64]", "max_size=64", "model.masks=false"]
    regions = ["model.pre_nms_test=40", "model.post_nms_test=40", "model.nms_threshold=1"]
    generated.write(Path("images"), train=4, test=4)
    own = {"data": {"root": "images", "name": "figures"}, **make_sections()}
    config = dry_run.configs.build(DetectionConfig, own, "test", [*sizes, *regions, "batch_size=2", "iterations=6"])
    work = detection.detect(None, config, HERE)
    found = phases(work)
    assert "4 training images and 4 test images" in work.data
    assert (found["training"].steps, found["training"].images) == (6, 12)
    assert (found["statistics"].steps, found["tests"].steps) == (config.precise_bn, 4)
    torch.manual_seed(0)
    model = build_model(config.model).eval()
    height, width = detection._mean_shape(detection.read_annotations(config, "test"), 64, 64)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    inner: Any = type(model).detect
    # Without its inference mode, in which PyTorch does not show convolutions.
    real = costs.count_forward(lambda: inner.__wrapped__(model, [image], [(height, width)]))
    assert found["tests"].cost.flops == pytest.approx(real.flops, rel=0.25)  # NMS leaves fewer than 40 regions
    assert found["training"].cost.flops > 3 * found["tests"].cost.flops
    without = dataclasses.replace(config, precise_bn=0, iterations=3)
    assert phases(detection.detect(None, without, HERE))["training"].steps == 3


def make_sections() -> dict[str, Any]:
    """Return the settings of a detector with a small backbone."""
    model = {"blocks": [1, 1, 1, 1], "bottleneck": False, "width": 16, "anchor_sizes": [16.0, 32.0], "pool_size": 4}
    return {"model": model, "engine": "builtin", "workers": 0}


def test_the_time_on_this_machine_is_that_of_computing_and_of_preparing() -> None:
    def seconds(workers: int, *, gpu: bool = False) -> float:
        machine = dataclasses.replace(HERE, on_gpu=gpu)
        return machine.seconds(10.0, 100, Preparation(loading=0.3, augmenting=0.01), workers)

    assert seconds(0) == pytest.approx(10 + 30 + 1)  # one after the other
    assert seconds(2) == pytest.approx(10 + 30 / 2 + 1)  # two cores do all of it
    assert seconds(1) == pytest.approx(30)  # one worker is the limit
    assert seconds(8, gpu=True) == pytest.approx(15)  # two cores prepare while the GPU computes
    shared = Phase(name="a", steps=2, cost=costs.Cost(operations={}, saved=0, peak=0), images=10, shared=True)  # type: ignore[arg-type]
    work = Work(data="", phases=(shared, dataclasses.replace(shared, shared=False)), preparation=Preparation(loading=1))
    assert [work.seconds(HERE.device, HERE, seeds) for seeds in (1, 3)] == [20, 10 + 30]
    assert work.seconds(costs.GPUS[0], HERE) == 0  # the preparation of images is that of this machine


def test_batches_are_timed_without_the_first() -> None:
    def batches() -> Any:
        for pause in (0.2, 0.02, 0.01):
            time.sleep(pause)
            yield None

    assert 0.01 / 4 <= time_batches(batches(), 4).loading < 0.1 / 4


def test_a_plan_tells_what_differs_and_what_was_resolved(
    photos: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["linear", str(backbone), "data.kind=imagefolder", "data.root=photos", "batch_size=8", "--seeds", "2"]
    rows = plan(capsys, *words, "epochs=3", "milestones=[2]")
    assert rows["linear"] == "seeds 0, 1"
    assert rows["checkpoint"] == f"{backbone}: INTL, resnet10_narrow, recipe small, seed 0, complete"
    assert rows["protocol"] == "linear/imagefolder.yaml"
    assert "epochs: 100 -> 3" in rows["changed"]
    assert "crop" not in rows["changed"]
    assert "device cpu;" in rows["resolved"]
    assert "resize 18, crop 16;" in rows["resolved"]
    assert rows["data"].endswith("30 training images and 6 test images of 3 classes, counted")
    assert rows["batch"] == "8 of 30 images; 12 steps = 4 x 3 epochs"
    assert rows["time"].split()[:5] == ["estimated", "a", "seed", "2", "seeds"]
    assert "here" in rows["time"]
    assert "H200" in rows["time"]
    assert rows["records"] == "none yet"
    assert sorted(path.name for path in Path().iterdir()) == ["own.safetensors", "photos"]


def test_a_plan_tells_which_seeds_are_there(
    photos: Path, backbone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["finetune", str(backbone), "data.kind=imagefolder", *FINETUNE, "--seeds", "3"]
    task = runs.find_task("finetune")
    details = {"train_images": 3, "test_images": 6}
    outcome = Outcome(metrics={"top1": 50.0}, details=details)
    monkeypatch.setattr(runs, "find_task", lambda name: dataclasses.replace(task, run=lambda *_, **__: outcome))
    assert cli.main([*words[:-1], "0,1"]) == 0
    record = next(Path("results/records/finetune").glob("*t1*.json"))
    key = record.stem.rpartition("-")[2]
    record.unlink()
    (Path("runs/finetune") / key).mkdir(parents=True, exist_ok=True)
    (Path("runs/finetune") / key / "state.pt").touch()
    shutil.rmtree("runs/fingerprints", ignore_errors=True)
    for path in photos.rglob("*.png"):  # so old that a fingerprint would be kept
        os.utime(path, (10**9, 10**9))
    capsys.readouterr()
    rows = plan(capsys, *words)
    assert rows["records"] == "seeds 0 are there, seeds 1 resume from their states; they are skipped"
    assert rows["batch"] == "3 of 3 images; 2 steps = 1 x 2 epochs"
    assert not Path("runs/fingerprints").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["finetune", "data.kind=imagefolder", *FINETUNE, "batch_size=9", "drop_last=true"],
            "batch_size=9: the data set has only 3",
        ),
        (
            ["knn", "data.kind=imagefolder", "data.root=photos", "k=31"],
            "k=31: there are only 30 training images; expected at most 30; lower k",
        ),
        (
            ["knn", "data.kind=imagefolder", "data.root=photos", "selection=val", "choose.k=[1,28]", "val_share=0.1"],
            "choose.k=[1, 28]: there are only 27 training images, 3 held out (val_share=0.1); expected at most 27",
        ),
        (
            ["knn", "data.kind=imagefolder", "data.root=photos", "data.limit=31"],
            "data.limit=31: means 31 of the 30",
        ),
        (["knn", "--config", "default", "data.kind=imagefolder", "data.root=photos"], "have other sizes; set resize"),
        (["linear", *PHOTOS, "selection=val", "val_share=0.999"], "val_share=0.999: leaves a class without images"),
        (
            ["linear", *PHOTOS, "selection=val", "val_share=0.01"],
            "val_share=0.01: means 0 of the 30 images of 3 classes",
        ),
        (["transfer", "data.root=photos", "episodes=0", "val_share=0.99"], "val_share=0.99: leaves a class without"),
        (["transfer", "data.root=photos", "ways=1"], "ways=1: expected at least 2"),
        (["transfer", "data.root=photos", "ways=3", "shots=5"], "(ways=); set queries=7, or episodes=0 to leave"),
        (["transfer", "data.root=photos", "ways=3", "shots=50"], "(ways=); set shots=11 queries=1, or episodes=0"),
        (["transfer", "data.root=photos", "ways=4", "shots=1", "queries=1"], "(ways=); set ways=3, or episodes=0"),
    ],
)
def test_what_the_run_would_refuse_is_refused(
    words: list[str], message: str, photos: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([words[0], str(backbone), *words[1:], "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_gpu_that_is_not_here_is_refused_unless_jobs_do_the_work(
    photos: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words in (["knn", str(backbone), *PHOTOS], ["pretrain", "demo"]):
        assert cli.main([*words, "device=cuda", "--dry-run"]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert "device=cuda: PyTorch sees no GPU here" in line
        assert cli.main([*words, "device=cuda", "--dry-run", "--slurm", "timeout_min=9"]) == 0


def test_a_plan_without_the_images_takes_the_published_numbers(
    backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = plan(capsys, "knn", str(backbone), "data.kind=cifar10", "data.root=nowhere")
    assert "50,000 training images and 10,000 test images of 10 classes, as published; NOT OPENED:" in rows["data"]
    assert "without the preparation of images" in rows["time"]
    rows = plan(capsys, "knn", str(backbone), "data.kind=cifar10", "data.root=nowhere", "data.limit=0.1")
    assert "5,000 training images and 10,000 test images" in rows["data"]
    rows = plan(capsys, "knn", str(backbone), "data.kind=cifar10", "data.root=nowhere", "data.holdout=0.2")
    assert "40,000 training images and 10,000 test images" in rows["data"]
    Path("mounted_later/another_set").mkdir(parents=True)
    rows = plan(capsys, "knn", str(backbone), "data.kind=cifar10", "data.root=mounted_later")
    assert "as published; NOT OPENED:" in rows["data"]
    rows = plan(capsys, "knn", str(backbone), "data.kind=npz", "data.root=nowhere.npz")
    assert rows["data"].startswith("nowhere (npz in nowhere.npz): NOT OPENED: ")
    assert rows["time"] == "not estimated"


def test_labels_without_a_list_are_drawn_as_in_the_run(
    photos: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "10percent.txt").unlink()
    rows = plan(capsys, "finetune", str(backbone), "data.kind=imagefolder", *FINETUNE)
    assert rows["data"].endswith(
        "3 training images (10% of the labels) and 6 test images of 3 classes, drawn (label_seed=)"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["own.safetensors", "photos"]


def test_too_little_space_is_told(
    photos: Path, backbone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    small = dataclasses.replace(HERE, device=dataclasses.replace(HERE.device, memory=2**20))
    monkeypatch.setattr(dry_run.machines, "measure", lambda device: small)
    rows = plan(capsys, "knn", str(backbone), "data.kind=imagefolder", "data.root=photos")
    assert "1.0 MiB here: TOO LITTLE; lower batch_size" in rows["memory"]
    assert rows["disk"].startswith("36.0 KiB needed at most, 1,000 B free: TOO LITTLE")


def test_nothing_can_be_written_in_a_dry_run() -> None:
    from intl_bench.core import files

    with read_only.read_only(), pytest.raises(InputError, match=r"cannot write x/a\.txt: a dry run writes nothing"):
        files.write_text(Path("x/a.txt"), "a")
    with read_only.read_only(), pytest.raises(InputError, match="a dry run"):
        files.append_bytes(Path("b"), b"b")
    files.write_text(Path("x/a.txt"), "a")
    assert [path.name for path in Path().iterdir()] == ["x"]


def test_counting_without_gradients() -> None:
    network = nn.Linear(64, 32)
    cost = costs.count_forward(lambda: network(torch.zeros(8, 64)))
    assert cost.flops == 2 * 8 * 64 * 32
    assert cost.peak >= 8 * 32 * 4
    assert cost.saved == 0
