"""Which results may be averaged, reused and resumed: tests with two or three tiny runs and the text of the table."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layout_cases import CASES, prefixed, random_state
from stopped_run import wait

from intl_bench import cli
from intl_bench.core import files
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables.cells import cell_text
from pretrain import checkpoint as checkpoints
from pretrain import states
from transfer import knn
from transfer.formats import safe_load

TINY = ["data.size=160", "batch_size=32", "epochs=1", "warmup_epochs=0", "projector.hidden=32", "projector.out=32"]
QUICK = ["epochs=2", "batch_size=64"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def intl_bench(*words: str) -> None:
    assert cli.main(list(words)) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that ends with exit code 2; return its line on stderr."""
    capsys.readouterr()
    assert cli.main(list(words)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("intl-bench: "))
    return line


def pretrain(*overrides: str, name: str = "a", seed: int = 0) -> str:
    intl_bench("pretrain", "demo", *TINY, f"name={name}", f"seed={seed}", *overrides)
    return f"runs/pretrain/{name}/seed{seed}/checkpoint.pt"


def records() -> list[ResultRecord]:
    return RecordStore(Path("results/records")).load()


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Return {label: texts of the cells that are not empty} of the measured rows."""
    capsys.readouterr()
    intl_bench("tables", "--measured-only")
    found = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("| ") and "measured" in line:
            label, *cells = (part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1])
            found[label] = [cell.strip("*") for cell in cells if cell != "–"]
    return found


def archive(path: Path, seed: int) -> Path:
    """Write an archive of random images; return its path."""
    rng = np.random.default_rng(seed)
    train_x, test_x = (rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (64, 20))
    np.savez(path, train_x=train_x, test_x=test_x, train_y=np.arange(64) % 4, test_y=np.arange(20) % 4)
    return path


def test_runs_with_different_settings_are_never_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    changed = ["optimizer=adam", "weight_decay=0.01", "projector.layers=2", "precision=bf16"]
    jitter = "views=[{size: 32, min_scale: 0.2, jitter_p: 0.0}, {size: 32, min_scale: 0.2, solarize_p: 0.2}]"
    intl_bench("knn", pretrain())
    intl_bench("knn", pretrain(*changed, jitter, name="b", seed=1))
    found = rows(capsys)
    assert len(found) == 2
    assert all(cells[0].endswith("(1)") for cells in found.values())
    assert any("optimizer adam" in label for label in found)


def test_settings_that_change_no_result_do_not_prevent_averaging(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, irrelevant in (
        (0, ["workers=1", "log_every=3"]),
        (1, ["save_minutes=1", "device=cpu", "spectrum_every=0"]),
    ):
        intl_bench("knn", pretrain(*irrelevant, name=f"run{seed}", seed=seed), f"workers={seed}")
    ((label, (cell,)),) = rows(capsys).items()
    assert cell == cell_text([record.metrics["knn5"] for record in records()], 2)
    assert cell.endswith("(2)")
    assert "seed" not in label


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    decays = ("0.0001", "0.01", "0.5")
    for decay in decays:
        for seed in (0, 1):
            intl_bench("knn", pretrain(f"weight_decay={decay}", name=f"wd{decay}", seed=seed))
    found = rows(capsys)
    assert len(found) == 3
    for decay in decays:
        ((_, (cell,)),) = ((k, v) for k, v in found.items() if re.search(rf"weight.{{1,2}}decay {decay}\b", k))
        expected = [r.metrics["knn5"] for r in records() if r.pretraining["settings"]["weight_decay"] == float(decay)]
        assert cell == cell_text(expected, 2)


@pytest.mark.slow
def test_n_counts_pre_trainings_not_transfer_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        intl_bench("linear", pretrain(seed=seed), *QUICK, "--seeds", "3")
    means = [statistics.mean(r.metrics["top1"] for r in records() if r.pretrain_seed == seed) for seed in range(3)]
    ((_, cells),) = rows(capsys).items()
    assert cells[0] == cell_text(means, 2)


@pytest.mark.slow
def test_random_initializations_with_different_stems_have_different_rows(capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("imagenet", "cifar"):
        intl_bench("knn", pretrain(f"backbone.stem={stem}", name=stem), "--init", "random", "--seeds", "2")
    found = rows(capsys)
    assert len(found) == 2
    assert all("Random init" in label and cells[0].endswith("(2)") for label, cells in found.items())
    assert all(any(f"stem {stem}" in label for label in found) for stem in ("imagenet", "cifar"))


def test_checkpoints_of_other_projects_are_averaged_only_with_pretrain_seed(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data.kind=shapes", "data.size=160", "--config", "default"]
    for seed in range(3):
        torch.save({"state_dict": prefixed("module.encoder_q.", random_state("resnet10_narrow", seed))}, f"{seed}.pth")
        intl_bench("knn", f"{seed}.pth", *data)
    assert [cells[0].split()[-1] for cells in rows(capsys).values()] == ["(1)"] * 3
    shutil.rmtree("results")
    for seed in range(3):
        intl_bench("knn", f"{seed}.pth", *data, "--pretrain-seed", str(seed))
    ((_, cells),) = rows(capsys).items()
    assert cells[0].endswith("(3)")
    intl_bench("tables")
    assert "Checkpoints: 0.pth, 1.pth, 2.pth." in capsys.readouterr().out
    intl_bench("knn", "0.pth", *data, "--pretrain-seed", "7", "--group", "other")
    assert len(rows(capsys)) == 2
    assert "--pretrain-seed N" in refused(capsys, "knn", "0.pth", *data, "--group", "other")
    assert "expected a checkpoint of another project" in refused(capsys, "knn", pretrain(), "--pretrain-seed", "1")


def test_the_same_weights_with_two_pre_training_seeds_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": prefixed("module.encoder_q.", random_state("resnet10_narrow", 0))}, "a.pth")
    for seed in ("0", "1"):
        words = ["data.kind=shapes", "data.size=160", "--config", "default", "--pretrain-seed", seed]
        intl_bench("knn", "a.pth", *words)
    assert "knn/moco-shapes-p1" in refused(capsys, "tables")


def test_different_weights_of_one_seed_are_an_error_that_names_both(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = pretrain()
    intl_bench("knn", path)
    state, _ = states.load(Path(path))
    state["method"]["backbone.conv1.weight"] += 1
    states.save(Path("other.pt"), {key: value for key, value in state.items() if key != "format"})
    intl_bench("knn", "other.pt")
    line = refused(capsys, "tables")
    assert all(f"{record.key}.json" in line for record in records())


def test_a_checkpoint_and_its_export_have_one_result(capsys: pytest.CaptureFixture[str]) -> None:
    path = pretrain()
    intl_bench("knn", path)
    intl_bench("convert", path, "out.pkl", "--to", "detectron2")
    capsys.readouterr()
    for other in (Path(path).with_name("backbone.safetensors"), "out.pkl"):
        intl_bench("knn", str(other))
        assert "already there" in capsys.readouterr().out


def test_data_sets_with_equal_names_and_sizes_are_not_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        path = pretrain(seed=seed)
        intl_bench("knn", path, "data.kind=npz", f"data.root={archive(Path(f'{seed}.npz'), seed)}", "data.name=x")
    assert [cells[0].split()[-1] for cells in rows(capsys).values()] == ["(1)", "(1)"]


def test_data_replaced_in_place_is_scored_again(capsys: pytest.CaptureFixture[str]) -> None:
    path, data = pretrain(), archive(Path("x.npz"), 0)
    words = ["knn", path, "data.kind=npz", f"data.root={data}"]
    intl_bench(*words)
    shutil.copy(data, "moved.npz")
    capsys.readouterr()
    intl_bench(*words[:3], "data.root=moved.npz", "data.name=x")
    assert "already there" in capsys.readouterr().out
    archive(data, 1)
    intl_bench(*words)
    assert "already there" not in capsys.readouterr().out
    assert len({json.dumps(record.evaluation["data"]) for record in records()}) == 2


def test_a_finished_run_is_not_reused_for_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["pretrain", "demo", *TINY, "data.kind=npz", "spectrum_every=0", "name=a"]
    archive(Path("a.npz"), 0)
    archive(Path("b.npz"), 1)
    shutil.copy("a.npz", "c.npz")
    intl_bench(*own, "data.root=a.npz")
    intl_bench(*own, "data.root=c.npz")
    assert "was trained on other images" in refused(capsys, *own, "data.root=b.npz")
    archive(Path("a.npz"), 1)
    line = refused(capsys, *own, "data.root=a.npz")
    assert "--fresh" in line
    assert "name=..." in line
    intl_bench(*own, "data.root=a.npz", "--fresh")


@pytest.mark.slow
def test_an_interrupted_run_does_not_resume_with_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    archive(Path("a.npz"), 0)
    words = ["pretrain", "demo", *TINY, "data.kind=npz", "data.root=a.npz", "epochs=3000", "name=a", "save_minutes=0"]
    command = [sys.executable, "-m", "intl_bench", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as run:
        wait(lambda: Path("runs/pretrain/a/seed0/checkpoint.pt").exists())
        run.send_signal(signal.SIGTERM)
    assert run.returncode == 75
    archive(Path("a.npz"), 1)
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained on other images" in line


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "demo", *TINY, "epochs=3000", "name=a"]
    command = [sys.executable, "-m", "intl_bench", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as first:
        wait(lambda: Path("runs/pretrain/a/seed0/metrics.jsonl").exists())
        for more in ([], ["--fresh"]):
            assert cli.main([*words, *more]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"process {first.pid}" in line
        assert Path("runs/pretrain/a/seed0/metrics.jsonl").exists()
        first.kill()
    assert cli.main([*words, "epochs=1", "--fresh"]) == 0
    assert "took over the lock" in capsys.readouterr().err


@pytest.mark.slow
def test_a_warm_start_is_a_different_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    path = pretrain()
    line = refused(capsys, "pretrain", "demo", *TINY, "name=a", "epochs=2")
    assert f"init={path}" in line
    longer = pretrain("epochs=2", f"init={path}", name="longer")
    assert "all weights from" in capsys.readouterr().err
    cold = pretrain("epochs=2", name="cold")
    for checkpoint in (longer, cold):
        intl_bench("knn", checkpoint)
    first, second = (record.pretraining["initial_weights"] for record in records())
    assert None in (first, second)
    assert first != second
    weights = checkpoints.weights_digest(states.load(Path(path))[0]["method"])
    assert states.load(Path(longer))[0]["inputs"]["initial_weights"] == weights
    assert len(rows(capsys)) == 2
    pretrain("projector.out=16", f"init={Path(path).with_name('backbone.safetensors')}", name="part")
    assert "the backbone from" in capsys.readouterr().err
    shutil.rmtree(Path(path).parent)
    intl_bench("pretrain", "demo", *TINY, "name=longer", "epochs=2", f"init={path}")  # finished: init is not read
    assert "init=nowhere.pt" in refused(capsys, "pretrain", "demo", *TINY, "name=new", "init=nowhere.pt")


@pytest.mark.slow
def test_seeds_that_start_from_their_own_checkpoints_are_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        path = pretrain(seed=seed)
        intl_bench("knn", pretrain(f"init={path}", name="longer", seed=seed))
    ((_, cells),) = rows(capsys).items()
    assert cells[0].endswith("(2)")
    intl_bench("knn", pretrain("init=runs/pretrain/a/seed0/checkpoint.pt", name="branch", seed=1))
    assert sorted(cells[0].split()[-1] for cells in rows(capsys).values()) == ["(1)", "(2)"]


def test_init_from_a_checkpoint_equals_init_from_its_export() -> None:
    path = Path(pretrain())
    found = []
    for number, file in enumerate((path, path.with_name("backbone.safetensors"))):
        other = pretrain(f"init={file}", "projector.out=16", name=f"from{number}", seed=1)
        found.append(states.load(Path(other))[0]["inputs"])
    assert found[0] == found[1]
    assert found[0]["initial_weights"]


def test_settings_without_effect_are_not_part_of_the_identity(capsys: pytest.CaptureFixture[str]) -> None:
    intl_bench("knn", pretrain(), "temperature=0.2")
    path = pretrain("trust_coefficient=0.5", "clip_trust=true", "data.on_bad_image=skip", name="b")
    capsys.readouterr()
    intl_bench("knn", path)
    assert "already there" in capsys.readouterr().out


def test_the_identity_holds_the_precision_that_the_device_uses() -> None:
    path = pretrain("precision=fp16")
    assert states.load(Path(path))[0]["inputs"]["computed_in"] == "bf16"


@pytest.mark.slow
def test_checkpoints_with_unknown_images_are_never_averaged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed in (0, 1):
        state, _ = states.load(Path(pretrain(seed=seed)))
        del state["inputs"]
        torch.save({**state, "format": 1}, f"{seed}.pt")
        intl_bench("knn", f"{seed}.pt")
    assert [cells[0].split()[-1] for cells in rows(capsys).values()] == ["(1)", "(1)"]


def test_data_that_change_during_a_task_give_no_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, predict = pretrain(), archive(Path("x.npz"), 0), knn.predict

    def replaced(*args: Any, **named: Any) -> Any:
        archive(data, 1)
        return predict(*args, **named)

    monkeypatch.setattr(knn, "predict", replaced)
    assert "changed during the run" in refused(capsys, "knn", path, "data.kind=npz", f"data.root={data}")
    assert records() == []


def test_other_spellings_of_the_paper_names_are_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    path = pretrain()
    for name in ("CIFAR-10", "ImageNet-100", "imagenet_1k"):
        assert "expected" in refused(
            capsys, "knn", path, "data.kind=npz", f"data.root={archive(Path('x.npz'), 0)}", f"data.name={name}"
        )


def test_a_warm_start_starts_from_the_weights() -> None:
    path = pretrain()
    still = pretrain(f"init={path}", "base_lr=0", "weight_decay=0", name="still")
    before, after = (states.load(Path(file))[0]["method"] for file in (path, still))
    weights = [name for name in before if name.endswith(("weight", "bias"))]
    assert weights
    assert all(torch.equal(before[name], after[name]) for name in weights)


def test_tasks_use_the_normalization_of_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data.kind=shapes", "data.size=160", "--config", "default"]
    state = random_state("resnet10_narrow", 0)
    simclr = CASES["simclr tonylins"](state, state).root
    torch.save(simclr, "simclr.pth")
    intl_bench("knn", "simclr.pth", *data)
    intl_bench("knn", "simclr.pth", *data, "data.mean=[0.5,0.5,0.5]", "data.std=[0.2,0.2,0.2]")
    own, forced = sorted(records(), key=lambda record: record.created + str(record.config["data"]["mean"]))
    assert own.config["data"]["mean"] == [0, 0, 0]
    assert own.protocol["normalization"] == "mean 0.0 0.0 0.0, std 1.0 1.0 1.0 (the checkpoint's)"
    assert "override" in str(forced.protocol["normalization"])
    assert own.evaluation["settings"]["data"]["mean"] == "checkpoint"
    assert forced.evaluation["settings"]["data"]["mean"] == [0.5, 0.5, 0.5]
    path = pretrain("data.mean=[0.4,0.4,0.4]", "data.std=[0.3,0.3,0.3]")
    intl_bench("linear", path, *QUICK)
    record = next(record for record in records() if record.task == "linear")
    assert record.config["data"]["mean"] == [0.4, 0.4, 0.4]


def test_from_selects_the_momentum_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    path = pretrain("method.momentum_target=true")
    intl_bench("knn", path)
    intl_bench("knn", path, "--from", "intl-bench:momentum")
    assert {record.pretraining["branch"] for record in records()} == {"online", "momentum"}
    assert len({record.weights_sha256 for record in records()}) == 2
    assert len(rows(capsys)) == 2
    assert "intl-bench backbone (momentum)" in refused(
        capsys, "knn", pretrain(name="b"), "--from", "intl-bench:momentum"
    )


def test_a_checkpoint_is_read_and_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = pretrain(), list[str]()
    verified, loaded = files.verify, torch.load

    def verify(file: Path, **named: Any) -> str:
        seen.append(f"hash {file.name}")
        return verified(file, **named)

    def load(file: Any, *args: Any, **named: Any) -> Any:
        seen.append(f"read {Path(getattr(file, 'name', file)).name}")
        return loaded(file, *args, **named)

    monkeypatch.setattr(files, "verify", verify)
    monkeypatch.setattr(torch, "load", load)
    assert safe_load.files is files
    intl_bench("linear", path, *QUICK, "--seeds", "2")
    assert sorted(line for line in seen if "checkpoint.pt" in line) == ["hash checkpoint.pt", "read checkpoint.pt"]
    Path("grid.yaml").write_text(
        "name: tiny\nrecipe: demo\noverrides: [data.size=160, batch_size=32, epochs=1, projector.hidden=32, "
        "projector.out=32]\ncells: [base_lr=0.6]\nseeds: 1\ntasks: [knn, linear]\n"
    )
    seen.clear()
    intl_bench("ablation", "grid.yaml")
    assert sorted(line for line in seen if "checkpoint.pt" in line) == ["hash checkpoint.pt", "read checkpoint.pt"]


def test_scores_on_changed_images_do_not_share_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    path, data = pretrain(), archive(Path("x.npz"), 0)
    words = [path, "data.kind=npz", f"data.root={data}"]
    intl_bench("knn", *words)
    archive(data, 1)
    intl_bench("knn", *words)
    intl_bench("linear", *words, *QUICK)
    assert sorted(len(cells) for cells in rows(capsys).values()) == [1, 2]


def test_the_recipe_demo_with_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    data = archive(Path("mine.npz"), 0)
    assert "data.kind=shapes" in refused(capsys, "pretrain", "demo", *TINY, "data.root=mine.npz")
    path = pretrain("data.kind=npz", f"data.root={data}")
    capsys.readouterr()
    intl_bench("knn", path)
    assert "knn INTL mine seed 0" in capsys.readouterr().out
    (record,) = records()
    assert (record.dataset, record.scale) == ("mine", "reduced")
    intl_bench("pretrain", "demo", *TINY, "data.kind=npz", f"data.root={data}", "name=a", "seed=0")
    assert "already finished" in capsys.readouterr().err


def test_a_pretrain_seed_is_given_to_one_checkpoint_only(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.kind=shapes", "data.size=160", "--config", "default", "--pretrain-seed", "0"]
    for number in (0, 1):
        state = random_state("resnet10_narrow", number)
        torch.save({"state_dict": prefixed("module.encoder_q.", state)}, f"{number}.pth")
    intl_bench("knn", "0.pth", *words)
    line = refused(capsys, "knn", "1.pth", *words)
    assert "already used for 0.pth" in line
    intl_bench("knn", "1.pth", *words, "--group", "other")
