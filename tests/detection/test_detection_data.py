"""Inputs of the detector: resize and flip as in Detectron2, reproducible batches, and the generated data set."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
import torch
from PIL import Image as Pillow
from pycocotools import mask as pycocotools_mask

from intl_bench.core.errors import InputError
from intl_bench.core.seeding import permutation
from pretrain.images import shapes
from transfer.detection import data, transforms
from transfer.detection.annotations import generated
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig
from transfer.detection.structures import Image, Mask

GOLDEN = places.GOLDEN / "detection_data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    generated.write(folder, train=26, test=5)
    return folder


@pytest.fixture(scope="module")
def train(folder: Path) -> Annotations:
    return read_split(AnnotatedDataConfig(root=str(folder), name="figures"), "train", masks=True)


def batches(train: Annotations, first: int, last: int, **options: Any) -> list[data.Batch]:
    settings: dict[str, Any] = {"seed": 3, "batch_size": 4, "min_sizes": (64, 80, 96), "max_size": 140, "masks": True}
    return list(data.training_batches(train, **settings | options, first_iteration=first, last_iteration=last))


def assert_same_masks(ours: Mask, theirs: Mask) -> None:
    assert type(ours) is type(theirs)
    assert isinstance(ours, np.ndarray | list)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other)


def assert_same_images(ours: Iterable[Image], theirs: Iterable[Image]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert a[1:4] == b[1:4]
        assert a.target is not None
        assert b.target is not None
        assert torch.equal(a.target.boxes, b.target.boxes)
        assert torch.equal(a.target.classes, b.target.classes)
        for mine, other in zip(a.target.masks, b.target.masks, strict=True):
            assert_same_masks(mine, other)


def assert_same(ours: list[data.Batch], theirs: list[data.Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.iteration, a.positions) == (b.iteration, b.positions)
        assert_same_images(a.images, b.images)


# Batches


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_resized_images_of_one_orientation_with_their_targets(train: Annotations, workers: int) -> None:
    for batch in batches(train, 3, 6, workers=workers):
        assert len({image.pixels.shape[1] < image.pixels.shape[2] for image in batch.images}) == 1
        for image in batch.images:
            (index,) = np.flatnonzero(train.image_ids == image.image_id).tolist()
            entry, target = train.images[index], image.target
            assert target is not None
            assert (image.height, image.width) == (entry.height, entry.width)
            assert (image.pixels.dtype, image.pixels.is_contiguous()) == (torch.uint8, True)
            assert tuple(image.pixels.shape[1:]) in [
                transforms.resized_size(entry.height, entry.width, size, 140) for size in (64, 80, 96)
            ]
            objects = [one for one in entry.objects if not one.crowd]
            assert (target.boxes.dtype, tuple(target.boxes.shape)) == (torch.float32, (len(objects), 4))
            assert (target.classes.dtype, target.classes.tolist()) == (torch.int64, [o.class_index for o in objects])
            for mask in target.masks:
                assert isinstance(mask, list)
                assert all(isinstance(part, np.ndarray) and part.dtype == np.float64 for part in mask)


def grouped(wide: np.ndarray, order: Iterable[int], batch_size: int) -> list[list[int]]:
    """Group images as Detectron2 does: with two lists, each of which is given out when it is full."""
    waiting: dict[bool, list[int]] = {True: [], False: []}
    complete = []
    for index in order:
        waiting[bool(wide[index])].append(index)
        if len(waiting[bool(wide[index])]) == batch_size:
            complete.append(waiting[bool(wide[index])])
            waiting[bool(wide[index])] = []
    return complete


@pytest.mark.parametrize("share", [0.0, 0.05, 0.7, 1.0])
@pytest.mark.parametrize(("images", "batch_size"), [(1, 2), (7, 16), (50, 4), (200, 16)])
def test_plan_equals_that_of_two_lists(share: float, images: int, batch_size: int) -> None:
    wide = np.random.default_rng(1).random(images) < share
    plan = data.plan_batches(wide, seed=5, batch_size=batch_size, first=0, last=40)
    order = np.concatenate([permutation(5, "order", epoch, images) for epoch in range(40 * batch_size // images + 33)])
    assert plan.images.tolist() == grouped(wide, order.tolist(), batch_size)[:40]
    # Each batch has images of one kind, and an epoch has every image at most once.
    assert all(len({*wide[row].tolist()}) == 1 for row in plan.images)
    assert len({*zip(plan.images.ravel().tolist(), plan.epochs.ravel().tolist(), strict=True)}) == 40 * batch_size
    rest = data.plan_batches(wide, seed=5, batch_size=batch_size, first=33, last=40)
    assert np.array_equal(rest.images, plan.images[33:])
    assert np.array_equal(rest.epochs, plan.epochs[33:])
    shorter = data.plan_batches(wide, seed=5, batch_size=batch_size, first=0, last=9)
    assert np.array_equal(shorter.images, plan.images[:9])


def test_plan_equals_detectron2s_grouping() -> None:
    pytest.importorskip("detectron2")
    from detectron2.data.common import AspectRatioGroupedDataset

    random = np.random.default_rng(0)
    widths, heights = random.integers(9, 12, (2, 60))
    plan = data.plan_batches(widths > heights, seed=1, batch_size=8, first=0, last=50)
    order = np.concatenate([permutation(1, "order", epoch, 60) for epoch in range(9)])
    stream = [{"width": widths[i], "height": heights[i], "index": int(i)} for i in order]
    theirs = [[one["index"] for one in batch] for batch in AspectRatioGroupedDataset(stream, 8)]
    assert plan.images.tolist() == theirs[:50]


def test_plan_of_the_whole_2x_schedule_is_quick() -> None:
    wide = np.random.default_rng(0).random(117_266) < 0.7
    start = time.process_time()  # time of this process, because the machine may be busy
    plan = data.plan_batches(wide, seed=0, batch_size=16, first=0, last=180_000)
    assert time.process_time() - start < 2
    assert plan.images.shape == (180_000, 16)
    assert plan.epochs.max() == 180_000 * 16 // 117_266


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(train: Annotations, workers: int) -> None:
    assert_same(batches(train, 0, 12), batches(train, 0, 12, workers=workers))


@pytest.mark.parametrize(("first", "workers"), [(1, 0), (6, 2), (11, 0)])
def test_batches_do_not_depend_on_the_first_iteration(train: Annotations, first: int, workers: int) -> None:
    assert_same(batches(train, 0, 12)[first:], batches(train, first, 12, workers=workers))


def test_processes_share_a_batch(train: Annotations) -> None:
    shares = [batches(train, 2, 7, rank=rank, world_size=2, workers=rank) for rank in (0, 1)]
    for whole, first, second in zip(batches(train, 2, 7), *shares, strict=True):
        assert first.iteration == second.iteration == whole.iteration
        assert (first.positions, second.positions) == ([0, 1], [2, 3])
        assert_same_images([*first.images, *second.images], whole.images)
    with pytest.raises(InputError, match="batch_size=4: cannot be divided evenly among 3 processes"):
        batches(train, 0, 1, world_size=3)


def test_draws_differ_between_epochs_seeds_and_purposes(train: Annotations) -> None:
    def seen(**options: Any) -> list[tuple[int, tuple[int, ...]]]:
        return [
            (image.image_id, tuple(image.pixels.shape))
            for batch in batches(train, 0, 40, **options)
            for image in batch.images
        ]

    usual = seen()
    assert usual == seen()
    assert usual != seen(seed=4)
    assert usual != seen(purpose="statistics")
    shapes_of_one_image = {shape for number, shape in usual if number == usual[0][0]}
    assert len(shapes_of_one_image) == 3  # all three sizes within six epochs


def test_half_of_the_images_are_flipped(train: Annotations) -> None:
    flips, sizes = [], []
    for batch in batches(train, 0, 60, masks=False, min_sizes=(64, 96)):
        for image in batch.images:
            index = int(np.flatnonzero(train.image_ids == image.image_id)[0])
            assert image.target is not None
            height, width = image.pixels.shape[1:]
            plain = transforms.make_target(train, index, height, width, flip=False, masks=False)
            flips.append(not torch.equal(plain.boxes, image.target.boxes))
            sizes.append(min(height, width) > 80)
    assert 0.4 < np.mean(flips) < 0.6  # 3 standard deviations for 240 draws
    assert 0.4 < np.mean(sizes) < 0.6
    assert abs(np.corrcoef(flips, sizes)[0, 1]) < 0.2


def test_order_and_draws_equal_the_stored_ones(train: Annotations) -> None:
    """A run must resume with the same batches after an update of this project or of NumPy."""
    stored = json.loads((GOLDEN / "batches.json").read_text())
    found = [
        [
            [image.image_id, *image.pixels.shape[1:], image.target.boxes[0].tolist()]
            for image in batch.images
            if image.target
        ]
        for batch in batches(train, 5, 9)
    ]
    assert found == stored


def test_test_images_are_resized_without_random_changes(folder: Path) -> None:
    test = read_split(AnnotatedDataConfig(root=str(folder), name="figures"), "test", masks=True)
    images = list(data.test_images(test, min_size=64, max_size=100))
    assert [image.image_id for image in images] == [1, 2, 3, 4, 5]
    for entry, image in zip(test.images, images, strict=True):
        assert image.target is None
        assert (image.height, image.width) == (entry.height, entry.width)
        size = transforms.resized_size(entry.height, entry.width, 64, 100)
        assert tuple(image.pixels.shape) == (3, *size)
        with Pillow.open(folder / "val2017" / entry.file_name) as picture:
            theirs = np.array(picture.resize(size[::-1], Pillow.Resampling.BILINEAR))
        assert np.array_equal(image.pixels.permute(1, 2, 0).numpy(), theirs)
    some = list(data.test_images(test, min_size=64, max_size=100, first=1, last=4, workers=2))
    assert [image.image_id for image in some] == [2, 3, 4]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(some, images[1:4], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_after_the_check_is_named(tmp_path: Path, workers: int) -> None:
    generated.write(tmp_path, train=3, test=1)
    train = read_split(AnnotatedDataConfig(root=str(tmp_path), name="figures"), "train", masks=False)
    path = tmp_path / "train2017" / "000000000002.jpg"
    whole = path.read_bytes()
    for content, message in ((whole[: len(whole) // 2], "not a readable image"), (b"", "not a readable image")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"000000000002\.jpg: {message}") as error:
            batches(train, 0, 3, masks=False, workers=workers)
        assert "\n" not in str(error.value)
    Pillow.new("RGB", (20, 30)).save(path)
    with pytest.raises(InputError, match=r"000000000002\.jpg: 20 x 30 pixels; expected"):
        batches(train, 0, 3, masks=False, workers=workers)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*000000000002\.jpg"):
        batches(train, 0, 3, masks=False, workers=workers)


# Resize and flip


def test_resized_sizes_are_detectron2s() -> None:
    golden = json.loads((GOLDEN / "resized_sizes.json").read_text())
    for height, width, min_size, max_size, *expected in golden["rows"]:
        assert list(transforms.resized_size(height, width, min_size, max_size)) == expected
    assert len(golden["rows"]) > 1000
    assert transforms.resized_size(1, 5000, 800, 1333) == (1, 1333)


def assert_as_mapper(ours: Annotations, index: int, record: dict[str, Any], size: int, flip: bool, kind: str) -> None:
    """Compare an image and its target with Detectron2's `DatasetMapper`; `kind` is its type of masks."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge([size], 1333, "choice"), T.RandomFlip(prob=float(flip))],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format=kind,
    )
    theirs = mapper(record)
    pixels = transforms.read_image(ours.file(index))
    height, width = transforms.resized_size(pixels.height, pixels.width, size, 1333)
    assert torch.equal(transforms.resize_image(pixels, height, width, flip=flip), theirs["image"])
    target = transforms.make_target(ours, index, height, width, flip=flip, masks=True)
    instances = theirs["instances"]
    assert torch.equal(target.boxes, instances.gt_boxes.tensor)
    assert torch.equal(target.classes, instances.gt_classes)
    if kind == "polygon":
        for mine, other in zip(target.masks, instances.gt_masks.polygons, strict=True):
            assert_same_masks(mine, other)
    else:
        assert np.array_equal(np.stack([np.asarray(mask) for mask in target.masks]), instances.gt_masks.tensor.numpy())


