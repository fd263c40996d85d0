"""`data check` on image folders, packs and arrays: what would stop a run, what to know, and the text."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from image_bytes import png, saved, without_adobe_marker
from PIL import Image

from intl_bench.cli import main
from intl_bench.core.errors import InputError
from intl_bench.core.progress import Progress
from pretrain.images import check_files, folders
from pretrain.images.check import check
from pretrain.images.data import DataConfig, open_source
from pretrain.images.findings import Finding, Report

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders._note.cache_clear()
    monkeypatch.chdir(tmp_path)


def picture(width: int = 48, height: int = 40) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 255, (height, width, 3), dtype=np.uint8))


def put(file: str, content: bytes) -> None:
    path = Path("photos") / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def make_clean(classes: Sequence[str] = ("cat", "dog"), train: int = 3) -> None:
    for name in classes:
        for number in range(train):
            put(f"train/{name}/{number}.png", saved(picture(), "PNG"))
        put(f"val/{name}/0.png", saved(picture(), "PNG"))


def deep(channels: int) -> bytes:
    return png(RNG.integers(0, 65535, (40, 40, channels), dtype=np.uint16))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(), "JPEG", exif=exif)


def find(report: Report, text: str) -> Finding:
    (found,) = [finding for finding in report.findings if text in finding.what]
    return found


def test_a_clean_folder(capsys: pytest.CaptureFixture[str]) -> None:
    make_clean()
    assert main(["data", "check", "photos"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "photos: image folder, 2 classes",
        "",
        *printed.out.splitlines()[2:5],
        "",
        "Nothing would stop a run.",
        "",
        "class  train  val",
        "cat        3    1",
        "dog        3    1",
    ]
    assert "checking images" in printed.err
    assert "intl-bench" not in printed.err


CONTENTS = {
    "bad.jpg": saved(picture(), "JPEG")[:900],
    "empty.png": b"",
    "text.png": b"no image",
    "float.tif": saved(Image.fromarray(RNG.random((40, 40), dtype=np.float32)), "TIFF"),
    "gray.png": saved(picture().convert("L"), "PNG"),
    "alpha.png": saved(picture().convert("RGBA"), "PNG"),
    "palette.png": saved(picture().convert("P"), "PNG"),
    "deep gray.png": deep(1),
    "deep.png": deep(3),
    "cmyk.jpg": saved(picture().convert("CMYK"), "JPEG"),
    "no marker.jpg": without_adobe_marker(saved(picture().convert("CMYK"), "JPEG")),
    "rotated.jpg": rotated(),
    "blank.png": saved(Image.new("RGB", (40, 40), "red"), "PNG"),
    "tiny.png": saved(picture(3, 2), "PNG"),
    "long.png": saved(picture(400, 40), "PNG"),
}
UNREADABLE = ["bad.jpg", "empty.png", "float.tif", "text.png"]
TRAITS = {
    "images of 16 bits for each color": ["deep gray.png", "deep.png"],
    "transparency, which is dropped": ["alpha.png"],
    "images in CMYK": ["cmyk.jpg"],
    "without Adobe's marker": ["no marker.jpg"],
    "gray images": ["gray.png"],
    "EXIF orientation, which is not applied": ["rotated.jpg"],
    "of a single color": ["blank.png", "no marker.jpg"],
    "a side of less than 32 pixels": ["tiny.png (3 x 2)"],
    "times as long as wide": ["long.png (400 x 40)"],
}


@pytest.mark.parametrize("how", ["in this process", "in workers", "packed"])
def test_every_image_is_decoded_and_described(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clean()
    for name, content in CONTENTS.items():
        put(f"train/cat/{name}", content)
    root = "photos"
    if how == "in workers":
        monkeypatch.setattr(check_files, "_FEW", 0)
        monkeypatch.setattr(check_files, "_PART", 2)
    if how == "packed":
        assert main(["data", "pack", "photos", "packed"]) == 0
        root = "packed"
    report = check(DataConfig(root=root))
    bad = find(report, "unreadable images")
    assert [entry.split(":")[0] for entry in bad.entries] == [f"train/cat/{name}" for name in UNREADABLE]
    assert bad.entries[2].startswith("train/cat/float.tif: mode F: floats have no defined white; expected 8 or 16 bits")
    assert bad.entries[1::2] == [
        "train/cat/empty.png: the file is empty",
        "train/cat/text.png: not an image: expected JPEG, PNG, BMP, WEBP, TIFF, GIF, PPM",
    ]
    for what, names in TRAITS.items():
        finding = find(report, what)
        assert list(finding.entries) == [f"train/cat/{name}" for name in names], what
        assert not finding.stops
    assert report.stops == 1
    # What the report calls unreadable is what stops a run.
    source, stopped = open_source(DataConfig(root=root), "train"), []
    for index in range(len(source)):
        try:
            source.image(index)
        except InputError:
            stopped.append(Path(source.file(index)).name)
    assert stopped == UNREADABLE


def test_processes_are_at_most_the_cores_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    make_clean()
    started: list[int] = []
    monkeypatch.setattr(check_files, "_FEW", 0)
    monkeypatch.setattr(check_files.machine, "cores", lambda: 3)
    monkeypatch.setattr(check_files, "iterate", lambda make, steps, workers, pin: started.append(workers) or [])
    source = open_source(DataConfig(root="photos"), "train")
    assert [*check_files.examine(source, Progress(len(source), label="x"))] == []
    assert started == [3]


def test_equal_images_are_found_by_their_pixels() -> None:
    make_clean()
    one, other, third = picture(), picture(), picture()
    put("train/cat/a.png", saved(one, "PNG"))
    put("train/cat/b.bmp", saved(one, "BMP"))
    put("train/dog/c.png", saved(other, "PNG"))
    put("val/dog/d.tif", saved(other, "TIFF"))
    put("train/cat/e.png", saved(third, "PNG"))
    put("train/dog/f.png", saved(third, "PNG", compress_level=1))
    report = check(DataConfig(root="photos"))
    assert find(report, "there more than once").entries == ["train/cat/a.png = train/cat/b.bmp"]
    assert find(report, "in train and val").entries == ["train/dog/c.png = val/dog/d.tif"]
    assert find(report, "with several labels").entries == ["train/cat/e.png = train/dog/f.png"]
    assert report.stops == 0


def test_all_faults_of_classes_are_found_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    make_clean(("cat", "Cat", "dogs", "dog"), train=2)
    for number in range(30):
        put(f"train/dog/more {number}.png", saved(picture(), "PNG"))
    put("val/horse/0.png", saved(picture(), "PNG"))
    put("val/cow/0.png", saved(picture(), "PNG"))
    put("train/cat/bad.jpg", b"no image")
    put("train/cat/photo.heic", b"")
    put("train/beside.png", saved(picture(), "PNG"))
    put("train/cat/@eaDir/x.png", b"")
    put("train/cat/@eaDir/x.txt", b"")
    put("train/cat/_more/notes.txt", b"")
    Path("photos/train/nothing").mkdir()
    assert main(["data", "check", "photos"]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        "intl-bench: photos: 5 kinds of faults would stop a run; what they are is printed above"
    )
    report = check(DataConfig(root="photos"))
    stops = [finding.what for finding in report.findings if finding.stops]
    assert [what.split(":")[0] for what in stops] == [
        *("photos/train/nothing", "photos/val/cow", "photos/val/horse", "photos/val/nothing", "unreadable images")
    ]
    assert find(report, "names are almost equal").entries == ["'Cat' and 'cat'", "'dog' and 'dogs'"]
    assert find(report, "unequal classes").what.startswith("train: unequal classes: 'dog' has 32 images, 'Cat' has 2;")
    assert list(find(report, "files that are not read").entries) == [
        *("train/beside.png", "train/cat/photo.heic", "train/cat/_more/notes.txt")
    ]
    assert report.groups == [("Cat", [2, 1]), ("cat", [3, 1]), ("dog", [32, 1]), ("dogs", [2, 1])]
    assert "data.skip leaves out" not in printed.out
    # The settings that the report names leave nothing that stops a run.
    skip = ["nothing", "cow", "horse", "cat/bad.jpg"]
    assert main(["data", "check", "photos", f"data.skip={skip}"]) == 0


def test_the_text_fits_the_terminal_and_names_all_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make_clean([f"class {number}" for number in range(25)], train=1)
    for number in range(12):
        put(f"train/class 0/bad {number}.jpg", b"no image")
        put(f"train/class 1/gray {number}.png", saved(picture().convert("L"), "PNG"))
    assert main(["data", "check", "photos"]) == 2
    short = capsys.readouterr().out
    (setting,) = [line for line in short.splitlines() if "data.skip=" in line]
    lines = [line for line in short.splitlines() if line != setting]
    assert max(map(len, lines)) <= 80
    assert "\n".join(lines).count("bad ") == 5
    assert "    and 7 more\n" in short
    assert "gray 1.png, train/class 1/gray 10.png and 9 more" in " ".join(short.split())
    assert "... 5 more" in short
    assert main(["data", "check", "photos", "--all"]) == 2
    whole = capsys.readouterr().out
    assert whole.replace(setting, "").count("bad ") == whole.count("gray ") - 1 == 12
    assert all(f"class {number} " in whole for number in range(25))


def test_the_printed_setting_can_be_pasted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    make_clean()
    for file in ("train/cat/it's a  broken [1].png", "train/dog/1.png", "val/dog/2.png"):
        put(file, b"no image")
    assert main(["data", "check", "photos"]) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "data.skip=" in line]
    assert main(["data", "check", "photos", *shlex.split(line)]) == 0
    printed = capsys.readouterr()
    text = " ".join(printed.out.split())
    assert "photos/train: data.skip leaves out 2 files" in text
    assert "photos/val: data.skip leaves out 1 file " in text
    assert "matches no" not in text
    assert main(["data", "check", "photos", *shlex.split(line), "data.skip=nothing"]) == 2
    assert "'nothing' matches no class folder" in " ".join(capsys.readouterr().out.split())


def test_arrays_and_a_folder_without_val(capsys: pytest.CaptureFixture[str]) -> None:
    images = RNG.integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    images[4] = images[0]
    np.savez("x.npz", train_x=images[:4], train_y=[0, 1, 0, 1], test_x=images[3:], test_y=[0, 1])
    assert main(["data", "check", "x.npz"]) == 0
    printed = capsys.readouterr().out
    assert "x.npz: arrays, 2 classes" in printed
    assert "train 0 = val 1, train 3 = val 0" in printed
    assert "less than 32 pixels" not in printed, "all are small on purpose"
    put("train/a/1.png", saved(picture(), "PNG"))
    assert main(["data", "check", "photos"]) == 0
    assert "no folder photos/val: pre-training does not need it, the scores do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no data set is named; expected its folder or file"),
        (["nowhere"], "nowhere: no such file or folder; expected a data set"),
        (["photos", "epochs=3"], "epochs=3: expected a setting of the data"),
        (["photos", "data.skpi=x"], "data: unknown key 'skpi'; did you mean skip?"),
        (["photos", "data.classes=nowhere.txt"], "1 kind of fault would stop a run"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_clean()
    assert main(["data", "check", *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
