"""Detection and conversion from the command line in an empty folder, on a few generated images."""

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
import voc_cases
from PIL import Image

from intl_bench import cli
from intl_bench.records import RecordStore, ResultRecord
from pretrain import train
from pretrain.recipe import load_recipe
from transfer.detection.annotations import generated

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ["data.size=160", "batch_size=32", "epochs=1", "warmup_epochs=0", "projector.hidden=32", "projector.out=32"]
SMALL = [
    *("iterations=4", "milestones=[3]", "warmup_iterations=1", "batch_size=2", "lr=0.01", "precise_bn=2"),
    *("min_sizes=[48,64]", "max_size=96", "test_min_size=64", "test_max_size=96", "workers=0", "device=cpu"),
    *("model.anchor_sizes=[16,32]", "model.mask_channels=8", "model.rpn_batch=16", "model.roi_batch=8"),
    *("model.pool_size=4", "model.pre_nms_train=50", "model.post_nms_train=10"),
    *("model.pre_nms_test=30", "model.post_nms_test=10", "model.score_threshold=0.01"),
]
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "AR1", "AR10", "AR100", "ARs", "ARm")  # there is no large object
NAMES = [f"{kind}/{name}" for kind in ("bbox", "segm") for name in _METRICS]
OURS, RESNET18, IMAGES = "ours.pt", "resnet18.pth", "images"
BUILTIN = ["--engine", "builtin"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of this project, a state dict of torchvision, and images in COCO's layout."""
    folder = tmp_path_factory.mktemp("material")
    with contextlib.chdir(folder):
        train.run(load_recipe("demo", PRETRAIN)).rename(OURS)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / RESNET18)
    generated.write(folder / IMAGES, train=12, test=4)
    return folder


