"""Test image folders with odd names, lists written elsewhere, system files, `data.skip` and classes without images."""

import codecs
import shlex
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_bytes import saved
from PIL import Image
from torchvision.datasets import ImageFolder
from transfer_cases import make_folder

from intl_bench.cli import main
from intl_bench.core.data_folders import SYSTEM_FOLDER
from intl_bench.core.errors import InputError
from pretrain.images import folders
from pretrain.images.data import DataConfig, FileSource, open_source
from pretrain.images.fingerprint import fingerprint
from pretrain.images.names import fold

PNG = saved(Image.new("RGB", (5, 5)), "PNG")
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(60)
COMPOSED, SEPARATE = (unicodedata.normalize(form, "Brésil café") for form in ("NFC", "NFD"))
SPACES = ["a b", "a\u00a0b", "a\u2003b", "a\u3000b", "a  b", " a b"]


@pytest.fixture(autouse=True)
def fresh_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders._note.cache_clear()
    monkeypatch.chdir(tmp_path)


def make(root: Path, files: list[str], content: bytes = PNG) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    return root


def opened(root: Path, split: str = "train", **options: object) -> FileSource:
    source = open_source(DataConfig(root=str(root), **options), split)  # type: ignore[arg-type]
    assert isinstance(source, FileSource)
    return source


def files_of(source: FileSource) -> list[str]:
    return [file.decode() for file in source.files.tolist()]


# System files


SYSTEM = [
    *("train/.DS_Store", "train/Thumbs.db", "train/desktop.ini", "train/a/.DS_Store", "train/a/Thumbs.db"),
    *("train/.ipynb_checkpoints/x.png", "train/__MACOSX/a/x.png", "train/@eaDir/x.png", "train/$RECYCLE.BIN/x.png"),
    *("train/a/.ipynb_checkpoints/1-checkpoint.png", "train/a/@eaDir/1.png/SYNOFILE_THUMB_M.png"),
    *("train/a/deep/__MACOSX/1.png", "train/lost+found/x.png", "train/System Volume Information/x.png"),
    *("train/__pycache__/x.png", "train/a/@SynoResource/x.png", "train/#eadir/x.png", "train/_gsdata_/x.png"),
    "train/a/CVS/x.png",
    *("val/.ipynb_checkpoints/x.png",),
]
CLEAN = ["train/a/1.png", "train/a/deep/2.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"]


def test_system_files_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, other = make(tmp_path / "clean", CLEAN), make(tmp_path / "other", [*CLEAN, *SYSTEM])
    make(other, ["train/a/._1.png", "train/b/._1.png", "val/a/._1.png"], APPLE_DOUBLE)
    for split, count in (("train", 16), ("test", 2)):
        expected = opened(clean, split)
        assert capsys.readouterr().err == ""
        found = opened(other, split)
        assert files_of(found) == files_of(expected)
        assert found.class_names == expected.class_names == ["a", "b"]
        assert fingerprint(found) == fingerprint(expected)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"other/{folders.FOLDERS[split]}: {count} system files or folders ignored, such as " in line
        opened(other, split)
        assert capsys.readouterr().err == "", "the note comes once"
    theirs = ImageFolder(clean / "train")
    source = opened(clean)
    assert [source.file(index) for index in range(len(source))] == [file for file, _ in theirs.samples]


def test_an_image_whose_name_begins_like_a_system_file_stays(tmp_path: Path) -> None:
    make(tmp_path, ["train/a/._1.png", "train/a/.hidden.png"])
    assert files_of(opened(tmp_path)) == ["a/._1.png", "a/.hidden.png"]


def test_a_pack_has_no_system_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, other = make(tmp_path / "clean", CLEAN), make(tmp_path / "other", [*CLEAN, *SYSTEM])
    make(other, ["train/a/._1.png"], APPLE_DOUBLE)
    assert main(["data", "pack", "other", "packed"]) == 0
    printed = capsys.readouterr()
    assert "packed/train.pack: 3 images of 2 classes" in printed.out
    assert "other/train: 15 system files or folders ignored" in printed.err
    assert fingerprint(opened(tmp_path / "packed")) == fingerprint(opened(clean))


# data.skip


