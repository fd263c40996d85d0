"""Grids of pre-trainings: records, skipping, divergence as a result, tables and figures, what is refused."""

import json
from pathlib import Path

import pytest

from intl_bench import cli
from intl_bench.ablations import free_embedding, grid
from intl_bench.ablations.figures import FIGURES, Point
from intl_bench.core import config as configs
from intl_bench.records import RecordStore

GRID = """
name: tiny
recipe: demo
overrides: [data.size=200, batch_size=32, epochs=1, warmup_epochs=0, projector.hidden=32, projector.out=16,
  method.axis=batch]
cells:
  - method.iterations=1
  - method.iterations=60 method.variant=paper base_lr=5
seeds: 2
tasks: [knn]
random: true
figure: trace_loss
"""
PACKAGED = sorted(path.stem for path in (configs.CONFIGS / "ablation").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)


def paths() -> list[Path]:
    return sorted(Path("results/ablations/tiny/records").glob("*/*.json"))


def test_a_grid_from_pre_training_to_table_and_figure(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ablation", "grid.yaml"]) == 0
    records = RecordStore(Path("results/ablations/tiny/records")).load()
    cells = [record for record in records if record.task == "pretrain"]
    assert sorted((r.config["method"]["iterations"], r.pretrain_seed) for r in cells) == [
        (1, 0),
        (1, 1),
        (60, 0),
        (60, 1),
    ]
    for cell in cells:
        own = [r for r in records if r.task == "knn" and r.checkpoint_sha256 == cell.details["checkpoint_sha256"]]
        if cell.config["method"]["iterations"] == 60:
            assert cell.metrics == {"diverged": 100.0}
            assert "diverged at step" in cell.details["diverged"]
            assert not own
        else:
            assert cell.metrics["diverged"] == 0
            assert 0 < cell.metrics["embedding/rank"] <= 100
            assert len(cell.details["spectra"]["transformed"]["eigenvalues"]) == 16
            assert [r.pretrain_seed for r in own] == [cell.pretrain_seed]
            assert own[0].protocol.items() >= cell.protocol.items()
    assert sorted(r.transfer_seed for r in records if r.method == "Random init") == [0, 1]
    assert {record.scale for record in records} == {"reduced"}
    printed = capfd.readouterr().out
    table = Path("results/ablations/tiny/table.md").read_text()
    assert table.strip() in printed
    assert "100.00 ± 0.00 (2)" in table
    assert "method iterations 1" in table
    assert Path("results/ablations/tiny/figure.png").read_bytes().startswith(b"\x89PNG")

    before = {path: path.read_bytes() for path in paths()}
    missing = next(path for path in paths() if path.parent.name == "knn" and path.name.startswith("intl"))
    missing.unlink()
    assert cli.main(["ablation", "grid.yaml"]) == 0  # makes what is missing, from the checkpoint that is there
    assert capfd.readouterr().out.count("already there") == 3
    assert {path.name for path in paths()} == {path.name for path in before}
    others = [path for path in before if path.name != missing.name and path.parent.name == "knn"]
    assert all(path.read_bytes() == before[path] for path in others)

    assert cli.main(["ablation", "grid.yaml", "--parallel"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("already there") == 4  # said by the seeds' own processes,
    assert printed.count(table.strip()) == 1  # which leave the table to the one that started them


def test_an_experiment_without_data_is_run_once_unless_fresh(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightly")
    few = free_embedding.measure([free_embedding.Setting(name="few", dimension=4)], steps=2)
    monkeypatch.setattr(free_embedding, "measure", lambda: few)
    folder = Path("results/ablations/free_embedding/free_embedding")
    for words, run_again in (([], True), ([], False), (["--fresh"], True)):
        assert cli.main(["ablation", "free_embedding", *words]) == 0
        assert "| few" in capsys.readouterr().out
        assert bool((folder / "free_embedding.json").read_text()) == run_again
        (folder / "free_embedding.json").write_text("")


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_grids_name_recipes_that_there_are(name: str) -> None:
    ablation = grid.load(name)
    names = [recipe.name for recipe in grid.recipes(ablation, seed=1, overrides=["data.root=elsewhere"])]
    assert len(set(names)) == len(names) == len(ablation.cells)
    assert ablation.name == name
    assert {recipe.scale for recipe in grid.recipes(ablation, 0)} <= {ablation.scale}
    changed = grid.recipes(ablation, 0, ["epochs=1", "warmup_epochs=0"])
    assert {recipe.scale for recipe in changed} <= {"reduced"}


def test_paper_grids_are_the_papers() -> None:
    settings = {
        "power": ("method", "power", [0, 0.25, 0.4, 0.45, 0.5, 0.55, 0.6, 0.75, 1, 1.5]),
        "embedding_dim": ("projector", "out", [2**n for n in range(6, 15)]),
    }
    for name, (section, key, values) in settings.items():
        made = [configs.to_dict(recipe)[section][key] for recipe in grid.recipes(grid.load(name), 0)]
        assert made == values
    assert [recipe.batch_size for recipe in grid.recipes(grid.load("batch_size"), 0)] == [2**n for n in range(5, 11)]
    cells = [recipe.method for recipe in grid.recipes(grid.load("trace_loss"), 0)]
    for name in ("intl", "iternorm"):
        coupled = [m["iterations"] for m in cells if (m["name"], m["variant"]) == (name, "coupled")]
        assert coupled == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_figures_show_means_and_deviations(name: str) -> None:
    """Of two seeds' 10 and 14: 12 ± 2.83, wherever accuracy is drawn."""
    spectrum = {"eigenvalues": [2.0, 1.0], "ranks": [1, 2], "count": 2, "mean": 1.5}
    points = [
        Point(
            method="INTL",
            seed=seed,
            config={
                "batch_size": 32,
                "projector": {"out": 64},
                "method": {"power": 0.5, "iterations": 3, "variant": "coupled"},
            },
            metrics={"top1": 10 + 4 * seed, "knn5": 10 + 4 * seed, "diverged": 0, "embedding/rank": 50},
            details={"spectra": {"embedding": spectrum, "transformed": spectrum}},
        )
        for seed in range(2)
    ]
    figure = FIGURES[name](points)
    bars = [container for axes in figure.axes for container in axes.containers]
    drawn = {
        (float(line.get_ydata()[0]), *segments.get_segments()[0][:, 1].round(2))
        for line, _, (segments,) in bars
        if len(line.get_ydata())
    }
    assert (12.0, 9.17, 14.83) in drawn


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "cells: expected at least one"),
        ("name: x\ncells: [epochs=1]\nseeds: 0\n", "seeds=0"),
        ("name: x\ncells: [epochs=1]\ntasks: [quiz]\n", "tasks: 'quiz' is not one of knn, linear"),
        ("name: x\ncells: [epochs=1]\nfigure: pie\n", "figure: 'pie' is not one of power"),
        ("name: x\ncells: [epoch=1]\n", "unknown key 'epoch'; did you mean epochs?"),
        ("name: x\nrecipe: demo\ncells: [epochs=1, method.axis=batch]\n", "whitens 512 features over 128 samples"),
        ("name: x\nrecipe: cifar10_r19_intl\ncells: [epochs=1]\n", "did you mean cifar10_r18_intl?"),
    ],
)
def test_bad_grids_are_one_line(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(text)
    assert cli.main(["ablation", "bad.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("results").exists()


def test_which_grid_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ablation"]) == 2
    assert cli.main(["ablation", "powr"]) == 2
    assert "did you mean power?" in capsys.readouterr().err
    assert cli.main(["ablation", "grid.yaml", "--dry-run"]) == 0
    assert json.dumps("tiny-method.iterations_1")[1:-1] in capsys.readouterr().out
    assert not Path("results").exists()