@pytest.fixture(autouse=True)
def _work_in_a_folder_with_only_the_material(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (OURS, RESNET18, IMAGES):
        Path(name).symlink_to(material / name)


def words(task: str, checkpoint: str | None = OURS, *more: str, data: str = IMAGES) -> list[str]:
    """Return the command line of a small detection task. The words `more` come last, so they override the others."""
    name = "data.name=figures" if task == "coco" else "data.name=mini"
    return [task, *([checkpoint] if checkpoint else []), f"data.root={data}", name, *SMALL, *BUILTIN, *more]


def records(results: str = "results") -> list[ResultRecord]:
    return sorted(RecordStore(Path(results) / "records").load(), key=lambda record: record.transfer_seed)


def detector(record: ResultRecord) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(Path("runs") / record.task / record.key / "detector.pth")["model"]
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_coco_from_checkpoint_to_table(capsys: pytest.CaptureFixture[str]) -> None:
    command = words("coco", OURS, "--seeds", "2")
    assert cli.main(command) == 0
    first, second = found = records()
    for record in found:
        assert record.metrics.keys() == set(NAMES)
        assert all(0 <= value <= 100 for value in record.metrics.values())
        stamp = {"protocol": "coco", "engine": "builtin", "evaluator": "pycocotools", "pretrain_epochs": 1}
        assert stamp.items() <= record.protocol.items()
        assert record.protocol["schedule"] == "4 iterations of 2, drops at 3"
        assert (record.protocol["train_images"], record.protocol["test_images"]) == (12, 4)
        assert (record.method, record.dataset, record.backbone) == ("INTL", "figures", "resnet10_narrow")
        assert (record.scale, record.details["categories"]) == ("demo", 5)
        folder = Path("runs") / "coco" / record.key
        kept = {"detector.pth", "detections.json", "metrics.jsonl", "tensorboard"}
        assert {path.name for path in folder.iterdir()} == kept
        for kind, values in record.details["per_category"].items():
            assert values.keys() == {"cross", "disc", "ring", "square", "triangle"}
            assert statistics.mean(values.values()) == pytest.approx(record.metrics[f"{kind}/AP"])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["iteration"] for row in rows] == [4]
    assert (first.transfer_seed, second.transfer_seed) == (0, 1)
    assert not same(detector(first), detector(second))

    capsys.readouterr()
    assert cli.main(command) == 0
    again = capsys.readouterr()
    assert again.out.count("(already there)") == 2
    assert again.err == ""
    assert records() == found

    assert cli.main(["tables", "--dataset", "figures"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "measured, demo scale" in line)
    assert "engine builtin" in row
    assert row.count("(2†) |") == 6
    assert cli.main(["tables", "--table", "3", "--schedule", "2x"]) == 0
    assert "demo scale" not in capsys.readouterr().out


@pytest.mark.slow
def test_records_name_the_method_and_the_source_of_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """Weights are random, a state dict with a name, or a state dict with a name and an explicit layout."""
    assert cli.main(words("coco", OURS, "--init", "random")) == 0
    assert cli.main(words("coco", RESNET18, "--method", "Supervised")) == 0
    capsys.readouterr()
    assert cli.main(words("coco", RESNET18, "--method", "Mine", "--from", "torchvision")) == 0
    found = {record.method: record for record in records()}
    assert found.keys() == {"Random init", "Supervised", "Mine"}
    assert (found["Random init"].backbone, found["Random init"].protocol["pretrain_epochs"]) == ("resnet10_narrow", 0)
    assert (found["Mine"].backbone, found["Mine"].protocol["pretrain_source"]) == ("resnet18", "torchvision")
    assert found["Mine"].scale == "reduced"
    assert found["Mine"].metrics == found["Supervised"].metrics
    assert same(detector(found["Mine"]), detector(found["Supervised"]))
    capsys.readouterr()
    assert cli.main(words("coco", None, "--init", "random", "--dry-run")) == 0
    assert "checkpoint random resnet50, initialized by each seed\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_with_the_same_detector() -> None:
    command = words("coco", OURS, "iterations=24", "milestones=[16]", "checkpoint_every=2")
    assert cli.main([*command, "--results", "whole"]) == 0
    (whole,) = records("whole")
    expected, folder = detector(whole), Path("runs") / "coco" / whole.key
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        shutil.rmtree(folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "intl_bench", *command, "--results", number.name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not (folder / "state.pt").exists():
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == code, errors
        assert not (folder / "detector.pth").exists()
        first_line = (folder / "metrics.jsonl").read_text().splitlines()[0]  # unique, because it contains the speed
        if number == signal.SIGTERM:
            last = errors.splitlines()[-1]
            assert last.startswith("intl-bench: stopped by SIGTERM")
            assert last.endswith("run the same command again to resume")
        assert cli.main([*command, "--results", number.name]) == 0
        (record,) = records(number.name)
        assert record.metrics == whole.metrics
        assert same(detector(record), expected)
        assert (folder / "metrics.jsonl").read_text().startswith(first_line)
        assert not list(folder.glob("state.pt*"))


def test_voc_from_checkpoint_to_record(capsys: pytest.CaptureFixture[str]) -> None:
    voc_cases.write(Path("VOCdevkit"))
    lists = ["data.test=[VOC2007/ImageSets/Main/trainval.txt]"]
    assert cli.main(words("voc", OURS, *lists, data="VOCdevkit")) == 0
    (record,) = records()
    assert record.metrics.keys() == {"bbox/AP", "bbox/AP50", "bbox/AP75"}
    assert all(0 <= value <= 100 for value in record.metrics.values())
    classes = record.details["per_category"]
    assert classes.keys() == {"bbox", "bbox/AP50", "bbox/AP75"}
    assert statistics.mean(classes["bbox/AP50"].values()) == pytest.approx(record.metrics["bbox/AP50"])
    assert (record.protocol["protocol"], record.protocol["evaluator"]) == ("voc", "VOC07")
    assert (record.protocol["train_images"], record.protocol["test_images"]) == (3, 2)
    assert not any("mask_head" in key for key in detector(record))
    assert "boxes up to 1 pixel outside their image, clipped: 1" in capsys.readouterr().err


def test_pictures_of_the_worst_images(capsys: pytest.CaptureFixture[str]) -> None:
    """They are drawn after a training, or later from the detections that it left, without another one."""
    command = words("coco")
    assert cli.main([*command, "--visualize", "9"]) == 0
    (record,) = records()
    folder = Path("runs") / "coco" / record.key
    picture = folder / "worst_seed0.png"
    assert record.details["picture"] == str(picture)
    assert f"pictures of the 4 worst images: {picture}\n" in capsys.readouterr().out
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    picture.unlink()
    (folder / "detector.pth").unlink()  # it is not used
    assert cli.main([*command, "--visualize", "9"]) == 0
    printed = capsys.readouterr()
    assert "(already there)" in printed.out
    assert "detecting" not in printed.err
    assert picture.read_bytes() == first
    assert cli.main([*command, "--visualize", "9", "visualize_threshold=0"]) == 0
    assert picture.read_bytes() != first
    (folder / "detections.json").unlink()
    capsys.readouterr()
    assert cli.main([*command, "--visualize", "9"]) == 0
    assert "(already there; nothing to draw was kept; add --fresh)" in capsys.readouterr().out
    assert records() == [record]


@pytest.mark.slow
def test_parallel_seeds_give_the_same_results_as_serial_seeds() -> None:
    command = words("coco", OURS, "--seeds", "2")
    assert cli.main([*command, "--results", "serial"]) == 0
    serial = [(record.key, record.metrics, detector(record)) for record in records("serial")]
    assert cli.main([*command, "--results", "parallel", "--parallel"]) == 0
    parallel = [(record.key, record.metrics, detector(record)) for record in records("parallel")]
    assert len(parallel) == 2
    for one, other in zip(serial, parallel, strict=True):
        assert one[:2] == other[:2]
        assert same(one[2], other[2])


def write_invalid_files() -> None:
    """Write test annotations with other categories, and a checkpoint that would run a command."""
    listing = Path(IMAGES) / "annotations" / "instances_val2017.json"
    content = json.loads(listing.read_text())
    content["categories"].append({"id": 9, "name": "more"})
    Path("other.json").write_text(json.dumps(content))

    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("touch ran",)

    torch.save({"state_dict": Code()}, "code.pth")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["coco", OURS], 2, "data.root is not set: expected the folder of coco2017"),
        (words("coco", data="nowhere"), 2, "nowhere/annotations/instances_train2017.json: no such file"),
        (words("coco", OURS, "data.test_images=none"), 2, "images/none: no such folder"),
        (words("coco", OURS, "data.test=[{here}/other.json]"), 2, "other.json: its categories differ from those of"),
        (words("coco", OURS, "itertions=3"), 2, "unknown key 'itertions'; did you mean iterations?"),
        (words("coco", OURS, "model.anchors=[8]"), 2, "unknown key 'model.anchors'; did you mean model.anchor_sizes?"),
        (words("coco", OURS, "model.num_classes=7"), 2, "instances_train2017.json has 5 categories"),
        (words("coco", OURS, "model.width=64"), 2, "set model.* as in pre-training"),
        (words("coco", OURS, "batch_size=0"), 2, "batch_size=0: expected at least 1"),
        (words("coco", OURS, "data.kind=voc"), 2, "set model.masks=false"),
        (words("coco", OURS, "--visualize", "-1"), 2, "visualize=-1: expected at least 0"),
        (words("coco", OURS, "--from", "moco"), 2, "no moco backbone"),
        (words("coco", OURS, "--config", "r50_c4_3x"), 2, "config r50_c4_3x: no such file; did you mean r50_c4"),
        (words("coco", "code.pth"), 2, "could run code; no code was run"),
        (words("coco", "nowhere.pt"), 2, "checkpoint nowhere.pt: no such file"),
        (words("coco", OURS, "lr=1e30"), 3, "not finite; lower lr"),
        (words("voc", data="nowhere"), 2, "nowhere/VOC2007/ImageSets/Main/trainval.txt: no such file"),
        (words("coco", OURS, "--engine", "detectron2"), 2, "use --engine builtin"),
    ],
)
def test_errors_are_reported_in_one_line(
    command: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_invalid_files()
    assert cli.main([word.replace("{here}", str(Path.cwd())) for word in command]) == code
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if "crowd regions, not used in training" not in line]
    if importlib.util.find_spec("detectron2"):  # its import prints warnings
        lines = lines[-1:]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("intl-bench: ")
    assert message in lines[0]
    assert records() == []
    assert not Path("ran").exists()