@pytest.mark.data
@pytest.mark.parametrize("flip", [False, True])
def test_targets_as_detectron2s_mapper_on_real_coco(test_data: Path, flip: bool) -> None:
    pytest.importorskip("detectron2")
    from detectron2.data.build import filter_images_with_only_crowd_annotations
    from detectron2.data.datasets.coco import load_coco_json

    root = test_data / "coco_tiny"
    ours = read_split(AnnotatedDataConfig(root=str(root)), "train", masks=True)
    listing = root / "annotations" / "instances_train2017.json"
    records = filter_images_with_only_crowd_annotations(load_coco_json(str(listing), str(root / "train2017"), "tiny"))
    for index, record in enumerate(records):
        assert_as_mapper(ours, index, record, (480, 640, 800)[index % 3] if index < 12 else 333, flip, "polygon")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A rotated grayscale image with boxes at and over its border, an empty box, and outlines of both kinds.

    All numbers are floats, because Detectron2 makes an integer array of whole numbers and rounds it down when it scales
    them.
    """
    exif = Pillow.Exif()
    exif[0x0112] = 8
    noise = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)
    (tmp_path / "train2017").mkdir()
    Pillow.fromarray(noise).save(tmp_path / "train2017" / "a.jpg", exif=exif)
    bitmap = np.zeros((53, 37), np.uint8)
    bitmap[10:31, 5:9] = 1
    bitmap[40:, 20:] = np.random.default_rng(1).integers(0, 2, (13, 17))
    encoded = pycocotools_mask.encode(np.asfortranarray(bitmap))
    runs = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    empty = {"size": [53, 37], "counts": [53 * 37]}
    rows = [
        ([5, 10, 4, 21], runs),
        ([-0.4, 0.3, 37.9, 52.9], [[0.1, 0.2, 36.9, 3, 20.5, 52.5]]),
        ([3, 3, 0, 7], [[3.0, 3, 3, 3, 3, 10.0]]),
        ([36.5, 52.7, 1.2, 1.2], [[36.5, 52.7, 37, 53, 36, 53]]),
        ([1, 1, 9, 9], empty),
        ([2.5, 3.25, 7.125, 9.0625], [[2.5, 3.25, 9, 4, 5, 12], [7.0, 7, 8, 7, 8, 8, 7, 8]]),
    ]
    document = {
        "images": [{"id": 4, "file_name": "a.jpg", "width": 37, "height": 53}],
        "categories": [{"id": 2, "name": "a"}],
        "annotations": [
            {
                "id": i,
                "image_id": 4,
                "category_id": 2,
                "bbox": [float(v) for v in box],
                "segmentation": outline,
                "iscrowd": 0,
            }
            for i, (box, outline) in enumerate(rows)
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    return tmp_path


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [20, 53, 101])
def test_odd_targets_as_detectron2s_mapper(odd: Path, size: int, flip: bool) -> None:
    pytest.importorskip("detectron2")
    from detectron2.data.datasets.coco import load_coco_json

    ours = read_split(AnnotatedDataConfig(root=str(odd), name="odd"), "train", masks=True)
    (record,) = load_coco_json(
        str(odd / "annotations" / "instances_train2017.json"), str(odd / "train2017"), f"odd {size} {flip}"
    )
    objects = record["annotations"]
    for kind, of_kind in (("bitmask", dict), ("polygon", list)):
        left_out = [not isinstance(one.outline, of_kind) for one in ours.images[0].objects]
        record["annotations"] = [one for one, out in zip(objects, left_out, strict=True) if not out]
        assert_as_mapper(dataclasses.replace(ours, crowd=np.array(left_out)), 0, record, size, flip, kind)


def test_flip_and_scale_move_pixels_boxes_and_outlines_alike(odd: Path) -> None:
    ours = read_split(AnnotatedDataConfig(root=str(odd), name="odd"), "train", masks=True)
    image = transforms.read_image(ours.file(0))
    assert (image.size, image.mode) == ((37, 53), "RGB")
    assert ours.outlines is not None
    plain = transforms.make_target(ours, 0, 106, 74, flip=False, masks=True)
    flipped = transforms.make_target(ours, 0, 106, 74, flip=True, masks=True)
    assert len(plain.boxes) == 4  # of six objects, one has no width and one has a mask without a pixel
    assert plain.boxes[1].tolist() == [0, pytest.approx(0.6), 74, 106]  # clipped
    assert torch.equal(plain.boxes[0], torch.tensor([10.0, 20.0, 18.0, 62.0]))
    assert torch.allclose(
        flipped.boxes,
        torch.stack([74 - plain.boxes[:, 2], plain.boxes[:, 1], 74 - plain.boxes[:, 0], plain.boxes[:, 3]], 1),
    )
    for one, other in zip(plain.masks, flipped.masks, strict=True):
        if isinstance(one, np.ndarray):
            assert (one.shape, one.dtype) == ((106, 74), bool)
            assert one[20:62, 10:18].all()
            assert one[80:, 40:].any()
            assert one.sum() == 4 * ours.outlines.parts(0)[0][1::2].sum()  # twice the height and the width
            assert np.array_equal(other, one[:, ::-1])
        else:
            for mine, theirs in zip(one, other, strict=True):
                assert np.allclose(mine[0::2] + theirs[0::2], 74)
                assert np.array_equal(mine[1::2], theirs[1::2])
    pixels = transforms.resize_image(image, 106, 74, flip=False)
    assert torch.equal(transforms.resize_image(image, 106, 74, flip=True), pixels.flip(2))


# Generated data


def rasterized(outline: Any, height: int, width: int) -> np.ndarray:
    encoded = pycocotools_mask.frPyObjects(outline, height, width)
    return pycocotools_mask.decode(encoded if isinstance(outline, dict) else pycocotools_mask.merge(encoded)).astype(
        bool
    )


def test_generated_annotations_match_the_pixels(folder: Path) -> None:
    document = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    sizes = {one["id"]: (one["height"], one["width"]) for one in document["images"]}
    kinds = {height < width for height, width in sizes.values()}
    assert kinds == {True, False}
    covered: dict[int, np.ndarray] = {number: np.zeros(size, int) for number, size in sizes.items()}
    for one in document["annotations"]:
        mask = rasterized(one["segmentation"], *sizes[one["image_id"]])
        covered[one["image_id"]] += mask
        assert one["area"] == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert one["bbox"] == [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    assert max(count.max() for count in covered.values()) == 1  # hidden parts are not in a mask
    assert sum(one["iscrowd"] for one in document["annotations"]) == 5
    # The background has one color with a slope, so the other pixels are those of the masks.
    for number, count in covered.items():
        with Pillow.open(folder / "train2017" / f"{number:012}.jpg") as picture:
            pixels = np.asarray(picture, float)
        background, spread = np.median(pixels[count == 0], 0), pixels[count == 0].std(0)
        foreground = (np.abs(pixels - background) > 0.2 * 255).any(2)
        assert spread.max() < 40
        assert (foreground == (count == 1)).mean() > 0.95


def test_generated_data_are_reproducible_and_written_once(folder: Path, tmp_path: Path) -> None:
    generated.write(tmp_path, train=26, test=5)
    for file in sorted(folder.rglob("*.*")):
        assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes()
    (tmp_path / "val2017" / "000000000001.jpg").unlink()
    generated.write(tmp_path, train=26, test=5)  # writes nothing, because the annotations exist
    assert not (tmp_path / "val2017" / "000000000001.jpg").exists()
    with pytest.raises(InputError, match=r"'pictures': 26, .*; expected .*'pictures': 27"):
        generated.write(tmp_path, train=27, test=5)
    generated.write(tmp_path / "other", train=26, test=5, seed=1)
    name = Path("train2017") / "000000000003.jpg"
    assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_traced_polygons_cover_the_mask_exactly() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(1, 25, 2)
        mask = random.random((height, width)) < random.random()
        if mask.any():
            assert np.array_equal(rasterized(generated.trace(mask), height, width), mask)


def test_figures_of_the_classification_data_are_unchanged() -> None:
    """The images of pre-training use the same functions. The digest is from before they were shared."""
    images, _ = shapes.make(200, "train")
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == "08c0253296855e6ba9b23a1581ab69a7ae97efdac32b3293a1103837582f3b38"
    )
