"""Images of every kind in detection, through the command line: the score, or the line that says what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from image_bytes import tiff
from PIL import Image
from test_detection_tasks import SMALL

from intl_bench import cli
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore
from transfer.detection import transforms
from transfer.detection.annotations import generated

SPLITS = ("train2017", "val2017")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    generated.write(tmp_path / "images", train=6, test=3)
    return tmp_path / "images"


def run(*more: str) -> int:
    words = ["coco", "resnet18.pth", "--method", "Mine", "--engine", "builtin", "data.root=images", "data.name=figures"]
    return cli.main([*words, *SMALL, "model.score_threshold=0.001", *more])


def rewrite(root: Path) -> None:
    """Replace each file by a TIFF of 16 bits with the same pixels, stored on its side with an orientation."""
    for split in SPLITS:
        listing = root / "annotations" / f"instances_{split}.json"
        document = json.loads(listing.read_text())
        for row in document["images"]:
            file = root / split / row["file_name"]
            with Image.open(file) as image:
                stored = np.rot90(np.array(image.convert("RGB")).astype("<u2") * 257)
            file.unlink()
            row["file_name"] = f"{file.stem}.tif"
            size = stored.shape[1], stored.shape[0]
            (root / split / row["file_name"]).write_bytes(tiff([stored.tobytes()], size, [16] * 3, 2, t274=[6]))
        listing.write_text(json.dumps(document))


def scores() -> list[dict[str, float]]:
    records = sorted(RecordStore(Path("results/records")).load(), key=lambda record: record.created)
    return [record.metrics for record in records]


def test_16_bit_images_score_as_their_8_bit_twins(root: Path) -> None:
    assert run() == 0
    rewrite(root)
    assert run() == 0
    first, second = scores()
    assert first == second
    assert any(first.values())


def test_max_pixels(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(root / "train2017" / "000000000001.jpg") as image:
        size = f"{image.width} x {image.height} = {image.width * image.height} pixels"
    assert run("data.max_pixels=100") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("intl-bench: ")]
    assert f"000000000001.jpg: {size}; expected at most 100 pixels (6 such" in line
    assert line.endswith("; raise data.max_pixels if you trust the file")


def test_an_annotated_size_above_the_default_limit_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the annotations accepted it, because `data.max_pixels` is raised."""
    path = root / "train2017" / "000000000001.jpg"
    monkeypatch.setattr(transforms, "LARGEST", 100)
    with pytest.raises(InputError, match="expected at most 100 pixels"):
        transforms.read_image(path)
    (width, height) = transforms.read_image(path, (100, 200)).size
    with pytest.raises(InputError, match=f"expected at most {width * height - 1} pixels"):
        transforms.read_image(path, (width * height - 1, 1))