def test_a_data_set_of_ones_own_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """The annotations and the settings of docs/detection.md, with four copies of the image."""
    section = (ROOT / "docs" / "detection.md").read_text().partition("## A data set of your own")[2].partition("## ")[0]
    blocks = ["\n".join(line[4:] for line in block) for block in indented(section)]
    listing, settings = json.loads(blocks[1]), blocks[2]
    (listing["images"],) = [[{**listing["images"][0], "id": i, "file_name": f"{i}.png"} for i in range(1, 5)]]
    one = listing["annotations"][0]
    listing["annotations"] = [{**one, "id": i, "image_id": i, "category_id": 1 + i % 2} for i in range(1, 5)]
    for split in ("train", "val"):
        (Path("mydata") / split).mkdir(parents=True)
        (Path("mydata") / "annotations").mkdir(exist_ok=True)
        (Path("mydata") / "annotations" / f"{split}.json").write_text(json.dumps(listing))
        for image in listing["images"]:
            Image.new("RGB", (image["width"], image["height"])).save(Path("mydata") / split / image["file_name"])
    Path("screws.yaml").write_text(settings)
    small = [word for word in SMALL if not word.startswith("data.")]
    assert cli.main(["coco", OURS, "--config", "screws.yaml", *small, *BUILTIN, "--visualize", "8"]) == 0
    (record,) = records()
    assert (record.dataset, record.details["categories"]) == ("screws", 2)
    assert record.details["per_category"]["bbox"].keys() == {"screw", "nut"}
    assert "pictures of the 4 worst images" in capsys.readouterr().out


