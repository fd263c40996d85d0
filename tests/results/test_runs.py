"""Tasks with several seeds, their records and tables, on a checkpoint trained on generated images."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transfer_cases import make_folder

from intl_bench import cli, runs, tables
from intl_bench.core.errors import InputError, ResourceError, translate
from intl_bench.records import RecordStore
from pretrain import states, train
from pretrain.recipe import load_recipe
from transfer import sgd_classifier
from transfer.convert import read

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["epochs=3", "batch_size=64"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint after one epoch on 160 generated images."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        overrides = [
            "data.size=160",
            "batch_size=32",
            "epochs=1",
            "warmup_epochs=0",
            "projector.hidden=32",
            "projector.out=32",
        ]
        return train.run(load_recipe("demo", overrides)).resolve()
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def linear(checkpoint: Path, **changes: object) -> runs.TaskRun:
    values = {"task": "linear", "checkpoint": checkpoint, "overrides": QUICK, "seeds": [0, 1, 2]} | changes
    return runs.TaskRun(**values)  # type: ignore[arg-type]


def test_each_seed_has_a_complete_record(trained: Path) -> None:
    records = runs.run(linear(trained))
    stored = RecordStore(Path("results/records")).load()
    assert sorted(r.key for r in stored) == sorted(r.key for r in records)
    assert [(r.pretrain_seed, r.transfer_seed) for r in records] == [(0, 0), (0, 1), (0, 2)]
    record = records[0]
    assert record.method == "INTL"
    assert record.dataset == "shapes"
    assert record.backbone == "resnet10_narrow"
    assert record.scale == "demo"
    checkpoint = read(trained)
    assert record.checkpoint_sha256 == checkpoint.sha256
    assert record.weights_sha256 == checkpoint.weights_sha256
    assert record.pretraining["settings"]["projector"] == {"hidden": 32, "out": 32, "layers": 3}
    assert "seed" not in record.pretraining["settings"]
    assert record.evaluation["settings"]["data"]["mean"] == "checkpoint"
    assert {"top1", "top5", "best_top1", "best_top5"} <= record.metrics.keys()
    assert record.metrics["best_top1"] >= record.metrics["top1"]
    assert record.protocol["pretrain_epochs"] == 1
    assert record.protocol["pretrain_images"] == 160
    assert record.protocol["pretrain_crops"] == "2x32"
    assert record.protocol["epochs"] == 3
    assert (record.protocol["train_images"], record.protocol["test_images"]) == (160, 40)
    assert record.details["pretrain"]["bad_images"] == 0
    assert record.config["data"]["size"] == 160
    assert record.code["version"]
    assert record.hardware["cores"] >= 1
    assert (
        record.libraries["torch"] == torch.__version__.split("+")[0] or record.libraries["torch"] == torch.__version__
    )
    assert record.wall_time_s > 0
    assert record.peak_memory_mib > 50


def test_finished_seeds_are_skipped_and_new_seeds_are_run(trained: Path) -> None:
    first = runs.run(linear(trained, seeds=[0, 2]))
    again = runs.run(linear(trained, seeds=[0, 1, 2]))
    assert [r.created for r in (again[0], again[2])] == [r.created for r in first]
    assert again[0] == first[0]
    assert len(RecordStore(Path("results/records")).load()) == 3


def test_fresh_replaces_the_record(trained: Path) -> None:
    (old,) = runs.run(linear(trained, seeds=[0]))
    (new,) = runs.run(linear(trained, seeds=[0], fresh=True))
    assert new.metrics == old.metrics, "the same seed gives the same numbers"
    assert new is not old
    assert len(RecordStore(Path("results/records")).load()) == 1


def test_different_settings_have_different_records(trained: Path) -> None:
    runs.run(linear(trained, seeds=[0]))
    runs.run(linear(trained, seeds=[0], overrides=["epochs=4", "batch_size=64"]))
    runs.run(linear(trained, seeds=[0], overrides=[*QUICK, "workers=1"]))  # changes no number
    assert sorted(r.protocol["epochs"] for r in RecordStore(Path("results/records")).load()) == [3, 4]


def test_random_init_gives_a_different_network_for_each_seed(trained: Path) -> None:
    records = runs.run(runs.TaskRun(task="knn", checkpoint=trained, seeds=[0, 1, 2], init="random"))
    assert {r.method for r in records} == {"Random init"}
    assert [(r.pretrain_seed, r.transfer_seed) for r in records] == [(0, 0), (1, 1), (2, 2)]
    assert len({r.weights_sha256 for r in records}) == 3
    assert all(r.protocol["pretrain_epochs"] == 0 for r in records)


def test_an_unfinished_checkpoint_is_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its footnote must not read as that of a random initialization, "epochs 0"."""
    state, _ = states.load(trained)
    states.save(Path("part.pt"), {**state, "step": 3})
    knn = runs.TaskRun(task="knn", checkpoint=Path("part.pt"), seeds=[0])
    (record,) = runs.run(knn)
    assert "part.pt: its pre-training is not finished: step 3 of 5\n" in capsys.readouterr().err
    note = "its pre-training is not finished: step 3 of 5\n"
    for command in (["knn", "part.pt", "--dry-run"], ["spectrum", "part.pt", "data.size=80", "--images", "20"]):
        assert cli.main(command) == 0
        assert capsys.readouterr().err.count(f"part.pt: {note}") == 1
    assert cli.main(["convert", "part.pt", "out.safetensors", "--to", "safetensors", "--dry-run"]) == 0
    assert f"warning: {note}" in capsys.readouterr().out
    assert not Path("out.safetensors").exists()
    assert record.protocol["pretrain_epochs"] == "1 planned, step 3 of 5"
    assert record.pretraining["progress"] == "step 3 of 5"
    assert "epochs 1 planned, step 3 of 5" in tables.render([record], format="markdown")
    (finished,) = runs.run(dataclasses.replace(knn, checkpoint=trained))
    assert "not finished" not in capsys.readouterr().err
    assert finished.protocol["pretrain_epochs"] == 1
    assert finished.pretraining_sha256 != record.pretraining_sha256


