"""Test data sets: content, order and one-line errors."""

import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain.images import shapes
from pretrain.images.data import ArraySource, BadImageError, DataConfig, FolderSource, normalization, open_source


def picture(seed: int = 0, height: int = 40, width: int = 60) -> Image.Image:
    """Create a smooth colorful picture, brighter on the right."""
    coarse = np.random.default_rng(seed).integers(0, 100, (4, 6, 3))
    coarse[:, 3:] += 120
    return Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create train/ and val/ with the classes b and a: three images per class in train/, one in val/."""
    for split, count in (("train", 3), ("val", 1)):
        for name in ("b", "a"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture(number).save(tmp_path / split / name / f"{name}{number}.JPEG", quality=95)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    return tmp_path


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 2
    return message


# Image folders


def test_folder_as_torchvision(folder: Path) -> None:
    (folder / "train" / "a" / "deeper").mkdir()
    picture(9).save(folder / "train" / "a" / "deeper" / "z.png")
    source = open_source(DataConfig(root=str(folder)), "train")
    theirs = datasets.ImageFolder(folder / "train")
    assert [source.file(index) for index in range(len(source))] == [file for file, _ in theirs.samples]
    assert source.labels.tolist() == theirs.targets
    assert source.labels.dtype == np.int64
    assert source.class_names == theirs.classes
    for index in range(len(source)):
        assert np.array_equal(source.image(index), np.array(theirs[index][0]))


@pytest.mark.data
def test_imagenet_sample_as_torchvision(test_data: Path) -> None:
    for split, part in (("train", "train"), ("test", "val")):
        source = open_source(DataConfig(root=str(test_data / "imagenet_sample")), split)
        theirs = datasets.ImageFolder(test_data / "imagenet_sample" / part)
        assert [source.file(index) for index in range(len(source))] == [file for file, _ in theirs.samples]
        assert source.labels.tolist() == theirs.targets
        for index in range(0, len(source), 5):
            assert np.array_equal(source.image(index), np.array(theirs[index][0]))


def test_listed_classes_only(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split / "c").mkdir()
        picture().save(folder / split / "c" / "c.png")
    listing = folder / "classes.txt"
    listing.write_text("c\na\n\n")
    config = DataConfig(root=str(folder), classes=str(listing))
    source = open_source(config, "train")
    assert source.class_names == ["a", "c"]
    assert source.labels.tolist() == [0, 0, 0, 1]
    assert open_source(config, "test").labels.tolist() == [0, 1]
    listing.write_text("a\nn01234567\n")
    with pytest.raises(InputError, match="n01234567") as error:
        open_source(config, "train")
    assert str(listing) in one_line(error)
    listing.write_text("\n")
    with pytest.raises(InputError, match=r"classes.txt: empty"):
        open_source(config, "train")
    with pytest.raises(InputError, match=r"missing.txt"):
        open_source(DataConfig(root=str(folder), classes=str(folder / "missing.txt")), "train")


def test_missing_folder_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    with pytest.raises(InputError) as error:
        open_source(DataConfig(root=str(folder)), "test")
    assert str(folder / "val") in one_line(error)


def test_folder_without_classes_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no class folders") as error:
        open_source(DataConfig(root=str(tmp_path)), "train")
    assert str(tmp_path / "train") in one_line(error)


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_without_images_is_named(folder: Path, split: str) -> None:
    for file in (folder / split / "b").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no images") as error:
        open_source(DataConfig(root=str(folder)), "train" if split == "train" else "test")
    assert str(folder / split / "b") in one_line(error)


def test_validation_labels_are_the_training_ones(folder: Path) -> None:
    """A class missing in val/ must not shift the labels of the next classes; a class missing in train/ is an error."""
    shutil.rmtree(folder / "val" / "a")
    with pytest.raises(InputError, match="no images") as error:
        open_source(DataConfig(root=str(folder)), "test")
    assert str(folder / "val" / "a") in one_line(error)
    shutil.copytree(folder / "val" / "b", folder / "val" / "a")
    shutil.copytree(folder / "val" / "b", folder / "val" / "new")
    with pytest.raises(InputError, match="new"):
        open_source(DataConfig(root=str(folder)), "test")


def test_validation_alone_is_enough(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    assert open_source(DataConfig(root=str(folder)), "test").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", ".jpg"), ("CMYK", ".jpg"), ("P", ".png"), ("RGBA", ".png"), ("LA", ".png"), ("1", ".png")],
)
def test_every_mode_becomes_rgb(folder: Path, mode: str, suffix: str) -> None:
    file = folder / "train" / "a" / f"a0{suffix}"
    picture().convert(mode).save(file)
    pixels = open_source(DataConfig(root=str(folder)), "train").image(1)
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    expected = picture().convert(mode).convert("RGB")
    assert np.abs(pixels - np.array(expected, int)).mean() < 4
    if mode in ("L", "LA", "1"):
        assert (pixels == pixels[..., :1]).all()


def test_exif_orientation_is_not_applied(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate the image by 90 degrees
    picture().save(folder / "train" / "a" / "a0.JPEG", exif=exif, quality=95)
    pixels = open_source(DataConfig(root=str(folder)), "train").image(0)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels - np.array(picture(), int)).mean() < 4


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"not an image"}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_damaged_image_is_named(folder: Path, how: str) -> None:
    file = folder / "train" / "a" / "a1.JPEG"
    damage(file, how)
    source = open_source(DataConfig(root=str(folder)), "train")
    with pytest.raises(BadImageError) as error:
        source.image(1)
    assert str(file) in one_line(error)
    assert str(error.value).endswith("""leave it out with 'data.skip=["train/a/a1.JPEG"]'""")


def test_vanished_file_is_not_a_bad_image(folder: Path) -> None:
    source = open_source(DataConfig(root=str(folder), on_bad_image="skip"), "train")
    (folder / "train" / "a" / "a1.JPEG").unlink()
    with pytest.raises(InputError, match=r"a1\.JPEG") as error:
        source.image(1)
    assert not isinstance(error.value, BadImageError)


# Arrays


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "train_x": random.integers(0, 256, (20, 32, 32, 3), np.uint8),
        "train_y": np.arange(20, dtype=np.uint8) % 4,
        "test_x": random.integers(0, 256, (6, 32, 32, 3), np.uint8),
        "test_y": np.arange(6, dtype=np.uint8) % 4,
    }


def npz(path: Path, arrays: dict[str, Any]) -> DataConfig:
    np.savez(path / "data.npz", **arrays)
    return DataConfig(kind="npz", root=str(path / "data.npz"))


def test_npz_as_saved(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    config = npz(tmp_path, arrays)
    for split in ("train", "test"):
        source = open_source(config, split)
        assert isinstance(source, ArraySource)
        assert np.array_equal(source.images, arrays[f"{split}_x"])
        assert np.array_equal(source.labels, arrays[f"{split}_y"])
        assert source.labels.dtype == np.int64
        assert source.class_names == ["0", "1", "2", "3"]
        assert np.array_equal(source.image(2), arrays[f"{split}_x"][2])
        assert str(tmp_path / "data.npz") in source.file(2)


@pytest.mark.data
def test_cifar_subset(test_data: Path) -> None:
    config = DataConfig(kind="npz", root=str(test_data / "cifar10_subset.npz"), name="cifar10")
    assert [len(open_source(config, split)) for split in ("train", "test")] == [5170, 1017]
    assert len(open_source(config, "test").class_names) == 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train_x": None}, "train_x"),
        ({"train_y": None}, "train_y"),
        ({"train_x": np.zeros((20, 32, 32, 3), np.float32)}, "float32"),
        ({"train_x": np.zeros((20, 3, 32, 32), np.uint8)}, "20, 3, 32, 32"),
        ({"train_x": np.zeros((20, 32, 32), np.uint8)}, "train_x"),
        ({"train_y": np.zeros(19, np.uint8)}, "train_y"),
        ({"train_y": np.zeros(20, np.float64)}, "float64"),
        ({"train_y": np.arange(20) % 4 + 1}, "labels"),
        ({"train_y": np.arange(20) % 4 - 1}, "labels"),
        ({"train_x": np.array([object()] * 20)}, "plain arrays"),
    ],
)
def test_wrong_npz_is_explained(
    tmp_path: Path, arrays: dict[str, np.ndarray], change: dict[str, Any], expected: str
) -> None:
    changed = {key: value for key, value in (arrays | change).items() if value is not None}
    with pytest.raises(InputError, match=expected) as error:
        open_source(npz(tmp_path, changed), "train")
    assert "data.npz" in one_line(error)


def test_test_label_that_training_lacks(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="test_y"):
        open_source(npz(tmp_path, arrays | {"test_y": np.full(6, 4)}), "test")


def test_damaged_npz_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    config = npz(tmp_path, arrays)
    path = Path(config.root)
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, arrays["train_x"])
    flipped = bytearray(whole)
    flipped[5000] ^= 1
    for content in (whole[: len(whole) // 2], b"", b"no archive", array.getvalue(), bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="complete") as error:
            open_source(config, "train")
        assert str(path) in one_line(error)
    path.unlink()
    with pytest.raises(InputError, match=r"data\.root"):
        open_source(config, "train")


# CIFAR files


def test_cifar_in_its_file_layout(
    tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read a small data set in the real file layout, with torchvision's list of files and checksums patched."""
    (tmp_path / "cifar-100-python").mkdir()

    def write(name: str, content: dict[str, Any]) -> str:
        data = pickle.dumps(content)
        (tmp_path / "cifar-100-python" / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for split in ("train", "test"):
        images, labels = arrays[f"{split}_x"], arrays[f"{split}_y"]
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        digest = write(split, {"data": rows, "fine_labels": labels.tolist(), "coarse_labels": [0] * len(labels)})
        monkeypatch.setattr(datasets.CIFAR100, f"{split}_list", [[split, digest]])
    names = ["apple", "bear", "cloud", "dog"]
    digest = write("meta", {"fine_label_names": names})
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": digest})
    config = DataConfig(kind="cifar100", root=str(tmp_path), name="four classes of CIFAR-100")
    for split in ("train", "test"):
        source = open_source(config, split)
        assert np.array_equal(source.labels, arrays[f"{split}_y"])
        assert np.array_equal(source.image(3), arrays[f"{split}_x"][3])
        assert source.class_names == names
    with (tmp_path / "cifar-100-python" / "train").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match="damaged"):
        open_source(config, "train")


