"""Test that the fingerprint changes with every change of the data, and does not depend on their location."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import voc_cases
from transfer_cases import make_folder
from voc_cases import LISTS

from intl_bench.core.errors import InputError
from pretrain.images import fingerprint as fingerprints
from pretrain.images import pack_command
from pretrain.images.data import ArraySource, DataConfig, FileSource, open_source
from pretrain.images.fingerprint import fingerprint
from transfer.detection.annotations import generated
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig as DetectionData


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos")


def of(root: Path, split: str = "train", **options: Any) -> str:
    return fingerprint(open_source(DataConfig(root=str(root), **options), split))


def chosen(root: Path, indices: list[int]) -> FileSource:
    source = open_source(DataConfig(root=str(root)), "train")
    assert isinstance(source, FileSource)
    return source.choose(np.array(indices))


def replace(file: Path, kept: bool = True) -> None:
    """Change the last byte of a file in place; `kept` restores the modification time."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([byte ^ 1]))
    if kept:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def first(folder: Path) -> Path:
    return min((folder / "train" / "n00000001").iterdir())


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every file as old, so that fingerprints are cached."""
    monkeypatch.setattr(fingerprints, "_YOUNG", -(10**12))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry each time content is hashed."""
    found, hashed = list[int](), fingerprints._hash

    def counted(names: np.ndarray, *rest: Any) -> str:
        found.append(len(names))
        return hashed(names, *rest)

    monkeypatch.setattr(fingerprints, "_hash", counted)
    return found


# Image folders and packs


def test_a_copy_has_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    assert of(folder) == of(Path(shutil.copytree(folder, tmp_path / "copy")))
    assert len(of(folder)) == 64
    assert of(folder) != of(folder, "test")


def test_a_pack_has_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    pack_command.write(pack_command.prepare(folder, tmp_path / "packed"))
    for split in ("train", "test"):
        assert of(tmp_path / "packed", split) == of(folder, split)
    assert fingerprint(chosen(tmp_path / "packed", [7, 2])) == fingerprint(chosen(folder, [7, 2]))
    source = open_source(DataConfig(root=str(tmp_path / "packed")), "train")
    assert isinstance(source, FileSource)
    assert source.sizes.tolist() == [Path(file).stat().st_size for file in sorted((folder / "train").rglob("*.png"))]


def test_a_replaced_image_of_the_same_size_and_modification_time(folder: Path) -> None:
    before = of(folder)
    replace(first(folder))
    assert of(folder) != before


def test_a_replaced_image_is_detected_by_its_change_time(folder: Path, old: None) -> None:
    before = of(folder)
    assert len([*Path("runs/fingerprints").iterdir()]) == 1
    replace(first(folder))
    assert of(folder) != before


CHANGES: dict[str, Callable[[Path], object]] = {
    "another name": lambda root: first(root).rename(first(root).with_name("n00000001_00.png")),
    "another class": lambda root: first(root).rename(root / "train" / "n00000000" / "n00000000_8.png"),
    "one fewer": lambda root: first(root).unlink(),
    "two exchanged": lambda root: exchange(*sorted((root / "train" / "n00000001").iterdir())[:2]),
    "a class of another name": lambda root: [
        (root / s / "n00000001").rename(root / s / "n1") for s in ("train", "val")
    ],
}


def exchange(one: Path, other: Path) -> None:
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


@pytest.mark.parametrize("change", CHANGES)
def test_further_changes_give_other_fingerprints(folder: Path, change: str, old: None) -> None:
    before = of(folder)
    CHANGES[change](folder)
    assert of(folder) != before


def test_it_depends_on_the_listed_classes_but_not_on_their_file(folder: Path, tmp_path: Path) -> None:
    for name, text in (("one", "n00000000\nn00000002\n"), ("two", "n00000002\n\nn00000000\n")):
        (tmp_path / name).write_text(text)
    one, two = (of(folder, classes=str(tmp_path / name)) for name in ("one", "two"))
    assert one == two != of(folder)


def test_a_subset_has_another_fingerprint(folder: Path) -> None:
    some = [[1, 2, 3], [3, 2, 1], [1, 2], [4, 2, 3], list(range(24))]
    found = [fingerprint(chosen(folder, indices)) for indices in some]
    assert len({*found}) == len(some)
    assert found[-1] == of(folder)
    replace(Path(chosen(folder, [1]).file(0)))
    assert fingerprint(chosen(folder, [1, 2, 3])) != found[0]
    assert fingerprint(chosen(folder, [4, 2, 3])) == found[3]