def indented(text: str) -> list[list[str]]:
    """Return the indented blocks of a text, as lines."""
    groups = itertools.groupby(text.splitlines(), lambda line: line.startswith("    "))
    return [list(lines) for is_block, lines in groups if is_block]


def test_both_engines_write_detectors_with_the_same_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("detectron2")
    assert cli.main(words("coco", RESNET18, "--engine", "detectron2")) == 0
    (record,) = records()
    assert record.metrics.keys() == set(NAMES)
    assert record.protocol["engine"] == "detectron2"
    assert record.libraries.keys() >= {"torch"}
    folder = Path("runs") / "coco" / record.key
    assert {path.name for path in folder.iterdir()} >= {"detectron2.yaml", "detector.pth", "metrics.jsonl"}
    assert not list(folder.glob("state.pt*"))
    assert cli.main(words("coco", RESNET18)) == 0
    builtin, theirs = sorted(records(), key=lambda record: record.protocol["engine"])
    assert {key: value.shape for key, value in detector(builtin).items() if "num_batches" not in key}.items() <= {
        key: value.shape for key, value in detector(theirs).items()
    }.items()


@pytest.mark.parametrize("to", ["detectron2", "torchvision", "timm", "safetensors"])
def test_converting_back_restores_the_weights(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = "out.safetensors" if to == "safetensors" else "out.pth"
    assert cli.main(["convert", OURS, out, "--to", to]) == 0
    printed = capsys.readouterr().out
    assert "ours.pt: intl-bench, resnet10_narrow" in printed
    assert f"{out}: {to}, " in printed
    assert cli.main(["convert", out, "back.pth", "--to", "torchvision"]) == 0
    state = torch.load("back.pth")
    prefix = "backbone."
    method = torch.load(OURS)["method"]
    expected = {key.removeprefix(prefix): value for key, value in method.items() if key.startswith(prefix)}
    assert state.keys() == expected.keys()
    has_counters = to != "detectron2"
    assert all(torch.equal(state[key], expected[key]) for key in state if has_counters or "num_batches" not in key)


def test_convert_names_the_missing_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(RESNET18)
    del state["layer3.1.conv2.weight"]
    torch.save(state, "part.pth")
    assert cli.main(["convert", "part.pth", "out.pth", "--to", "detectron2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "layer3.1.conv2.weight is missing" in line
    assert not Path("out.pth").exists()