@pytest.mark.parametrize(("kind", "base"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_missing_cifar_error_names_folder_and_download(tmp_path: Path, kind: str, base: str) -> None:
    with pytest.raises(InputError, match="download https://") as error:
        open_source(DataConfig(kind=kind, root=str(tmp_path)), "train")
    assert str(tmp_path / base) in one_line(error)


# Generated shapes


def test_shapes_depend_on_their_index_only() -> None:
    images, labels = shapes.make(1100, "train")
    assert images.shape == (1100, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(shapes.make(60, "train")[0], images[:60])
    assert np.bincount(labels).tolist() == [110] * 10
    assert len(np.unique(images.reshape(1100, -1), axis=0)) == 1100
    assert not np.array_equal(shapes.make(60, "test")[0], images[:60])
    source = open_source(DataConfig(kind="shapes", size=100), "test")
    assert len(source) == 25
    assert len(source.class_names) == 10


def ridge_accuracy(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> float:
    """Return the test accuracy of a ridge regression to the ten classes."""
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, test = (np.c_[(x - mean) / std, np.ones(len(x))] for x in (train, test))
    weights = np.linalg.solve(train.T @ train + len(train) / 2 * np.eye(train.shape[1]), train.T @ np.eye(10)[train_y])
    return float(((test @ weights).argmax(axis=1) == test_y).mean())


def test_colors_and_pixels_do_not_tell_the_shape() -> None:
    (images, labels), (test_images, test_labels) = shapes.make(2048, "train"), shapes.make(512, "test")

    def colors(x: np.ndarray) -> np.ndarray:
        mean = x.reshape(len(x), -1, 3).mean(axis=1) / 255
        return np.c_[mean, mean**2, mean * np.roll(mean, 1, axis=1)]

    def pixels(x: np.ndarray) -> np.ndarray:
        return x[:, ::2, ::2].reshape(len(x), -1) / 255

    for features in (colors, pixels):
        assert ridge_accuracy(features(images), labels, features(test_images), test_labels) < 0.17


def test_edges_tell_the_shape() -> None:
    """Edge strengths by direction and scale, a crude model of network features, give three times the chance level."""
    (images, labels), (test_images, test_labels) = shapes.make(2048, "train"), shapes.make(512, "test")

    def edges(x: np.ndarray) -> np.ndarray:
        down, right = np.gradient(x.astype(np.float32), axis=(1, 2))
        strength = np.sort(np.hypot(down, right).max(axis=3).reshape(len(x), -1), axis=1)
        spectrum = np.abs(np.fft.fft2(x.astype(np.float32).mean(axis=3)))[:, :12, :12].reshape(len(x), -1)
        return np.log1p(np.c_[strength[:, ::8], spectrum])

    assert ridge_accuracy(edges(images), labels, edges(test_images), test_labels) > 0.3


# Configuration


def test_normalization() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    cifar10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    cifar100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert normalization(DataConfig(name="imagenet100")) == imagenet
    assert normalization(DataConfig(kind="cifar10")) == cifar10
    assert normalization(DataConfig(kind="cifar100", name="mine")) == cifar100
    assert normalization(DataConfig(kind="npz")) == imagenet
    assert normalization(DataConfig(kind="npz", name="cifar10")) == cifar10
    given = configs.build(DataConfig, {"kind": "cifar100", "mean": [0.5, 0.5, 0.5]}, "test")
    assert normalization(given) == ((0.5, 0.5, 0.5), cifar100[1])


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"kind": "imagenet"}, "kind=imagenet"),
        ({"on_bad_image": "ignore"}, "on_bad_image=ignore"),
        ({"mean": (0.5, 0.5)}, "data.mean"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
        ({"std": (0.5, 0.5, float("nan"))}, "std"),
        ({"kind": "npz", "classes": "x"}, "data.classes"),
        ({"kind": "shapes", "size": 0}, "size"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        DataConfig(**wrong)


@pytest.mark.parametrize("kind", ["imagefolder", "cifar10", "npz"])
def test_missing_root_is_named(kind: str) -> None:
    with pytest.raises(InputError, match=r"data\.root"):
        open_source(DataConfig(kind=kind), "train")


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="split"):
        open_source(DataConfig(kind="shapes"), "val")


def test_file_names_of_any_bytes(folder: Path) -> None:
    name = os.fsdecode(b"a\xff \xc3\xa9.JPEG")
    try:
        picture().save(folder / "train" / "a" / name)
    except (OSError, UnicodeError):
        pytest.skip("this file system refuses such names")
    source = open_source(DataConfig(root=str(folder)), "train")
    assert isinstance(source, FolderSource)
    index = [source.file(i) for i in range(len(source))].index(str(folder / "train" / "a" / name))
    assert source.image(index).shape == (40, 60, 3)