@pytest.mark.parametrize("packed", [False, True])
def test_skip(packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["train/a/broken_1.png", "train/a/deep/broken_2.png", "val/b/broken_1.png"]
    root = make(tmp_path / "data", [*CLEAN, *bad, "train/c/1.png", "val/c/1.png"])
    clean = make(tmp_path / "clean", CLEAN)
    if packed:
        assert main(["data", "pack", "data", "packed"]) == 0
        root = tmp_path / "packed"
        capsys.readouterr()
    for split, count in (("train", "2 files"), ("test", "1 file")):
        part = opened(root, split, skip=("*/broken_*.png", "c"))
        assert fingerprint(part) == fingerprint(opened(clean, split)) != fingerprint(opened(root, split))
        assert f"leaves out 1 class folder and {count} of other classes" in capsys.readouterr().err
        assert part.class_names == ["a", "b"]
    with pytest.raises(InputError, match=r"no images of .*data.skip=\[\"b\"\]'"):
        opened(root, skip=("b/*",))
    with pytest.raises(ValueError, match=r"data\.kind=shapes has no image files"):
        DataConfig(kind="shapes", skip=("a",))


@pytest.mark.parametrize("packed", [False, True])
def test_a_pattern_of_one_split(packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "data", [*CLEAN, "train/b/2.png", "val/b/2.png"])
    if packed:
        assert main(["data", "pack", "data", "packed"]) == 0
    root = tmp_path / ("packed" if packed else "data")
    capsys.readouterr()
    assert files_of(opened(root, skip=("train/b/2.png", "val/*/1.png"))) == ["a/1.png", "a/deep/2.png", "b/1.png"]
    assert "matches no" not in capsys.readouterr().err
    assert files_of(opened(root, "test", skip=("train/b/2.png",))) == ["a/1.png", "b/1.png", "b/2.png"]
    assert capsys.readouterr().err == "", "nothing is left out there"


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_may_be_called_train(packed: bool, tmp_path: Path) -> None:
    make(
        tmp_path / "data",
        [f"{split}/{file}.png" for split in ("train", "val") for file in ("train/1", "train/2", "a/1")],
    )
    if packed:
        assert main(["data", "pack", "data", "packed"]) == 0
    for split in ("train", "test"):
        part = opened(tmp_path / ("packed" if packed else "data"), split, skip=("train/2*",))
        assert files_of(part) == ["a/1.png", "train/1.png"]
        assert part.name_to_skip(1) == ("train/1.png" if split == "train" else "val/train/1.png")


@pytest.mark.parametrize("packed", [False, True])
def test_a_pattern_that_matches_nothing_is_named(
    packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "data", [*CLEAN, "train/b/x [1].png", "val/a/only.png"])
    if packed:
        assert main(["data", "pack", "data", "packed"]) == 0
    root = tmp_path / ("packed" if packed else "data")
    capsys.readouterr()
    opened(root, skip=("c", "a/only.png", "val/b/2.png", "b/x [1].png", "b/x*", "b/*x*"))
    notes = [line for line in capsys.readouterr().err.splitlines() if "matches no class folder and no image" in line]
    assert [line.split("'")[1] for line in notes] == ["c", "val/b/2.png", "b/x [1].png"]
    assert [line.endswith("; a [ of a name is written [[]") for line in notes] == [False, False, True]


def test_skip_is_read_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "data", classes=3, train=8, test=2)
    make(tmp_path / "data", ["train/n00000000/broken_1.png", "train/n00000001/._x.png"], b"\0 no image")
    tiny = ["backbone.name=resnet10_narrow", "projector.hidden=32", "projector.out=64", "batch_size=24", "epochs=1"]
    words = ["pretrain", "demo", *tiny, "warmup_epochs=0", "device=cpu", "data.kind=imagefolder", "data.root=data"]
    assert main([*words, "workers=0"]) == 2
    error = capsys.readouterr().err
    assert "broken_1.png: not a readable image" in error
    assert error.count("data/train: 1 system file or folder ignored, such as 'n00000001/._x.png'") == 1
    assert main([*words, "workers=0", 'data.skip=["*/broken_*"]']) == 0
    error = capsys.readouterr().err
    assert error.count("data/train: data.skip leaves out 1 file\n") == 1
    assert error.count("data.skip") == 1, "nothing is left out of val"


