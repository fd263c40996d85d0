"""Training and detecting with Detectron2. The tests are skipped if it is not installed."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2_engine_cases import CONFIG, MODEL, backbone, read_splits, run
from places import ROOT, SUPPORT
from pycocotools import mask as rle
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from intl_bench.core import distributed
from intl_bench.core.errors import DivergedError, InputError, Preempted
from intl_bench.core.signals import StopRequest
from transfer.detection import build_model, detectors
from transfer.detection.annotations.objects import Annotations, Outlines
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig
from transfer.detection.data import test_images as images_of
from transfer.detection.engines import builtin
from transfer.detection.engines.optim import learning_rate
from transfer.detection.evaluation.coco import evaluate_coco, to_results
from transfer.detection.masks import crop_targets
from transfer.detection.rle import from_bitmap
from transfer.detection.transforms import make_target

# A training in a process of its own. It ends with the exit code of the command line.
SCRIPT = """
import dataclasses, sys
from pathlib import Path
import detectron2_engine_cases as cases
from intl_bench.core.errors import BenchError
data, folder, iterations = sys.argv[1:]
config = dataclasses.replace(cases.CONFIG, iterations=int(iterations), checkpoint_every=2)
train, test = cases.read_splits(Path(data))
try:
    results = cases.run(config, Path(folder), train, test)
    print("results", len(results))
except BenchError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

PYRAMID: dict[str, Any] = {"kind": "fpn", "pool_size": 3, "fpn_channels": 8, "fc_channels": 16}


@pytest.fixture
def engine() -> ModuleType:
    pytest.importorskip("detectron2")
    from transfer.detection.engines import detectron2

    return detectron2


@pytest.fixture
def data(test_data: Path) -> tuple[Annotations, Annotations]:
    return read_splits(test_data)


def load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.data
def test_images_have_the_form_in_which_detectron2_reads_them(engine: ModuleType, test_data: Path) -> None:
    from detectron2.data.datasets.coco import load_coco_json
    from detectron2.data.detection_utils import annotations_to_instances

    config = AnnotatedDataConfig(root=str(test_data / "coco_tiny"))
    ours = engine.DatasetDicts(read_split(config, "train", masks=True))
    folder = test_data / "coco_tiny"
    theirs = load_coco_json(
        str(folder / "annotations" / "instances_train2017.json"), str(folder / "train2017"), "coco_tiny_handed_over"
    )
    single = [
        {**image, "annotations": [item for item in image["annotations"] if not item["iscrowd"]]} for image in theirs
    ]
    wanted = [image for image in single if image["annotations"]]
    assert len(ours) == len(wanted) == 49
    for image, expected in zip(ours, wanted, strict=True):
        keys = ("file_name", "image_id", "height", "width")
        assert [image[key] for key in keys] == [expected[key] for key in keys]
        size = (image["height"], image["width"])
        found, right = (annotations_to_instances(each["annotations"], size) for each in (image, expected))
        torch.testing.assert_close(found.gt_boxes.tensor, right.gt_boxes.tensor, rtol=0, atol=1e-4)
        assert found.gt_classes.tolist() == right.gt_classes.tolist()
        for a, b in zip(found.gt_masks.polygons, right.gt_masks.polygons, strict=True):
            np.testing.assert_array_equal(np.concatenate(a), np.concatenate(b))


