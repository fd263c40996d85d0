"""Detectron2 trains on the images that the built-in engine reads. The tests are skipped if it is not installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_bytes import png, pnm, saved, tiff
from PIL import Image

from intl_bench.core.errors import InputError
from transfer.detection.transforms import read_image


@pytest.fixture
def module() -> Any:
    pytest.importorskip("detectron2")
    from transfer.detection.engines import detectron2_mapper

    return detectron2_mapper


def settings(size: int) -> dict[str, Any]:
    from detectron2.data import transforms

    sizes = transforms.ResizeShortestEdge([size], 1333, "choice")
    options = {"image_format": "RGB", "use_instance_mask": True, "instance_mask_format": "polygon"}
    return {"augmentations": [sizes, transforms.RandomFlip(prob=1.0)], **options}


def record(file: Path, width: int, height: int) -> dict[str, Any]:
    one = {"bbox": [1.0, 2.0, 7.0, 8.0], "bbox_mode": 0, "category_id": 0}
    one["segmentation"] = [np.array([1.0, 2.0, 7.0, 2.0, 7.0, 8.0])]
    return {"file_name": str(file), "image_id": 1, "height": height, "width": width, "annotations": [one]}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
def test_common_images_as_detectron2s_mapper(module: Any, mode: str, training: bool, tmp_path: Path) -> None:
    from detectron2.data import DatasetMapper

    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    form = "JPEG" if mode in ("L", "RGB", "CMYK") else "PNG"
    (tmp_path / "image").write_bytes(saved(noise.convert(mode), form, exif=exif))
    given = record(tmp_path / "image", 20, 30)
    ours, theirs = (mapper(training, **settings(41))(given) for mapper in (module.Mapper, DatasetMapper))
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    if training:
        for field in ("gt_boxes", "gt_classes"):
            one, other = (getattr(mapped["instances"], field) for mapped in (ours, theirs))
            assert torch.equal(getattr(one, "tensor", one), getattr(other, "tensor", other))
        for one, other in zip(
            ours["instances"].gt_masks.polygons[0], theirs["instances"].gt_masks.polygons[0], strict=True
        ):
            assert np.array_equal(one, other)
    assert given["annotations"][0]["segmentation"][0].tolist() == [1.0, 2.0, 7.0, 2.0, 7.0, 8.0], "unchanged"


def test_16_bits_as_in_the_builtin_engine(module: Any, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (20, 20, 1), np.uint8)
    deep = gray.astype(np.uint16) * 257
    files = {
        "gray.png": png(deep),
        "rgb.png": png(np.repeat(deep, 3, 2)),
        "gray.pgm": pnm(deep, 65535),
        "turned.tif": tiff([deep.astype("<u2").tobytes()], (20, 20), [16], 1, t274=[1]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (pixels,) = (module.Mapper(False, **settings(20))(record(tmp_path / name, 20, 20))["image"],)
        assert np.array_equal(pixels.numpy(), np.repeat(gray, 3, 2)[:, ::-1].transpose(2, 0, 1)), name
        assert np.array_equal(np.asarray(read_image(tmp_path / name)), np.repeat(gray, 3, 2)), name


def test_another_size_is_named(module: Any, tmp_path: Path) -> None:
    Image.new("RGB", (5, 6)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: cannot be read as annotated \(5 x 6 pixels; expected 6 x 5\)"):
        module.Mapper(True, **settings(9))(record(tmp_path / "a.png", 6, 5))