# Classes without images


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["val/a/1.png"], "the class is in data/train, but this folder does not exist"),
        (["val/a/1.png", "val/b/"], "the folder is empty"),
        (["val/a/1.png", "val/b/1.gif", "val/b/notes"], "none of its 2 files has a suffix of images"),
        (["val/a/1.png", "val/b/.cache/1.png"], "its images are those of the operating system"),
    ],
)
def test_a_class_without_test_images_is_explained(files: list[str], reason: str, tmp_path: Path) -> None:
    root = make(tmp_path / "data", ["train/a/1.png", "train/b/1.png"])
    for file in files:
        if file.endswith("/"):
            (root / file).mkdir(parents=True)
        else:
            make(root, [file])
    with pytest.raises(InputError) as error:
        opened(Path("data"), "test")
    message = str(error.value)
    assert message.startswith(f"data/val/b: no images of this class: {reason}; 1 of 2 classes have none here; expected")
    assert message.endswith("""leave classes out with 'data.skip=["b"]'""")
    assert "\n" not in message
    part = opened(Path("data"), "test", skip=("b",))
    assert part.class_names == ["a"]


def test_a_class_without_test_images_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "data", ["train/a/1.png", "train/b/1.png", "val/a/1.png"])
    assert main(["data", "pack", "data", "packed"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "intl-bench: data/val/b: no images of this class: the class is in data/train, but this folder"
    )
    assert not (tmp_path / "packed").exists()


def test_the_proposed_setting_works_for_any_name(tmp_path: Path) -> None:
    name = "it's [b]*"
    make(tmp_path, ["train/a/1.png", f"train/{name}/1.png", "val/a/1.png"])
    with pytest.raises(InputError) as error:
        opened(tmp_path, "test")
    (word,) = shlex.split(str(error.value).rpartition("leave classes out with ")[2])
    assert opened(tmp_path, "test", skip=tuple(yaml.safe_load(word.removeprefix("data.skip=")))).class_names == ["a"]


def test_an_unknown_test_class_can_be_left_out(tmp_path: Path) -> None:
    make(tmp_path, [*CLEAN, "val/new/1.png"])
    with pytest.raises(InputError, match=r"val/new: unknown class; .* leave it out with 'data.skip=\[\"new\"\]'"):
        opened(tmp_path, "test")
    assert opened(tmp_path, "test", skip=("new",)).class_names == ["a", "b"]


# Names


def write_list(path: Path, lines: list[str], encoding: str = "utf-8", end: str = "\n") -> str:
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-le": codecs.BOM_UTF32_LE}
    path.write_bytes(marks.get(encoding, b"") + "".join(line + end for line in lines).encode(encoding))
    return str(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_class_lists_in_any_encoding(encoding: str, end: str, tmp_path: Path) -> None:
    names = [COMPOSED, *SPACES, "日本", "x\u0085y", "tench"]
    make(tmp_path, [f"train/{name}/1.png" for name in [*names, "left out"]])
    classes = write_list(tmp_path / "classes.txt", [*names, "", "  "], encoding, end)
    assert opened(tmp_path, classes=classes).class_names == sorted(names)


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        (COMPOSED, SEPARATE),
        (SEPARATE, COMPOSED),
        ("a b", "a\u00a0b"),
        ("a\u3000b", "a b"),
        ("a b", " a b\t"),
        ("a", "a/"),
        ("a", "a\\"),
    ],
)
def test_class_lists_in_another_spelling(on_disk: str, written: str, tmp_path: Path) -> None:
    make(tmp_path, [f"train/{on_disk}/1.png", "train/other/1.png"])
    classes = write_list(tmp_path / "classes.txt", [written])
    assert opened(tmp_path, classes=classes).class_names == [on_disk]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '"Tench"',
            "'\"Tench\"' is not a class folder of the training images: quotation marks and commas are parts of a",
        ),
        ("`a b`,", ": quotation marks and commas are parts of a name; write a b"),
        ("# birds", ": a list has no comments; remove the line"),
        ("class name", ": a list has no header; remove the line"),
        ("Tench,0", ": a line has one name and no second column; write Tench"),
        ("Tench 0", ": a line has one name and no second column; write Tench"),
        ("tench", "; did you mean 'Tench'?"),
        ("train/Tench/", "; did you mean 'Tench'?"),
        ("Tenhc", "; did you mean 'Tench'?"),
        ("plate_2", "'plate_2' is not a class folder of the training images"),
    ],
)
def test_a_class_list_that_names_nothing_is_explained(line: str, message: str, tmp_path: Path) -> None:
    make(tmp_path, ["train/Tench/1.png", "train/a b/1.png", "train/plate_1/1.png"])
    with pytest.raises(InputError) as error:
        opened(tmp_path, classes=write_list(tmp_path / "classes.txt", ["a b", line]))
    assert message in str(error.value)
    assert ("mean" in str(error.value)) == ("mean" in message)