@pytest.mark.data
def test_a_detector_of_detectron2_gives_the_same_detections_in_the_builtin_engine(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path
) -> None:
    train, test = data
    results = run(dataclasses.replace(CONFIG, eval_every=4), tmp_path, train, test)
    assert [row["iteration"] for row in rows(tmp_path)] == [3, 4, 6]
    assert rows(tmp_path)[-1]["lr"] == pytest.approx(learning_rate(CONFIG, 5))
    assert {"bbox/AP", "segm/AP"} <= set(rows(tmp_path)[1])
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [3, 6]
    assert [event.step for event in board.Scalars("bbox/AP")] == [4]
    assert board.Scalars("lr")[-1].value == pytest.approx(learning_rate(CONFIG, 5))
    builtin = build_model(MODEL)
    builtin.load_state_dict(load(tmp_path / "detector.pth")["model"])
    builtin.eval()
    expected = []
    for image in images_of(test, min_size=64, max_size=96):
        (found,) = builtin.detect([image.pixels], [(image.height, image.width)])
        expected += to_results(image.image_id, found, test.category_ids, image.height, image.width)
    assert len(results) == len(expected) > 40
    for a, b in zip(results, expected, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["score"] == pytest.approx(b["score"], abs=1e-6)
        assert a["bbox"] == pytest.approx(b["bbox"], abs=0.05)
        assert a["segmentation"]["size"] == b["segmentation"]["size"]
    assert evaluate_coco(test.path, results) == pytest.approx(evaluate_coco(test.path, expected), abs=0.01)


@pytest.mark.data
def test_weights_are_reproducible_and_all_parts_are_trained(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path
) -> None:
    train, test = data
    config = dataclasses.replace(CONFIG, precise_bn=0)
    first, second = (run(config, tmp_path / name, train, test) for name in ("a", "b"))
    states = [load(tmp_path / name / "detector.pth")["model"] for name in ("a", "b")]
    assert first == second
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    start = {f"roi_heads.{k}" if k.startswith("res5") else f"backbone.{k}": v for k, v in backbone().items()}
    unchanged = [
        key for key, value in start.items() if value.is_floating_point() and torch.equal(states[0][key], value)
    ]
    assert not unchanged


@pytest.mark.data
def test_evaluations_during_training_do_not_change_it(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path
) -> None:
    train, test = data
    for name, every in (("a", 0), ("b", 1)):
        run(dataclasses.replace(CONFIG, precise_bn=0, eval_every=every), tmp_path / name, train, test)
    states = [load(tmp_path / name / "detector.pth")["model"] for name in ("a", "b")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.data
def test_a_resumed_run_keeps_its_weights_and_its_schedule(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path
) -> None:
    train, test = data
    with pytest.raises(Preempted, match="after step 1 of 6, saved in") as stopped:
        run(CONFIG, tmp_path, train, test, signalled=signal.SIGUSR1)
    assert stopped.value.exit_code == 75
    assert load(tmp_path / "state.pt")["iteration"] == 1
    assert run(CONFIG, tmp_path, train, test)
    state = load(tmp_path / "state.pt")
    assert state["iteration"] == 6
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(learning_rate(CONFIG, 6))
    assert int(state["model"]["backbone.stem.conv1.norm.num_batches_tracked"]) == 6
    assert [row["iteration"] for row in rows(tmp_path)] == [1, 3, 6]
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx([learning_rate(CONFIG, i) for i in (0, 2, 5)])
    with pytest.raises(InputError, match=r"belongs to another run .*--fresh"):
        run(CONFIG, tmp_path, train, test, seed=1)


@pytest.mark.data
def test_sigterm_saves_and_ends_with_exit_code_75(engine: ModuleType, test_data: Path, tmp_path: Path) -> None:
    process = start_script(test_data, tmp_path, iterations=10**6)
    until = time.monotonic() + 60
    while not (tmp_path / "state.pt").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after step")
    assert "Traceback" not in errors
    assert f"after step {load(tmp_path / 'state.pt')['iteration']} of" in last


@pytest.mark.data
@pytest.mark.slow
def test_two_processes_share_a_batch(engine: ModuleType, test_data: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", sys.executable]
    process = start_script(test_data, tmp_path, iterations=4, launcher=[sys.executable, *launcher])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    counts = sorted(int(line.split()[1]) for line in output.splitlines() if line.startswith("results"))
    assert counts[0] == 0 < counts[1]  # the first process has the results of both
    assert load(tmp_path / "state.pt")["iteration"] == 4


def start_script(
    test_data: Path, folder: Path, *, iterations: int, launcher: list[str] | None = None
) -> subprocess.Popen[str]:
    paths = [str(SUPPORT), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [*(launcher or [sys.executable]), "-c", SCRIPT, str(test_data), str(folder), str(iterations)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.data
@pytest.mark.parametrize("cause", ["weights", "learning rate"])
def test_non_finite_losses_end_with_exit_code_3(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path, cause: str
) -> None:
    weights, config = backbone(), CONFIG
    if cause == "weights":
        weights["stem.conv1.weight"].fill_(math.nan)
    else:
        config = dataclasses.replace(CONFIG, lr=1e25, warmup_iterations=0)
    with pytest.raises(DivergedError, match=r"^diverged in step [12]: ") as diverged:
        run(config, tmp_path, *data, weights=weights)
    assert diverged.value.exit_code == 3
    assert "\n" not in str(diverged.value)
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.data
@pytest.mark.parametrize("pyramid", [{}, PYRAMID, PYRAMID | {"box_head": "4conv1fc"}], ids=["c4", "fpn", "4conv1fc"])
def test_a_trained_detector_is_read_from_both_projects_files(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path, pyramid: dict[str, Any]
) -> None:
    """Detectron2 loads `detector.pth`, and a checkpoint that it writes gives the same detections without training."""
    from detectron2.checkpoint import DetectionCheckpointer

    train, test = data
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **pyramid))
    results = run(config, tmp_path, train, test)
    assert results
    model = engine.build_model(engine.settings(config, seed=1, output=tmp_path))
    DetectionCheckpointer(model).load(str(tmp_path / "detector.pth"))
    expected = load(tmp_path / "detector.pth")["model"]
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    DetectionCheckpointer(model, str(tmp_path)).save("model_final", iteration=5)
    found = detectors.read(tmp_path / "model_final.pth")
    assert not found.is_ours
    network = {"blocks": [3, 4, 6, 3], "bottleneck": True, "width": 8, "stem": "imagenet", "masks": True}
    assert (network | pyramid).items() <= found.settings["model"].items()
    with distributed.start("cpu") as process, StopRequest() as stop:
        assert engine.detect(found.weights, config, test=test, process=process, stop=stop) == results
        ours = builtin.detect(found.weights, config, test=test, process=process, stop=stop)
    assert [one["category_id"] for one in ours] == [one["category_id"] for one in results]
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in results], abs=1e-6)


def as_encodings(annotations: Annotations) -> Annotations:
    """Replace the outlines of all objects by run-length encodings, as if the file had them."""
    counts, objects = list[Any](), [item for image in annotations.images for item in image.objects]
    sizes = [(image.height, image.width) for image in annotations.images for _ in image.objects]
    for item, size in zip(objects, sizes, strict=True):
        code = item.outline if isinstance(item.outline, dict) else rle.merge(rle.frPyObjects(item.outline, *size))
        bitmap = rle.decode(rle.frPyObjects(code, *size) if isinstance(item.outline, dict) else code)
        counts.append(from_bitmap(bitmap.astype(bool))["counts"])
    per_image = np.cumsum([0, *(len(image.objects) for image in annotations.images)])
    chosen = np.concatenate([np.arange(*pair) for pair in zip(annotations.first, annotations.last, strict=True)])
    outlines = Outlines(
        rows=np.arange(len(objects)),
        first_part=np.arange(len(objects) + 1),
        first_number=np.cumsum([0, *map(len, counts)]),
        numbers=np.concatenate(counts).astype(np.float64),
        encoded=np.ones(len(objects), bool),
    )
    per_object = ("annotation_ids", "classes", "boxes", "crowd", "difficult")
    kept = {field: getattr(annotations, field)[chosen] for field in per_object}
    return dataclasses.replace(annotations, first=per_image[:-1], last=per_image[1:], outlines=outlines, **kept)


@pytest.mark.data
def test_run_length_encodings_become_the_same_targets_in_both_engines(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path
) -> None:
    """Crowds do not count: with encodings of crowds alone, masks stay polygons."""
    from detectron2.data import DatasetMapper

    train, test = data
    encoded = as_encodings(train)
    assert train.outlines is not None
    assert bool(train.outlines.encoded[train.outlines.rows].any()), "the file has crowds"
    short = dataclasses.replace(CONFIG, iterations=2, milestones=(), precise_bn=0)
    for annotations, expected in ((train, "polygon"), (encoded, "bitmask")):
        assert run(short, tmp_path / expected, annotations, test)
        assert f"MASK_FORMAT: {expected}" in (tmp_path / expected / "detectron2.yaml").read_text()
    cfg = engine.settings(dataclasses.replace(short, min_sizes=(64,)), seed=0, output=tmp_path, bitmaps=True)
    cfg.INPUT.RANDOM_FLIP = "none"
    for index, entry in enumerate(engine.DatasetDicts(encoded)):
        theirs = DatasetMapper(cfg, True)(entry)["instances"]
        ours = make_target(encoded, index, *theirs.image_size, flip=False, masks=True)
        assert len(ours.boxes) == len(theirs) > 0
        torch.testing.assert_close(ours.boxes, theirs.gt_boxes.tensor, rtol=0, atol=1e-4)
        assert ours.classes.tolist() == theirs.gt_classes.tolist()
        assert torch.equal(torch.from_numpy(np.stack(ours.masks)), theirs.gt_masks.tensor)
        crops = crop_targets(ours.masks, torch.arange(len(theirs)), ours.boxes, 14)
        assert torch.equal(crops, theirs.gt_masks.crop_and_resize(theirs.gt_boxes.tensor, 14))


@pytest.mark.data
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(
    engine: ModuleType, data: tuple[Annotations, Annotations], tmp_path: Path, workers: int
) -> None:
    train, test = data
    for index in range(len(train)):
        content = train.file(index).read_bytes()
        (tmp_path / train.file(index).name).write_bytes(content[: len(content) // 2])
    config = dataclasses.replace(CONFIG, workers=workers)
    with pytest.raises(InputError, match=r"\.jpg: not a readable image \(.*\); restore it$") as refused:
        run(config, tmp_path / "run", dataclasses.replace(train, folder=tmp_path), test)
    assert "\n" not in str(refused.value)


def test_a_signal_to_every_process_does_not_end_the_workers(
    engine: ModuleType, data: tuple[Annotations, Annotations]
) -> None:
    """A cluster sends SIGTERM to every process. The workers wait for the main process, which saves its state."""
    dicts = engine.DatasetDicts(data[1])
    loader = engine.stopped_by_parent(
        engine.build_detection_test_loader(dicts, mapper=lambda entry: entry["image_id"], num_workers=1)
    )
    images = iter(loader)
    first = next(images)
    (worker,) = images._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # from another process than the worker's parent
    assert len([first, *images]) == len(dicts) > 1
