"""Fine-tuning with labels that are drawn: 1% and 10% of any data set, with a seed, and the list beside the record."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from transfer_cases import make_checkpoint, make_folder, packaged

from intl_bench.cli import main
from intl_bench.core.datasets import DATASETS
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from intl_bench.records import RecordStore
from pretrain.images import sample
from pretrain.images.data import DataConfig
from transfer import finetune

TINY = ["backbone.name=resnet10_narrow", "projector.hidden=32", "projector.out=64", "batch_size=32", "workers=0"]
QUICK = ["train_percent=10", "epochs=1", "workers=0", "device=cpu"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four classes of 20 images, of which one file has an odd name."""
    monkeypatch.chdir(tmp_path)
    root = make_folder(tmp_path / "photos", classes=4, train=20, test=2)
    for number in range(20):
        file = root / "train" / "n00000002" / f"n00000002_{number}.png"
        file.rename(file.with_name(f" été #{number}, \u3000x.png"))
    return root


def config_for(root: Path, **changes) -> finetune.FinetuneConfig:
    values = {"train_percent": 10, "workers": 0, "device": "cpu", "size": 16, "epochs": 1, "batch_size": 8}
    return finetune.FinetuneConfig(data=DataConfig(root=str(root)), **values | changes)


def prints(config: finetune.FinetuneConfig) -> str:
    return finetune.TASK.fingerprints(config)["train"]


def test_labels_are_drawn_with_a_seed(photos: Path) -> None:
    outcome = finetune.run(make_checkpoint(), config_for(photos), 0, folder=photos.parent / "work")
    assert outcome.image_list is not None
    files = [line.split("/")[0] for line in outcome.image_list.decode().splitlines()]
    assert {name: files.count(name) for name in files} == {f"n{label:08d}": 2 for label in range(4)}
    assert outcome.details["train_images"] == 8
    assert finetune.protocol(config_for(photos))["labels"] == "drawn with seed 0"
    assert (
        prints(config_for(photos))
        == prints(config_for(photos, label_seed=0))
        != prints(config_for(photos, label_seed=1))
    )


def test_the_saved_list_gives_the_same_images(photos: Path) -> None:
    """Whatever the names of the files."""
    drawn = config_for(photos, label_seed=3)
    _, _, lines = finetune.sources(drawn)
    assert lines is not None
    assert b" \xc3\xa9t\xc3\xa9 #" in lines
    (photos / "mine.txt").write_bytes(lines)
    listed = config_for(photos, file_list=str(photos / "mine.txt"))
    assert prints(listed) == prints(drawn)
    assert identity(listed) == identity(drawn)
    assert finetune.protocol(listed)["labels"] is None
    (photos / "10percent.txt").write_bytes(lines)
    assert prints(config_for(photos)) == prints(drawn)  # a list beside the images wins over a draw
    assert prints(config_for(photos, label_seed=0)) != prints(drawn)  # unless a draw is asked for


def test_a_percent_is_a_part_of_ten(photos: Path) -> None:
    whole = make_folder(photos.parent / "more", classes=2, train=150, test=1)
    one, ten = (finetune.sources(config_for(whole, train_percent=percent))[2] for percent in (1, 10))
    assert one is not None
    assert ten is not None
    assert len(one.splitlines()) == 3
    assert set(one.splitlines()) < set(ten.splitlines())
    with pytest.raises(InputError, match="train_percent=1: means 1 of the 80 images of 4 classes; expected at least 4"):
        prints(config_for(photos, train_percent=1))


def test_imagenet_needs_its_lists(tmp_path: Path) -> None:
    """A draw of ImageNet has another number of images than SimCLR's list, so it does not count as published."""
    config = config_for(tmp_path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, name="imagenet"))
    assert not finetune.are_drawn(config)
    with pytest.raises(InputError, match=r"10percent\.txt; set file_list=PATH, or label_seed=0 to draw the images"):
        finetune.find_list(config)
    facts = DATASETS["imagenet"]
    for percent, listed in facts.listed.items():
        assert sample.count_of(percent / 100, facts.train) != listed


def test_images_in_memory_are_named_by_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line: the list is beside the record, and gives the same result as a file list."""
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "demo", *TINY, "data.size=400", "max_steps=2", "device=cpu"]) == 0
    words = ["finetune", "runs/pretrain/demo/seed0/checkpoint.pt", *QUICK]
    assert main(words) == 0
    assert "labels: 40 training images, drawn with seed 0" in capsys.readouterr().err
    (record,) = RecordStore(Path("results/records")).load()
    (saved,) = Path("results/records/finetune").glob("*.txt")
    assert saved.with_suffix(".json") == Path(record.file)
    assert (record.protocol["labels"], record.protocol["train_images"]) == ("drawn with seed 0", 40)
    assert record.protocol["crop"] == 32
    numbers = [int(line) for line in saved.read_text().splitlines()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 40
    assert main([*words, f"file_list={saved}"]) == 0
    assert "already there" in capsys.readouterr().out
    for text, message in (
        ("400\n", "found '400'; expected the number of a training image, 0 to 399"),
        ("one\n", "found 'one'"),
        ("1\n" * 40, "has 1 more than once"),
        ("1\n2\n", "2 numbers for 400 images are not 10%"),
    ):
        saved.with_name("other.txt").write_text(text)
        assert main([*words, f"file_list={saved.with_name('other.txt')}"]) == 2
        assert message in capsys.readouterr().err


def test_the_protocol_of_small_images() -> None:
    assert (packaged("finetune", "default").resize, packaged("finetune", "default").crop) == (None, 32)
    small = packaged("finetune", "default", overrides=["size=64"])
    assert (small.resize, small.crop) == (64, 64)
    assert np.isclose(small.backbone_lr, packaged("finetune", "imagefolder").backbone_lr)