def test_a_large_split_is_sampled(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes count, and the bytes of a fixed sample."""
    whole = of(folder)
    monkeypatch.setattr(fingerprints, "_WHOLE", 1000)
    monkeypatch.setattr(fingerprints, "_SAMPLE", 9)
    before = of(folder)
    assert before != whole
    assert of(Path(shutil.copytree(folder, tmp_path / "copy"))) == before
    pack_command.write(pack_command.prepare(folder, tmp_path / "packed"))
    assert of(tmp_path / "packed") == before
    noticed = []
    for file in sorted((folder / "train").rglob("*.png")):
        replace(file)
        noticed.append(of(folder) != before)
        replace(file)
    assert sum(noticed) == 9
    with sorted((folder / "train").rglob("*.png"))[noticed.index(False)].open("ab") as stream:
        stream.write(b"x")
    assert of(folder) != before


def test_a_fingerprint_is_cached(folder: Path, old: None, reads: list[int]) -> None:
    before = of(folder)
    assert (of(folder), reads) == (before, [24])
    assert not [path for path in folder.rglob("*") if path.suffix not in ("", ".png")]
    os.utime(first(folder))
    assert (of(folder), reads) == (before, [24, 24])
    (kept, *_) = Path("runs/fingerprints").iterdir()
    text = kept.read_text()
    for damaged in (text[:-9], "", ("1" if text[0] == "0" else "0") + text[1:], "\udcff"):
        for path in Path("runs/fingerprints").iterdir():
            path.write_bytes(os.fsencode(damaged))
        reads.clear()
        assert (of(folder), reads) == (before, [24])


def test_a_fingerprint_of_new_files_is_not_cached(folder: Path, reads: list[int]) -> None:
    assert of(folder) == of(folder)
    assert reads == [24, 24]
    assert not Path("runs").exists()


def test_without_a_writable_cache(folder: Path, old: None) -> None:
    Path("runs").write_text("not a folder")
    assert of(folder) == of(folder)


def test_a_slow_disk_gives_the_same_fingerprint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(folder)
    monkeypatch.setattr(fingerprints, "_SLOW", 0.0)
    monkeypatch.setattr(fingerprints, "_PART", 5)
    assert of(folder) == before


def test_a_vanished_file_is_named(folder: Path) -> None:
    source = open_source(DataConfig(root=str(folder)), "train")
    first(folder).unlink()
    with pytest.raises(InputError, match=first(folder).parent.name):
        fingerprint(source)


# Arrays


def test_of_arrays(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{split}_x": random.integers(0, 256, (12, 8, 8, 3), np.uint8) for split in ("train", "test")
    }
    arrays |= {f"{split}_y": np.arange(12) % 3 for split in ("train", "test")}

    def one(name: str, **changes: np.ndarray) -> str:
        np.savez(tmp_path / name, **(arrays | changes))
        return of(tmp_path / name, kind="npz")

    before = one("a.npz")
    assert before == one("b.npz") == one("c.npz", test_x=arrays["train_x"])
    pixel, label = arrays["train_x"].copy(), arrays["train_y"].copy()
    pixel[5, 4, 3, 2] ^= 1
    label[5] = 0
    order = np.r_[1, 0, 2:12]
    changed = [
        one("pixel.npz", train_x=pixel),
        one("label.npz", train_y=label),
        one("order.npz", train_x=arrays["train_x"][order], train_y=arrays["train_y"][order]),
        one("shape.npz", train_x=arrays["train_x"].reshape(12, 4, 16, 3)),
        fingerprint(ArraySource(arrays["train_x"], arrays["train_y"], ["a", "b", "c"], "here")),
    ]
    assert len({before, *changed}) == 6
    source = open_source(DataConfig(kind="npz", root=str(tmp_path / "a.npz")), "train")
    assert isinstance(source, ArraySource)
    assert fingerprint(source.choose(np.arange(12))) == before
    assert fingerprint(source.choose(order)) == changed[2]


def test_of_shapes() -> None:
    one, same, other = (fingerprint(open_source(DataConfig(kind="shapes", size=n), "train")) for n in (40, 40, 44))
    assert one == same != other


# Annotated images


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    generated.write(tmp_path / "coco", train=6, test=3)
    return tmp_path / "coco"


def of_coco(root: Path, split: str = "train", masks: bool = True) -> str:
    return read_split(DetectionData(root=str(root), name="figures"), split, masks=masks).fingerprint()


def test_of_coco(coco: Path, tmp_path: Path) -> None:
    before = of_coco(coco)
    assert before == of_coco(Path(shutil.copytree(coco, tmp_path / "copy"))) == of_coco(coco, masks=False)
    assert before != of_coco(coco, "test")
    replace(min((coco / "train2017").iterdir()))
    assert of_coco(coco) != before
    file = tmp_path / "copy" / "annotations" / "instances_train2017.json"
    document = json.loads(file.read_text())
    document["annotations"][3]["bbox"][2] -= 0.5
    file.write_text(json.dumps(document))
    assert of_coco(tmp_path / "copy") != before


def test_a_large_coco_is_sampled(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_WHOLE", 1000)
    monkeypatch.setattr(fingerprints, "_SAMPLE", 1)
    before, noticed = of_coco(coco, "test"), []
    for file in sorted((coco / "val2017").iterdir()):
        replace(file)
        noticed.append(of_coco(coco, "test") != before)
        replace(file)
    assert sum(noticed) == 1


def in_xml(root: Path) -> None:
    file = root / "VOC2007" / "Annotations" / "000005.xml"
    file.write_text(file.read_text().replace("<xmax>60<", "<xmax>59<"))


def in_list(root: Path) -> None:
    file = root / LISTS[0]
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))


def in_image(root: Path) -> None:
    replace(root / "VOC2012" / "JPEGImages" / "2008_000002.jpg")


@pytest.mark.parametrize("change", [in_xml, in_list, in_image])
def test_of_voc(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = voc_cases.write(tmp_path / "voc")

    def found(place: Path, lists: tuple[str, ...] = LISTS) -> str:
        config = DetectionData(kind="voc", name="voc0712", root=str(place), train=lists)
        return read_split(config, "train", masks=False).fingerprint()

    before = found(root)
    assert before == found(Path(shutil.copytree(root, tmp_path / "copy")))
    assert before != found(root, LISTS[:1])
    change(root)
    assert found(root) != before