def test_a_test_folder_of_a_similar_name_is_named(tmp_path: Path) -> None:
    make(tmp_path, ["train/B/1.png", "train/a/1.png", "val/a/1.png", "val/b/1.png"])
    with pytest.raises(InputError, match=r"val/b: unknown class; .*; did you mean 'B'\?$"):
        opened(tmp_path, "test")


def test_a_bad_image_names_the_setting_that_leaves_it_out(tmp_path: Path) -> None:
    make(tmp_path, CLEAN)
    make(tmp_path, ["train/b/it's [1].png"], b"no image")
    with pytest.raises(InputError) as error:
        opened(tmp_path).image(files_of(opened(tmp_path)).index("b/it's [1].png"))
    word = shlex.split(str(error.value).partition("leave it out with ")[2])[0].rstrip(",")
    part = opened(tmp_path, skip=tuple(yaml.safe_load(word.removeprefix("data.skip="))))
    assert files_of(part) == ["a/1.png", "a/deep/2.png", "b/1.png"]


def test_a_class_list_with_two_meanings_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ["train/a\u00a0b/1.png", "train/a b/1.png"])
    write_list(tmp_path / "classes.txt", ["a b"])
    assert opened(tmp_path, classes=str(tmp_path / "classes.txt")).class_names == ["a b"]
    write_list(tmp_path / "classes.txt", ["a\u3000b"])
    with pytest.raises(InputError, match=r"can mean 'a b' or 'a\\xa0b', which differ only in"):
        opened(tmp_path, classes=str(tmp_path / "classes.txt"))


def test_a_list_in_utf_16_without_a_mark_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ["train/a/1.png"])
    (tmp_path / "classes.txt").write_bytes("a\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"zero bytes, as UTF-16 has.*; save it as UTF-8"):
        opened(tmp_path, classes=str(tmp_path / "classes.txt"))


def test_folders_of_one_class_in_two_spellings(tmp_path: Path) -> None:
    """A data set whose parts were copied from macOS and from Linux."""
    root = make(tmp_path, [f"train/{COMPOSED}/1.png", "train/a/1.png", f"val/{SEPARATE}/1.png", "val/a/1.png"])
    part = opened(root, "test")
    assert part.class_names == opened(root).class_names == [COMPOSED, "a"]
    assert [part.class_names[label] for label in part.labels] == [
        unicodedata.normalize("NFC", file.split("/")[0]) for file in files_of(part)
    ]
    make(root, [f"val/{COMPOSED}/1.png"])
    with pytest.raises(InputError, match="can be the folder of the class"):
        opened(root, "test")


# A name that ext4 and lists can hold, and that is not that of a system folder.
ODD_NAMES = st.text(
    st.characters(exclude_characters="/\0\r\n", exclude_categories=("Cs",)), min_size=1, max_size=12
).filter(lambda name: not name.startswith(".") and name.strip() and not SYSTEM_FOLDER.fullmatch(name))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(ODD_NAMES, min_size=1, max_size=4, unique=True), form=st.sampled_from(["NFC", "NFD"]))
def test_odd_names(names: list[str], form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any names are classes and files, as with torchvision, and a list finds each exact one."""
    root = make(tmp_path_factory.mktemp("odd"), [f"train/{name}/{name}.png" for name in names])
    source = opened(root)
    theirs = ImageFolder(root / "train")
    assert source.class_names == theirs.classes
    assert [source.file(index) for index in range(len(source))] == [file for file, _ in theirs.samples]
    classes = write_list(root / "classes.txt", names)
    assert opened(root, classes=classes).class_names == sorted(names)
    write_list(root / "classes.txt", [unicodedata.normalize(form, name) for name in names])
    if len({fold(name) for name in names}) == len(names):
        assert opened(root, classes=classes).class_names == sorted(names)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    system=st.lists(st.sampled_from(SYSTEM), unique=True),
    clean=st.lists(st.sampled_from(CLEAN[1:3]), unique=True).map(lambda files: [CLEAN[0], *files]),
)
def test_any_system_files(system: list[str], clean: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    one, other = (tmp_path_factory.mktemp("folder") for _ in range(2))
    expected = opened(make(one, clean))
    found = opened(make(other, [*clean, *system]))
    assert np.array_equal(found.files, expected.files)
    assert fingerprint(found) == fingerprint(expected)
