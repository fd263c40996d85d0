"""Fine-tuning on a part of the labels: lists of images, errors in lists, and training on photos."""

import dataclasses
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transfer_cases import make_checkpoint, make_folder, packaged

from intl_bench.cli import main
from intl_bench.core.errors import DamagedError, InputError
from intl_bench.records import RecordStore
from pretrain import states
from pretrain.images.data import DataConfig, FolderSource, normalization, open_source
from pretrain.images.loader import evaluation_batches
from transfer import finetune, sgd_classifier, sgd_selection


def names_of(root: Path, per_class: int) -> list[str]:
    return [path.name for folder in sorted((root / "train").iterdir()) for path in sorted(folder.iterdir())[:per_class]]


def write_list(path: Path, names: list[str]) -> Path:
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def folder_source(root: Path) -> FolderSource:
    source = open_source(DataConfig(kind="imagefolder", root=str(root)), "train")
    assert isinstance(source, FolderSource)
    return source


def settings_for(root: Path, **changes) -> finetune.FinetuneConfig:
    values = {
        "train_percent": 10,
        "workers": 0,
        "device": "cpu",
        "resize": 18,
        "crop": 16,
        "epochs": 2,
        "batch_size": 4,
        "head_lr": 3.0,
        "backbone_lr": 0.5,
    }
    return finetune.FinetuneConfig(data=DataConfig(kind="imagefolder", root=str(root)), **values | changes)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path / "data", classes=6, train=10, test=2)


def test_images_have_the_order_of_the_list(root: Path) -> None:
    names = ["n00000004_7.png", "n00000000_1.png", "n00000004_0.png", "n00000002_9.png", "n00000001_3.png"]
    part = finetune.listed_images(folder_source(root), write_list(root / "l.txt", names), 10)
    assert [Path(part.file(i)).name for i in range(len(part))] == names
    assert part.labels.tolist() == [4, 0, 4, 2, 1]
    assert len(part.class_names) == 6
    whole = folder_source(root)
    index = [whole.file(i) for i in range(len(whole))].index(part.file(0))
    assert (part.image(0) == whole.image(index)).all()


