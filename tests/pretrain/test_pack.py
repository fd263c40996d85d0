"""Test that a pack gives the results of its folder, and errors for damaged, missing and incomplete packs."""

import json
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transfer_cases import CPU, make_checkpoint, make_folder

from intl_bench.cli import main
from intl_bench.core import distributed, files, seals
from intl_bench.core.errors import InputError
from pretrain import states, train
from pretrain.images import pack, pack_command
from pretrain.images.data import BadImageError, DataConfig, FileSource, FolderSource, PackedSource, open_source
from pretrain.images.loader import Batch, training_batches
from pretrain.images.views import ViewConfig
from pretrain.recipe import Recipe, load_recipe
from transfer import features, finetune, knn

VIEWS = [ViewConfig(size=16), ViewConfig(size=24, blur_p=0.5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create photo-like JPEGs and PNGs of many sizes in three classes; one image is in a subfolder of its class."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("n2", "n0", "n1"):
            for number in range(count):
                file = tmp_path / "folder" / split / name / f"{name}_{number}.{'png' if number == 1 else 'JPEG'}"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256, (30 + number, 20 + len(file.name), 3), np.uint8)
                Image.fromarray(pixels).save(file)
    (tmp_path / "folder/train/n1/deeper").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "folder/train/n1/deeper/été.JPEG")
    return tmp_path / "folder"


@pytest.fixture
def packed(folder: Path) -> Path:
    out = folder.parent / "packed"
    pack_command.write(pack_command.prepare(folder, out))
    return out


def opened(root: Path, split: str = "train", **options: str) -> FileSource:
    source = open_source(DataConfig(root=str(root), **options), split)  # type: ignore[arg-type]
    assert isinstance(source, FileSource)
    return source


def batches(source: FileSource, workers: int = 0) -> list[Batch]:
    size = len(source) // 2
    return list(training_batches(source, VIEWS, seed=1, batch_size=size, last_step=3, workers=workers))


def assert_same_images(ours: FileSource, theirs: FileSource) -> None:
    assert isinstance(ours, PackedSource)
    assert isinstance(theirs, FolderSource)
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.class_names == theirs.class_names
    assert ours.files.tolist() == theirs.files.tolist()
    for index in range(len(theirs)):
        assert ours.content(index) == theirs.content(index)
        assert np.array_equal(ours.image(index), theirs.image(index))
        assert Path(ours.file(index)).name == Path(theirs.file(index)).name


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 2
    return message


# The same as the folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_equal_those_of_the_folder(folder: Path, packed: Path, split: str) -> None:
    assert_same_images(opened(packed, split), opened(folder, split))


@pytest.mark.data
def test_photos(test_data: Path, tmp_path: Path) -> None:
    root = test_data / "imagenet_sample"
    pack_command.write(pack_command.prepare(root, tmp_path))
    for split in ("train", "test"):
        assert_same_images(opened(tmp_path, split), opened(root, split))


