"""The folder of a run is accepted where a checkpoint is."""

from pathlib import Path

import pytest
import torch

from intl_bench.cli import main
from intl_bench.core.errors import InputError
from intl_bench.core.run_folders import checkpoint_in
from pretrain.backbone import build_backbone
from transfer.convert import read

Capture = pytest.CaptureFixture[str]
TINY = [
    *(
        "data.kind=shapes",
        "data.size=160",
        "batch_size=32",
        "epochs=1",
        "warmup_epochs=0",
        "workers=0",
        "save_minutes=9",
    ),
    *("backbone.name=resnet10_narrow", "projector.hidden=16", "projector.out=16", "views.size=32", "spectrum_every=0"),
]


def make(path: Path) -> Path:
    path.mkdir(parents=True)
    torch.save(build_backbone("resnet10_narrow").state_dict(), path / "checkpoint.pt")
    return path


def test_a_file_and_an_unknown_folder_stay_as_they_are(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "x.pt"):
        assert checkpoint_in(path) == path


def test_the_folder_of_a_run_and_that_of_its_only_seed_mean_its_checkpoint(tmp_path: Path) -> None:
    seed = make(tmp_path / "runs" / "pretrain" / "flowers" / "seed3")
    for folder in (seed, seed.parent, seed.parents[1], tmp_path / "runs"):
        assert checkpoint_in(folder) == seed / "checkpoint.pt"
        assert read(folder).path == seed / "checkpoint.pt"
    (seed / "checkpoint.pt").rename(seed / "backbone.safetensors")
    assert checkpoint_in(seed) == seed / "backbone.safetensors"


def test_a_folder_with_several_runs_names_them(tmp_path: Path) -> None:
    for number in (0, 1):
        make(tmp_path / "flowers" / f"seed{number}")
    with pytest.raises(
        InputError, match=r"a folder with 2 runs; expected one of them: .*flowers/seed0, .*flowers/seed1"
    ):
        read(tmp_path / "flowers")


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="this run has saved no checkpoint yet"):
        read(tmp_path)


def test_commands_take_the_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "demo", "name=first", *TINY]) == 0
    capsys.readouterr()
    folder = "runs/pretrain/first/seed0"
    assert main(["knn", folder, "data.size=160"]) == 0
    assert main(["convert", folder, "out.pth", "--to", "torchvision"]) == 0
    assert main(["convert", folder, f"{folder}/checkpoint.pt", "--to", "torchvision"]) == 2
    assert "it is the source" in capsys.readouterr().err
    assert main(["spectrum", folder, "--images", "32", "data.size=160"]) == 0
    assert main(["pretrain", "demo", "name=second", *TINY, f"init={folder}"]) == 0
    assert "init: " in capsys.readouterr().err
    assert main(["ls", "runs"]) == 0
    head, second, first = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "STATE", "PROGRESS", "LOSS", "AGE"]
    assert first.split()[:4] == ["runs/pretrain/first/seed0", "finished", "step", "5"]
    assert second.startswith("runs/pretrain/second/seed0")
    assert main(["ls", "records", "shapes"]) == 0
    assert "knn" in capsys.readouterr().out.splitlines()[1]
