"""From real images to a record; skips where the small real data sets are absent."""

from pathlib import Path

import pytest

from intl_bench import cli
from intl_bench.records import RecordStore
from transfer.convert import read

pytestmark = [pytest.mark.data, pytest.mark.slow]
SMALL = ["backbone.name=resnet10_narrow", "projector.hidden=64", "projector.out=64", "epochs=1", "workers=1"]


def test_cifar10_from_pixels_to_record(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data.kind=npz", "data.name=cifar10", f"data.root={test_data / 'cifar10_subset.npz'}"]
    run = ["pretrain", "cifar10_r18_intl", *SMALL, *data, "backbone.stem=imagenet", "batch_size=1024", "name=tiny"]
    assert cli.main(run) == 0
    checkpoint = "runs/pretrain/tiny/seed0/checkpoint.pt"
    assert cli.main(["knn", checkpoint]) == 0
    assert cli.main(["linear", checkpoint, "epochs=5", "--seeds", "2"]) == 0
    records = RecordStore(Path("results/records")).load()
    assert [record.task for record in records] == ["knn", "linear", "linear"]
    for record in records:
        assert record.dataset == "cifar10"
        assert record.scale == "reduced"
        assert (record.protocol["train_images"], record.protocol["test_images"]) == (5170, 1017)
        assert record.protocol["pretrain_images"] == 5170


def test_photos_through_all_six_crops(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = test_data / "imagenet_sample"
    run = [
        "pretrain",
        "imagenet_r50_intl_multicrop_100ep",
        *SMALL,
        f"data.root={photos}",
        "data.name=photos",
        "batch_size=48",
    ]
    run += ["name=six"]
    assert cli.main(run) == 0
    path = Path("runs/pretrain/six/seed0/checkpoint.pt")
    assert read(path).details["images"] == 96
    listed = sorted(file.name for file in (photos / "train").rglob("*.JPEG"))[::10]
    Path("list.txt").write_text("\n".join(listed) + "\n")
    run = ["finetune", str(path), "train_percent=10", "file_list=list.txt", "epochs=2", "batch_size=5", "workers=0"]
    assert cli.main([*run, "crop=64", "resize=72"]) == 0
    (record,) = RecordStore(Path("results/records")).load()
    assert record.dataset == "photos"
    assert record.scale == "reduced"
    assert record.protocol["train_percent"] == 10
    assert record.protocol["train_images"] == len(listed) == 10
    assert cli.main(["tables", "--table", "1", "--format", "markdown"]) == 0