def test_bytes_equal_those_of_the_files(folder: Path, packed: Path) -> None:
    source = opened(folder)
    assert (packed / "train.pack").read_bytes() == b"".join(source.content(index) for index in range(len(source)))
    assert sorted(path.name for path in packed.iterdir()) == sorted(
        f"{split}.{suffix}" for split in ("train", "val") for suffix in ("pack", "index")
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_the_folder(folder: Path, packed: Path, workers: int) -> None:
    for a, b in zip(batches(opened(packed), workers), batches(opened(folder)), strict=True):
        assert torch.equal(a.labels, b.labels)
        for mine, other in zip([*a.crops, *a.parameters], [*b.crops, *b.parameters], strict=True):
            assert torch.equal(mine, other)


def test_listed_classes(folder: Path, packed: Path) -> None:
    listing = folder.parent / "classes.txt"
    listing.write_text("n2\nn1\n")
    for split in ("train", "test"):
        ours, theirs = (opened(root, split, classes=str(listing)) for root in (packed, folder))
        assert_same_images(ours, theirs)
        assert set(ours.labels.tolist()) == {0, 1}
    listing.write_text("n7\n")
    with pytest.raises(InputError, match="'n7' is not a class"):
        opened(packed, classes=str(listing))


def test_a_single_split(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "train")
    pack_command.write(pack_command.prepare(folder, tmp_path / "packed"))
    assert_same_images(opened(tmp_path / "packed", "test"), opened(folder, "test"))
    with pytest.raises(InputError, match=r"train\.pack: missing"):
        opened(tmp_path / "packed")


def test_another_process_opens_the_pack_itself(folder: Path, packed: Path) -> None:
    source = opened(packed)
    sent = pickle.dumps(source)
    assert b"n1_0.JPEG" not in sent
    assert_same_images(pickle.loads(sent), opened(folder))
    assert_same_images(source, opened(folder))


def test_a_run_resumes_with_the_pack(folder: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)

    def recipe(name: str, root: Path) -> Recipe:
        changes = ["batch_size=12", "epochs=3", "projector.hidden=16", "projector.out=16", "workers=0"]
        return load_recipe(
            "demo", [*changes, f"name={name}", "data.kind=imagefolder", "data.name=x", f"data.root={root}"]
        )

    whole = states.load(train.run(recipe("whole", folder)))[0]["method"]
    started = recipe("started", folder)
    with distributed.start("cpu") as process:
        source = opened(folder)
        training = train.build_training(started, process, len(source))
        for batch in training_batches(source, started.views, seed=started.seed, batch_size=12, last_step=2):
            training.take_step(batch)
        states.save(started.checkpoint, training.state())
    shutil.rmtree(folder)
    resumed = states.load(train.run(recipe("started", packed)))[0]["method"]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_file_list_names_images_of_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_folder(tmp_path / "folder", classes=3, train=10, test=2)
    pack_command.write(pack_command.prepare(root, tmp_path / "packed"))
    names = ["n00000002_7.png", "n00000000_1.png", "n00000001_3.png"]
    for place in ("folder", "packed"):
        (tmp_path / place / "10percent.txt").write_text("\n".join(names))
    parts = [
        finetune.listed_images(opened(tmp_path / p), tmp_path / p / "10percent.txt", 10) for p in ("packed", "folder")
    ]
    assert_same_images(*parts)
    assert [Path(parts[0].file(index)).name for index in range(3)] == names
    outcomes = [
        finetune.run(
            make_checkpoint(),
            finetune.FinetuneConfig(
                data=DataConfig(root=place),
                train_percent=10,
                workers=0,
                device="cpu",
                resize=18,
                crop=16,
                epochs=2,
                batch_size=3,
            ),
            0,
            folder=tmp_path / f"work {place}",
        )
        for place in ("packed", "folder")
    ]
    assert outcomes[0] == outcomes[1]
    (tmp_path / "l.txt").write_text("n00000002_7.png n00000000_99.png n00000001_3.png")
    with pytest.raises(InputError, match=r"1 of its 3 files are not in .*train\.pack, .*n00000000_99\.png"):
        finetune.listed_images(opened(tmp_path / "packed"), tmp_path / "l.txt", 10)


def test_cached_features_depend_on_the_images_of_a_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of pack and folder are equal; they come from the cache only for the same images."""
    monkeypatch.chdir(tmp_path)
    root = make_folder(tmp_path / "folder", classes=2, train=6, test=2)
    pack_command.write(pack_command.prepare(root, tmp_path / "packed"))
    shutil.copytree(tmp_path / "packed", tmp_path / "copy")
    (tmp_path / "classes.txt").write_text("n00000001")

    def test_features(place: str, **options: str) -> tuple[torch.Tensor, bool]:
        data = DataConfig(root=place, **options)  # type: ignore[arg-type]
        config = knn.KnnConfig(data=data, workers=0, resize=18, crop=16)
        _, test = features.extract_both(make_checkpoint(), config, CPU)
        return test.features.clone(), capsys.readouterr().err.count("read from the cache") == 2

    first, cached = test_features("packed")
    assert not cached
    assert torch.equal(first, test_features("folder")[0])
    again, cached = test_features("copy")
    assert cached
    assert torch.equal(again, first)
    one_class, cached = test_features("copy", classes="classes.txt")
    assert not cached
    assert torch.equal(one_class, first[2:])


# Damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("skip", ["stop", "skip"])
def test_a_damaged_pack_is_not_a_bad_image(packed: Path, skip: str) -> None:
    source = opened(packed, on_bad_image=skip)
    assert isinstance(source, PackedSource)
    flip(packed / "train.pack", int(source.pack.images["offset"][8]) + 300)
    with pytest.raises(InputError, match=r"train\.pack: the bytes of n1/deeper/été\.JPEG") as error:
        source.image(8)
    assert not isinstance(error.value, BadImageError)
    one_line(error)
    for workers in (0, 1):
        with pytest.raises(InputError, match="the bytes of n1/deeper/été"):
            batches(source, workers)


def test_an_image_that_cannot_be_decoded_is_a_bad_image(folder: Path, tmp_path: Path) -> None:
    bad = folder / "train/n1/n1_0.JPEG"
    bad.write_bytes(bad.read_bytes()[:400])
    pack_command.write(pack_command.prepare(folder, tmp_path / "packed"))
    with pytest.raises(BadImageError, match=r"train\.pack, n1/n1_0\.JPEG: not a readable image") as error:
        opened(tmp_path / "packed").image(4)
    one_line(error)
    ours, theirs = (batches(opened(root, on_bad_image="skip")) for root in (tmp_path / "packed", folder))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.crops[0], b.crops[0])
        assert [Path(file).name for file in a.bad_files] == [Path(file).name for file in b.bad_files]
    assert sum(len(batch.bad_files) for batch in ours) > 0


def header(packed: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change the first line of the index, with the right SHA-256."""
    line, _, rest = (packed / "train.index").read_bytes()[: -seals.LENGTH].partition(b"\n")
    values = json.loads(line)
    change(values)
    content = json.dumps(values).encode() + b"\n" + rest
    files.write_digested(packed / "train.index", lambda stream: stream.write(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: os.truncate(p / "train.pack", 5000), r"train\.pack: 5000 bytes, expected \d+: it was truncated"),
        (lambda p: flip(p / "train.index", 10), r"train\.index: its bytes have changed"),
        (lambda p: flip(p / "train.index", -40), r"train\.index: its bytes have changed"),
        (lambda p: os.truncate(p / "train.index", 100), r"train\.index: not an index of this version"),
        (lambda p: header(p, lambda values: values.update(format="x")), r"train\.index: not an index of this version"),
        (lambda p: header(p, lambda values: values.update(images=12)), r"train\.index: not an index of this version"),
        (lambda p: header(p, lambda values: values.pop("classes")), r"train\.index: not an index of this version"),
        (lambda p: (p / "train.index").unlink(), r"train\.index: missing; expected train\.pack and train\.index"),
        (lambda p: (p / "train.pack").unlink(), r"train\.pack: missing"),
        (lambda p: (p / "train").mkdir(), r"contains train\.pack and the folder train; expected only one"),
    ],
)
def test_a_wrong_file_is_named(packed: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(packed)
    with pytest.raises(InputError, match=message) as error:
        opened(packed)
    one_line(error)


def test_a_pack_of_the_earlier_format_is_read(folder: Path, packed: Path) -> None:
    """Its index had its digest in a file of its own."""
    index, before = packed / "train.index", pack.Pack(packed / "train.pack")
    content = index.read_bytes()[: -seals.LENGTH].replace(b"intl-bench pack 2", b"intl-bench pack 1")
    index.write_bytes(content)
    index.with_name("train.index.sha256").write_text(f"{files.sha256(index)}  train.index\n")
    after = pack.Pack(packed / "train.pack")
    assert (after.images == before.images).all()
    assert after.read(3) == before.read(3)
    flip(index, 10)
    with pytest.raises(InputError, match="its bytes have changed"):
        opened(packed)


def test_a_missing_split(folder: Path, packed: Path) -> None:
    for file in packed.glob("val.*"):
        file.unlink()
    with pytest.raises(InputError, match=r"val\.pack: missing; expected val\.pack and val\.index of") as error:
        opened(packed, "test")
    one_line(error)
    assert_same_images(opened(packed), opened(folder))


def test_packs_of_two_data_sets(folder: Path, packed: Path) -> None:
    for split in ("train", "val"):
        (folder / split / "n1").rename(folder / split / "n3")
    pack_command.write(pack_command.prepare(folder, folder.parent / "other"))
    for file in (folder.parent / "other").glob("val.*"):
        shutil.copy(file, packed)
    with pytest.raises(InputError, match=r"val\.pack: its classes are not those of train\.pack") as error:
        opened(packed, "test")
    one_line(error)


# The command


def test_a_pack_with_a_replaced_image_is_not_complete(
    folder: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next(path for path in (folder / "train").glob("*/*") if path.is_file())
    image.write_bytes(image.read_bytes() + b"more")
    assert main(["data", "pack", str(folder), str(packed)]) == 2
    assert "train.pack: contains other images" in capsys.readouterr().err


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "new" / "place"
    words = ["data", "pack", str(folder), str(out)]
    assert main([*words, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "train.pack: 13 images of 3 classes" in planned
    assert not out.parent.exists()
    assert main(words) == 0
    assert capsys.readouterr().out == planned
    written = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert main(words) == 0
    assert capsys.readouterr().out.count("exists already") == 2
    (out / "val.index").unlink()  # as after an interrupted command
    assert main(words) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        name: content for name, (content, _) in written.items()
    }
    assert (out / "train.pack").stat().st_mtime_ns == written["train.pack"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "val/n0/n0_0.JPEG").rename(folder / "val/n0/new.JPEG"), "val.pack: contains other"),
        (lambda folder: os.truncate(folder.parent / "packed/val.pack", 99), "val.pack: 99 bytes, expected"),
        (lambda folder: (folder.parent / "packed/val").mkdir(), "packed/val: a folder of images"),
        (lambda folder: shutil.rmtree(folder / "val/n0"), "val/n0: no images of this class"),
        (lambda folder: shutil.rmtree(folder), "folder/train"),
        (
            lambda folder: (
                pack_command.write(pack_command.prepare(folder, folder.parent / "two"))
                or shutil.rmtree(folder)
                or (folder.parent / "two").rename(folder)
            ),
            "folder: packed already",
        ),
    ],
)
def test_invalid_folders_are_rejected(
    folder: Path, packed: Path, change: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in packed.iterdir()}
    change(folder)
    assert main(["data", "pack", str(folder), str(packed)]) == 2
    assert message in capsys.readouterr().err
    after = {path.name: path.stat().st_mtime_ns for path in packed.iterdir() if path.is_file()}
    assert before.keys() == after.keys()