def test_the_time_of_a_resumed_run_is_that_of_all_its_processes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "images", classes=4, train=6, test=2)
    data = ["data.kind=imagefolder", f"data.root={tmp_path / 'images'}", "workers=0", "device=cpu"]
    overrides = [*data, "augment=true", "crop=16", "resize=18", "epochs=4", "batch_size=12"]
    plan = linear(trained, seeds=[0], config="imagefolder", overrides=overrides)
    now, elapsed = time.perf_counter, iter(range(0, 10**6, 100))  # each look at the clock is 100 s later
    monkeypatch.setattr("intl_bench.core.json_lines.time.perf_counter", lambda: now() + next(elapsed))

    def stop(self: sgd_classifier._Run, *given: object) -> dict[str, float]:
        if len(self.history) == 2:
            raise ResourceError("no memory")
        return test(self, *given)

    test = sgd_classifier._Run.test
    monkeypatch.setattr(sgd_classifier._Run, "test", stop)
    with pytest.raises(ResourceError):
        runs.run(plan)
    (log,) = Path("runs").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["seconds"] > 100 * row["epoch"] for row in rows] == [True, True]
    monkeypatch.setattr(sgd_classifier._Run, "test", test)
    (record,) = runs.run(plan)
    assert record.wall_time_s > rows[-1]["seconds"]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert sorted(row["seconds"] for row in rows) == [row["seconds"] for row in rows]