def test_lists_are_found_in_or_next_to_the_data_folder(root: Path) -> None:
    with pytest.raises(InputError) as raised:
        finetune.find_list(settings_for(root))
    for part in (str(root / "10percent.txt"), str(root.parent / "10percent.txt"), "file_list=", "simclr"):
        assert part in str(raised.value)
    above = write_list(root.parent / "10percent.txt", [])
    assert finetune.find_list(settings_for(root)) == above
    beside = write_list(root / "10percent.txt", [])
    assert finetune.find_list(settings_for(root)) == beside
    given = write_list(root / "mine.txt", [])
    assert finetune.find_list(settings_for(root, file_list=str(given))) == given
    with pytest.raises(InputError, match=r"1percent\.txt"):
        finetune.find_list(settings_for(root, train_percent=1))
    with pytest.raises(InputError, match=r"not found at .*other\.txt"):
        finetune.find_list(settings_for(root, file_list="other.txt"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["n00000000_1.png", "n00000000_99.png", "n00000009_1.png", "n00000001_1.png"],
            r"2 of its 4 .*n00000000_99\.png",
        ),
        (["n00000000_1.png"] * 2 + ["n00000001_1.png"] * 2, r"names 'n00000000_1\.png' more than once"),
        ([f"n00000000_{i}.png" for i in range(10)] * 6, "60 names for 60 images are not 10%"),
        (["n00000000_1.png"], "1 names for 60 images are not 10%"),
        ([], "0 names"),
    ],
)
def test_a_wrong_list_is_an_error(root: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finetune.listed_images(folder_source(root), write_list(root / "l.txt", names), 10)


def test_a_binary_list_is_an_error(root: Path) -> None:
    (root / "l.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        finetune.listed_images(folder_source(root), root / "l.txt", 10)


def test_run_trains_the_whole_network(root: Path) -> None:
    write_list(root / "10percent.txt", names_of(root, 1))
    work = root.parent / "work"
    outcome = finetune.run(make_checkpoint(), settings_for(root, batch_size=6), 0, folder=work)
    assert sorted(outcome.metrics) == ["best_top1", "best_top5", "top1", "top5"]
    assert outcome.details == {
        "best_epoch": outcome.details["best_epoch"],
        "bad_images": 0,
        "train_images": 6,
        "test_images": 12,
        "classes": 6,
    }
    state, _ = states.load(work / "state.pt")
    before = make_checkpoint().backbone
    changed = [key for key, value in before.items() if not torch.equal(state["model"][f"backbone.{key}"], value)]
    assert changed == list(before)
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    assert rates == pytest.approx([3.0 * 6 / 256, 0.5 * 6 / 256])
    for change in (
        {"history": []},
        {"history": [1] * len(state["history"])},
        {"history": [{"top1": 1e9}] * len(state["history"])},
        {"loss": None},
        {"loss": torch.ones(3)},
        {"bad_files": [1]},
    ):
        states.save(root.parent / "forged" / "state.pt", {**state, **change})
        with pytest.raises(DamagedError, match=f"{next(iter(change))} is .*; expected"):
            finetune.run(make_checkpoint(), settings_for(root, batch_size=6), 0, folder=root.parent / "forged")
    assert finetune.run(make_checkpoint(), settings_for(root, batch_size=6), 0, folder=work) == outcome
    other = finetune.run(make_checkpoint(), settings_for(root, batch_size=6), 1, folder=root.parent / "other")
    assert not torch.equal(
        states.load(root.parent / "other" / "state.pt")[0]["model"]["fc.weight"], state["model"]["fc.weight"]
    )
    assert other.details["train_images"] == 6


def test_the_last_batch_is_kept_as_in_the_authors_code(root: Path) -> None:
    """Six images in batches of four are two steps an epoch. Earlier versions left two of them out."""
    write_list(root / "10percent.txt", names_of(root, 1))
    steps = {}
    for drop_last in (False, True):
        folder = root.parent / str(drop_last)
        config = settings_for(root, drop_last=drop_last, crop=64)
        outcome = finetune.run(make_checkpoint(), config, 0, folder=folder)
        steps[drop_last] = states.load(folder / "state.pt")[0]["step"]
        assert outcome.details["train_images"] == 6
    assert steps == {False: 4, True: 2}  # of two epochs
    assert packaged("finetune", "imagenet").drop_last is False
    assert packaged("linear", "imagenet").drop_last is False
    assert packaged("linear", "cifar10").drop_last is True


def test_settings_are_passed_to_the_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_list(root / "10percent.txt", names_of(root, 1))
    received = []
    monkeypatch.setattr(
        sgd_selection, "train_classifier", lambda *given, **options: received.append((given[3].precision, options))
    )
    config = settings_for(root, precision="bf16", deterministic=True)
    finetune.run(make_checkpoint(), config, 0, folder=root.parent / "work")
    options = {"device": "cpu", "workers": 0, "folder": root.parent / "work", "deterministic": True}
    assert received == [("bf16", options)]


# Lists of files that are not named after their class

CLASSES = ["dog", "golden_retriever", "Brésil café", "a b"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images for each class: dog/0.png, ..., a b/39.png; and one name that two classes have."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "made", classes=4, train=10, test=2)
    for split, count in (("train", 10), ("val", 2)):
        for label, name in enumerate(CLASSES):
            target = tmp_path / "photos" / split / name
            target.mkdir(parents=True)
            for number in range(count):
                source = tmp_path / "made" / split / f"n{label:08d}" / f"n{label:08d}_{number}.png"
                (target / f"{10 * label + number}.png").write_bytes(source.read_bytes())
    for name in ("dog", "a b"):
        (tmp_path / "photos" / "train" / name / "same_1.png").write_bytes(b"")
    return tmp_path / "photos"


def listed(photos: Path, lines: list[str]) -> list[str]:
    part = finetune.listed_images(folder_source(photos), write_list(photos / "l.txt", lines), 10)
    found = [file.decode() for file in part.files.tolist()]
    assert [part.class_names[label] for label in part.labels] == [file.split("/")[0] for file in found]
    return found


@pytest.mark.parametrize(
    "lines",
    [
        ["{file}"],
        ["{path}"],
        ["./{path}"],
        ["train/{path}"],
        ["/data/photos/train/{path}"],
        ["{path} "],
        ["\ufeff{path}", "{path}"],
    ],
)
def test_lists_name_files_by_class_and_file(photos: Path, lines: list[str]) -> None:
    paths = ["golden_retriever/12.png", "dog/3.png", "Brésil café/25.png", "a b/39.png"]
    written = [lines[min(i, len(lines) - 1)].format(path=p, file=p.split("/")[1]) for i, p in enumerate(paths)]
    assert listed(photos, written) == paths


@pytest.mark.parametrize(
    "spell",
    [
        lambda path: path.replace("/", "\\"),
        lambda path: "C:\\data\\train\\" + path.replace("/", "\\"),
        lambda path: unicodedata.normalize("NFD", path),
        lambda path: path.replace(" ", "\u00a0"),
        lambda path: path + "\r",
    ],
)
def test_lists_in_another_spelling(photos: Path, spell: Callable[[str], str]) -> None:
    paths = ["golden_retriever/12.png", "dog/3.png", "Brésil café/25.png", "a b/39.png"]
    assert listed(photos, [spell(path) for path in paths]) == paths


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lists_in_another_encoding(photos: Path, encoding: str) -> None:
    lines = ["golden_retriever/12.png", "dog/3.png", "Brésil café/25.png", "39.png"]
    (photos / "l.txt").write_bytes("\r\n".join(lines).encode(encoding))
    part = finetune.listed_images(folder_source(photos), photos / "l.txt", 10)
    assert [CLASSES[i] for i in (1, 0, 2, 3)] == [part.class_names[label] for label in part.labels]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("same_1.png", r"'same_1.png' can mean 'a b/same_1.png' or 'dog/same_1.png'"),
        ("golden_retriever/3.png", r"1 of its 4 files are not in .*golden_retriever/3.png"),
        ("val/dog/3.png", r"1 of its 4 files are not in "),
        ("dog\\1.png", r"names 'dog/1.png' more than once, the second time as 'dog.*1.png'"),
        ("1.png", r"names 'dog/1.png' more than once, the second time as '1.png'"),
    ],
)
def test_lines_without_one_meaning_are_refused(photos: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        listed(photos, ["dog/1.png", "dog/2.png", "11.png", line])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"dog/3.png"', "quotation marks and commas are parts of a name; write dog/3.png"),
        ("'dog/3.png',", "quotation marks and commas are parts of a name; write dog/3.png"),
        ("# from dog", "'# from dog': a list has no comments; remove the line"),
        ("dog/3.png 0", "'dog/3.png 0': a line has one name and no second column; write dog/3.png"),
        ("dog/3.png,dog", "a line has one name and no second column; write dog/3.png"),
        ("file_name,label", "'file_name,label': a list has no header; remove the line"),
        ("dog/333.png", "use the data set that the list was made for, or write CLASS/FILE"),
    ],
)
def test_the_cause_of_a_line_that_names_nothing_is_named(photos: Path, line: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        listed(photos, [line, "11.png", "a b/39.png"])
    assert str(error.value).endswith(message)


TEXT = st.text(st.characters(exclude_characters="/\0\r\n\\", exclude_categories=("Cs",)), min_size=1, max_size=6)
NAMES = TEXT.filter(lambda name: name.strip() and not name.startswith((".", "@", "#", "$", "_")))
SPELLINGS: list[Callable[[str], str]] = [
    str,
    lambda path: path.replace("/", "\\"),
    lambda path: unicodedata.normalize("NFC", path),
    lambda path: unicodedata.normalize("NFD", path),
    lambda path: path.replace(" ", "\u3000"),
    lambda path: f"/home/me/train/{path}",
    lambda path: f"{path} ",
    lambda path: path.rpartition("/")[2],
]


@settings(max_examples=40)
@given(
    paths=st.lists(st.tuples(NAMES, NAMES), min_size=10, max_size=14, unique=True),
    chosen=st.integers(0, 9),
    spell=st.sampled_from(SPELLINGS),
)
def test_a_line_means_its_file_or_is_refused(
    paths: list[tuple[str, str]], chosen: int, spell: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the names: never another file, never a needless refusal of an exact name."""
    root = tmp_path_factory.mktemp("odd")
    for folder, name in paths:
        (root / "train" / folder).mkdir(parents=True, exist_ok=True)
        (root / "train" / folder / f"{name}.png").write_bytes(b"")
    wanted = f"{paths[chosen][0]}/{paths[chosen][1]}.png"
    source = folder_source(root)
    try:
        part = finetune.listed_images(source, write_list(root / "l.txt", [spell(wanted)]), 10)
    except InputError as error:
        reason = str(error)
    else:
        assert [file.decode() for file in part.files.tolist()] == [wanted]
        return
    assert "can mean" in reason
    assert spell(wanted) != wanted


def test_several_names_in_a_line(root: Path) -> None:
    (root / "l.txt").write_text("n00000004_7.png n00000000_1.png\tn00000002_9.png\nn00000001_3.png\n")
    part = finetune.listed_images(folder_source(root), root / "l.txt", 10)
    assert part.labels.tolist() == [4, 0, 2, 1]


def test_the_class_in_the_name_of_a_file_wins(tmp_path: Path) -> None:
    """As in earlier versions: other classes may have a file of the same name."""
    root = make_folder(tmp_path / "data", classes=2, train=10)
    (root / "train" / "n00000001" / "n00000000_1.png").write_bytes(b"")
    part = finetune.listed_images(
        folder_source(root), write_list(root / "l.txt", ["n00000000_1.png", "n00000001_1.png"]), 10
    )
    assert part.labels.tolist() == [0, 1]


def test_a_list_of_classes_and_files_from_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in photos.glob("train/*/same_1.png"):
        file.unlink()
    tiny = ["backbone.name=resnet10_narrow", "projector.hidden=32", "projector.out=64", "batch_size=32"]
    assert main(["pretrain", "demo", *tiny, "data.size=64", "epochs=1", "warmup_epochs=0", "device=cpu"]) == 0
    write_list(photos / "10percent.txt", ["dog\\3.png", "12.png", "Brésil café/25.png", "a b/39.png"])
    words = ["data.kind=imagefolder", "data.root=photos", "train_percent=10", "workers=0", "device=cpu", "epochs=1"]
    sizes = ["resize=18", "crop=16", "batch_size=4"]
    assert main(["finetune", "runs/pretrain/demo/seed0/checkpoint.pt", *words, *sizes]) == 0
    assert "finetune INTL photos seed 0: best_top1" in capsys.readouterr().out
    (record,) = RecordStore(Path("results/records")).load()
    assert record.protocol["train_images"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_percent": 5}, "1 or 10"),
        ({"epochs": 0}, "at least 1"),
        ({"backbone_lr": 0.0}, "more than 0"),
        ({"file_list": "a.txt", "label_seed": 0}, "label_seed=0: file_list=a.txt names the images"),
    ],
)
def test_impossible_settings_are_errors(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(settings_for(root), **changes)


@pytest.mark.parametrize("name", ["imagenet", "imagefolder"])
def test_packaged_configs_have_the_authors_settings(name: str) -> None:
    config = packaged("finetune", name)
    stamp = finetune.protocol(config)
    assert stamp == {
        "protocol": "fine-tuned on a share of the labels",
        "train_percent": 1,
        "labels": "drawn with seed 0",
        "selection": "last epoch",
        "optimizer": "SGD",
        "epochs": 20,
        "batch_size": 256,
        "last_batch": "kept",
        "head_lr": 0.2,
        "backbone_lr": 0.004,
        "weight_decay": 0.0,
        "resize": 256,
        "crop": 224,
        "normalization": "mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
        "precision": None,
    }


@pytest.mark.slow
def test_photos(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten photos of different classes are fitted within twelve steps."""
    monkeypatch.chdir(tmp_path)
    photos = test_data / "imagenet_sample"
    path = write_list(tmp_path / "l.txt", names_of(photos, 1)[:10])
    config = settings_for(
        photos, file_list=str(path), resize=72, crop=64, epochs=12, batch_size=10, head_lr=1.0, backbone_lr=0.2
    )
    checkpoint = make_checkpoint(name="resnet18", stem="imagenet")
    outcome = finetune.run(checkpoint, config, 0, folder=tmp_path / "work")
    assert outcome.details["train_images"] == 10
    assert outcome.details["test_images"] == 24
    assert outcome.metrics["top1"] <= outcome.metrics["best_top1"]
    assert outcome.metrics["top1"] <= outcome.metrics["top5"]
    model = sgd_classifier.Classifier(sgd_classifier.build_backbone_of(checkpoint), 24, frozen=False, seed=0)
    part = finetune.listed_images(folder_source(photos), path, 10)
    mean, std = normalization(config.data)
    ((images, labels),) = evaluation_batches(part, resize=72, crop=64, mean=mean, std=std, batch_size=10)
    with torch.no_grad():
        before = nn.functional.cross_entropy(model.train()(images), labels)
        model.load_state_dict(states.load(tmp_path / "work" / "state.pt")[0]["model"])
        after = nn.functional.cross_entropy(model.train()(images), labels)
    assert before == pytest.approx(math.log(24), abs=0.3)
    assert after < 1.5