def test_too_little_space_is_an_error_before_writing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        os.truncate(folder / "train/n0/n0_0.JPEG", shutil.disk_usage(tmp_path).free + 2**30)
    except OSError:
        pytest.skip("this file system has no files with holes")
    assert main(["data", "pack", str(folder), str(tmp_path / "packed")]) == 4
    assert "GiB needed" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_a_full_disk_leaves_no_incomplete_pack(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Simulate a full disk by a file size limit below the size of the pack."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        code = main(["data", "pack", str(folder), str(tmp_path / "packed")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "cannot write" in line
    assert "train.pack" in line
    assert list((tmp_path / "packed").iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_an_interrupted_command_keeps_only_complete_packs(
    folder: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, read = tmp_path / "packed", FolderSource.content

    def content(self: FolderSource, index: int) -> bytes:
        if self.file(index).endswith("val/n1/n1_0.JPEG"):
            os.kill(os.getpid(), number)
        return read(self, index)

    monkeypatch.setattr(FolderSource, "content", content)
    assert main(["data", "pack", str(folder), str(out)]) == code
    monkeypatch.undo()
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped by {number.name} before {out / 'val.pack'} was complete" in last_line
    assert sorted(path.name for path in out.iterdir()) == ["train.index", "train.pack"]
    assert main(["data", "pack", str(folder), str(out)]) == 0
    assert_same_images(opened(out, "test"), opened(folder, "test"))


def test_an_index_maps_its_records(packed: Path) -> None:
    """Processes share the memory of the records."""
    images = pack.Pack(packed / "train.pack").images
    base = images
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert base.filename == packed / "train.index"