def test_knn_of_a_checkpoint_has_one_result(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = runs.run(runs.TaskRun(task="knn", checkpoint=trained, seeds=[0, 1, 2]))
    assert len(records) == 1
    assert "one run serves all seeds" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seeds"), [("1", [0]), ("3", [0, 1, 2]), ("3,7,11", [3, 7, 11]), ("5,", [5])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert runs.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "a", "1,1", "", ",", "1,,2", "2.5", "10001", str(10**26), f"1,{2**63}"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(InputError, match="--seeds"):
        runs.parse_seeds(text)


def test_command_line_from_checkpoint_to_tables(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seeds, init in (("3", "checkpoint"), ("3", "random")):
        assert cli.main(["linear", str(trained), *QUICK, "--seeds", seeds, "--init", init]) == 0
        assert cli.main(["knn", str(trained), "--seeds", seeds, "--init", init]) == 0
    capsys.readouterr()
    assert cli.main(["tables", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if "measured, demo scale" in line]
    assert len(lines) == 2
    (intl,) = (line for line in lines if line.startswith("| INTL (ResNet-10 narrow"))
    assert "(3†)" in intl
    assert any("(3)" in line for line in lines if line.startswith("| Random init"))
    assert "(1)" in intl


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["linear", "nowhere.pt"], 2, "checkpoint nowhere.pt: no such file in /"),
        (["linear"], 2, "imagenet_r50_intl/seed0/checkpoint.pt: no such file"),
        (["knn", "CHECKPOINT", "kk=3"], 2, "did you mean k?"),
        (["knn", "CHECKPOINT", "k=3000"], 2, "only 160 training images"),
        (["knn", "CHECKPOINT", "--config", "solo_lern"], 2, "did you mean solo_learn?"),
        (["finetune", "CHECKPOINT"], 2, "expected at least 10, an image of each class"),
        (["linear", "CHECKPOINT", "a.pt"], 2, "expected one CHECKPOINT"),
        (["tables", "--table", "9"], 2, "choose from 1, 2, 3, 4"),
        (["tables", "--format", "pdf"], 2, "markdown"),
        (["pretrain", "a", "b"], 2, "expected one CONFIG"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], code: int, message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(trained) if word == "CHECKPOINT" else word for word in words]) == code
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("features: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_another_kind_of_data_changes_protocol_and_name(trained: Path) -> None:
    overrides = ["data.kind=imagefolder", "data.root=photos"]
    _, _, config = runs.prepare(runs.TaskRun(task="linear", checkpoint=trained, overrides=overrides))
    assert (config.augment, config.crop, config.data.dataset) == (True, 32, "photos")  # 224 for views of 224 pixels
    overrides += ["data.name=flowers"]
    _, _, config = runs.prepare(runs.TaskRun(task="linear", checkpoint=trained, overrides=overrides))
    assert (config.augment, config.data.dataset) == (True, "flowers")
    _, _, config = runs.prepare(runs.TaskRun(task="linear", checkpoint=trained, overrides=["data.size=400"]))
    assert (config.augment, config.data.dataset, config.data.size) == (False, "shapes", 400)


def test_overrides_may_follow_options(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["linear", "--config", "default", str(trained), "epochs=7", "--seeds", "2", "lr=0.5", "--dry-run"])
        == 0
    )
    text = capsys.readouterr().out
    assert "changed    epochs: 500 -> 7\n           lr: 0.01 -> 0.5\n" in text
    for words in (["linear", "--sedes", "3", "epochs=7"], ["tables", "epochs=7"]):
        assert cli.main(words) == 2
        assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "nothing",
        "knn --nothing",
        "knn --seeds",
        "knn --only-seed x",
        "knn --only-seed=-1",
        f"knn --only-seed={10**26}",
        f"knn --seeds={10**26}",
        f"knn --seeds=1,{10**26}",
        f"knn --pretrain-seed={10**26}",
        "knn --config=",
        "pretrain --processes=1.5",
        "pretrain --processes=256",
    ],
)
def test_a_wrong_command_line_is_one_line(words: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, *options = words.split()
    given = [str(trained)] if command == "knn" else []
    assert cli.main([command, *given, *options, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("intl-bench: ")


def test_a_folder_that_was_removed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["pretrain", "demo", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("intl-bench: the working directory was removed")


def test_a_library_without_memory_is_no_bug() -> None:
    known = translate(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    assert isinstance(known, ResourceError)
    assert translate(ImportError("No module named x")) is None


def test_a_bug_is_one_line_and_debug_shows_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(tables, "render", broken)
    assert cli.main(["tables"]) == 1
    assert capsys.readouterr().err.startswith("intl-bench: bug: KeyError: 'x' (test_runs.py:")
    assert cli.main(["tables", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_name_of_a_file_may_hold_an_equals_sign(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the default names of PyTorch Lightning's checkpoints."""
    shutil.copyfile(trained, "epoch=1-step=5.pt")
    assert cli.main(["knn", "epoch=1-step=5.pt", "k=1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint epoch=1-step=5.pt: INTL" in printed
    assert "changed    k: 5 -> 1\n" in printed
    assert cli.main(["spectrum", "epoch=1-step=5.pt", "data.size=80", "--images", "20"]) == 0
    assert cli.main(["pretrain", "demo", "--dry-run", f"name={'a' * 300}"]) == 2  # longer than the name of a file


def test_a_seed_of_a_random_initialization_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["knn", str(trained), "--init", "random", "--pretrain-seed", "1"]) == 2
    assert "a random initialization has the seeds of --seeds" in capsys.readouterr().err


def test_dry_run_writes_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "demo", "--dry-run", "epochs=3", "data.size=200"]) == 0
    assert "changed    epochs: 6 -> 3\n           data.size: 8192 -> 200\n" in capsys.readouterr().out
    assert cli.main(["knn", str(trained), "--dry-run"]) == 0
    assert "distance: euclidean" not in capsys.readouterr().out
    assert cli.main(["knn", str(trained), "--dry-run", "--verbose"]) == 0
    assert "distance: euclidean" in capsys.readouterr().out
    assert cli.main(["knn", str(trained), "--verbose"]) == 2
    assert "--verbose: has no use without --dry-run" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_closed_pipe_is_no_error() -> None:
    code = f"{sys.executable} -m intl_bench tables | head -1"
    done = subprocess.run(code, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.startswith("**Table 1.**")
    assert done.stderr == ""
