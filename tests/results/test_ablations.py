"""Grids of pre-trainings: records, skipped cells, divergence, tables, figures and errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from file_cases import arrays, npz

from intl_bench import cli
from intl_bench.ablations import cells, free_embedding, grid
from intl_bench.ablations.figures import FIGURES, Point
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord

SMALL = "name: x\nrecipe: demo\ncells: [data.size=200]\n"
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


@pytest.mark.slow
def test_a_grid_from_pre_training_to_table_and_figure(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ablation", "grid.yaml"]) == 0
    records = RecordStore(Path("results/ablations/tiny/records")).load()
    ended = [record for record in records if record.task == "pretrain"]
    assert sorted((r.config["method"]["iterations"], r.pretrain_seed) for r in ended) == [
        (1, 0),
        (1, 1),
        (60, 0),
        (60, 1),
    ]
    for cell in ended:
        own = [r for r in records if r.task == "knn" and r.weights_sha256 == cell.details["weights_sha256"]]
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

    assert cli.main(["ablation", "grid.yaml", "--dry-run", "--seeds", "3"]) == 0
    planned = capfd.readouterr().out
    assert planned.count("  2 of 3\n") == 2
    before = {path: path.read_bytes() for path in paths()}
    missing = next(path for path in paths() if path.parent.name == "knn" and path.name.startswith("intl"))
    missing.unlink()
    assert cli.main(["ablation", "grid.yaml"]) == 0  # makes the missing record from the existing checkpoint
    # One cell of seed 0, two cells of seed 1, and random initializations of both seeds
    assert capfd.readouterr().out.count("already there") == 5
    assert {path.name for path in paths()} == {path.name for path in before}
    others = [path for path in before if path.name != missing.name and path.parent.name == "knn"]
    assert all(path.read_bytes() == before[path] for path in others)

    # A cell that was interrupted before its own record keeps the scores of the same weights.
    scores = {path: path.read_bytes() for path in paths() if path.parent.name == "knn"}
    next(path for path in paths() if path.parent.name == "pretrain" and path.name.startswith("intl")).unlink()
    assert cli.main(["ablation", "grid.yaml"]) == 0
    assert capfd.readouterr().out.count("already there") == 6
    assert {path.name for path in paths()} == {path.name for path in before}
    assert all(path.read_bytes() == content for path, content in scores.items())

    assert cli.main(["ablation", "grid.yaml", "--parallel"]) == 0
    printed = capfd.readouterr().out
    # The processes of the seeds report four cells and two random initializations. The parent process prints the table.
    assert printed.count("already there") == 6
    assert printed.count(table.strip()) == 1

    ablation, results = cells.load("grid.yaml"), Path("results/ablations/tiny")
    assert grid.finish(ablation, results, cells.recipes(ablation, 5)) == table.removesuffix("\n")
    assert "iterations 1," not in grid.finish(ablation, results, cells.recipes(ablation, 0, ["base_lr=0.1"]))


def test_an_experiment_without_data_is_repeated_only_with_fresh(
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "methods")) for name in PACKAGED]
)
def test_packaged_grids_name_existing_recipes(name: str) -> None:
    ablation = cells.load(name.replace("_", "-"))
    made = cells.recipes(ablation, seed=1, overrides=["data.root=elsewhere"])
    names = [recipe.name for recipe in made]
    assert len(set(names)) == len(names) == len(ablation.cells)
    assert ablation.name == name
    assert ablation.seeds >= 3
    scales = {"paper", "adapted"} if ablation.scale == "paper" else {ablation.scale}
    assert {recipe.scale for recipe in made} <= scales
    changed = cells.recipes(ablation, 0, ["epochs=1", "warmup_epochs=0"])
    assert {recipe.scale for recipe in changed} <= {"reduced"}
    assert not {recipe.name for recipe in changed} & set(names)  # their runs have different folders


@pytest.mark.parametrize(
    ("name", "section", "key", "values"),
    [
        ("power", "method", "power", [0, 0.25, 0.4, 0.45, 0.5, 0.55, 0.6, 0.75, 1, 1.5]),
        ("power_reduced", "method", "power", [0, 0.25, 0.4, 0.45, 0.5, 0.55, 0.6, 0.75, 1, 1.5]),
        ("embedding_dim", "projector", "out", [2**n for n in range(6, 15)]),
        ("embedding_dim_reduced", "projector", "out", [2**n for n in range(6, 15, 2)]),
    ],
)
def test_values_of_grids_are_those_of_the_paper(name: str, section: str, key: str, values: list[float]) -> None:
    made = [configs.to_dict(recipe)[section][key] for recipe in cells.recipes(cells.load(name), 0)]
    assert made == values


@pytest.mark.parametrize("name", ["batch_size", "batch_size_reduced"])
def test_batch_sizes_are_those_of_the_paper(name: str) -> None:
    assert [recipe.batch_size for recipe in cells.recipes(cells.load(name), 0)] == [2**n for n in range(5, 11)]


@pytest.mark.parametrize("name", ["trace_loss", "trace_loss_reduced"])
def test_numbers_of_iterations_are_those_of_the_paper(name: str) -> None:
    made = [recipe.method for recipe in cells.recipes(cells.load(name), 0)]
    counts = {
        (method, variant): [m["iterations"] for m in made if (m["name"], m["variant"]) == (method, variant)]
        for method in ("intl", "iternorm")
        for variant in ("coupled", "paper")
    }
    assert counts["intl", "coupled"] == counts["iternorm", "coupled"] == [1, 3, 5, 7, 9, 11]
    assert counts["intl", "paper"][-2:] == counts["iternorm", "paper"][-2:] == [9, 11]


def point(seed: int, **changes: object) -> Point:
    """Return a cell with different values for all metrics.

    Values of seed 1 are larger by 4 than those of seed 0. Eigenvalues and condition numbers differ by a factor of 100.
    """
    method = {"power": 0.5, "iterations": 3, "variant": "coupled", "beta": 0.05}
    spectra = {
        what: {
            "eigenvalues": [largest * 100**seed, 1.0],
            "ranks": [1, 2],
            "count": 2,
            "mean": 1.5,
            "numbers": {"rank": rank + 4 * seed},
        }
        for what, largest, rank in (("embedding", 1e3, 50), ("transformed", 1e5, 60))
    }
    metrics = {
        "top1": 10 + 4 * seed,
        "knn5": 20 + 4 * seed,
        "embedding/rank": 30 + 4 * seed,
        "transformed/rank": 40 + 4 * seed,
        "embedding/inverse_condition": 1e-9 * 100**seed,
        "transformed/inverse_condition": 1e-5 * 100**seed,
        "diverged": 0.0,
    }
    values = {
        "method": "INTL",
        "config": {"batch_size": 32, "projector": {"out": 64}, "method": method},
        "metrics": metrics,
        "details": {"spectra": spectra},
    }
    return Point(seed=seed, **(values | changes))


def drawn(figure: Any) -> list[dict[str, list[tuple[float, float, float]]]]:
    """Return for each panel {label of a line with error bars: [(x, mean, deviation) of each point]}."""
    panels = []
    for axes in figure.axes:
        lines = {}
        for bars in axes.containers:
            (segments,) = bars.lines[2]
            ends = [segment[:, 1] for segment in segments.get_segments()]
            values = zip(*bars.lines[0].get_data(), ends, strict=True)
            lines[bars.get_label()] = [(float(x), float(y), float((high - low) / 2)) for x, y, (low, high) in values]
        panels.append(lines)
    return panels


def test_figures_show_means_and_deviations() -> None:
    # Standard deviations of two values with a difference of 4, and of logarithms with a difference of 2
    deviation, decade = pytest.approx(8**0.5), pytest.approx(2**0.5)
    points = [point(seed) for seed in range(2)]
    accuracy = {"linear top-1": (12, deviation), "5-NN": (22, deviation)}
    expected = {
        "power": {
            "transformed output": (pytest.approx(-4), decade),
            "embedding": (pytest.approx(-8), decade),
        },
        "embedding_dim": {"embedding": (52, deviation), "transformed output": (62, deviation)},
        "batch_size": {"embedding": (32, deviation), "transformed output": (42, deviation)},
        "beta": {"embedding": (32, deviation), "transformed output": (42, deviation)},
    }
    places = {"power": 0, "embedding_dim": 64, "batch_size": 32, "beta": 0}
    for name, right in expected.items():
        panels = [accuracy, right]
        assert drawn(FIGURES[name](points)) == [
            {label: [(places[name], *values)] for label, values in panel.items()} for panel in panels
        ]


def test_a_line_for_each_learning_rate_over_the_iterations() -> None:
    method = {"iterations": 3, "variant": "coupled"}
    points = [point(seed, config={"base_lr": rate, "method": method}) for seed in range(2) for rate in (0.6, 0.15)]
    accuracy, rank = drawn(FIGURES["iterations_rate"](points))
    assert list(accuracy) == list(rank) == ["learning rate 0.15", "learning rate 0.6"]
    assert accuracy["learning rate 0.6"] == [(3, 12, pytest.approx(8**0.5))]
    assert rank["learning rate 0.6"] == [(3, 32, pytest.approx(8**0.5))]


def test_a_word_stands_for_a_long_override_and_names_the_run(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "name: tiny\nrecipe: demo\nwords: {six: 'views=[{size: 32}, {size: 24}, {size: 16}]'}\n"
        "cells: [six epochs=3, epochs=3, cifar10_r18_simsiam six]"
    )
    six, plain, other = cells.recipes(cells.load(str(path)), 0)
    assert [view.size for view in six.views] == [view.size for view in other.views] == [32, 24, 16]
    assert len(plain.views) == 2
    assert [made.name for made in (six, plain, other)] == [
        "tiny-six_epochs_3",
        "tiny-epochs_3",
        "tiny-cifar10_r18_simsiam_six",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "small"), [("which_part", 96), ("which_part_reduced", 16)])
def test_which_part_has_views_crops_and_momentum_for_intl_and_three_baselines(name: str, small: int) -> None:
    made = cells.recipes(cells.load(name), 0)
    found: dict[str, set[tuple[int, bool]]] = {}
    for recipe in made:
        sizes = {view.size for view in recipe.views}
        assert len(recipe.views) in (2, 6)
        assert (min(sizes) == small) == (len(sizes) > 1)
        found.setdefault(recipe.method["name"], set()).add((len(recipe.views), len(sizes) > 1))
    everything = {(2, False), (6, False), (6, True)}
    assert found == dict.fromkeys(("intl", "simsiam", "byol", "mocov2", "barlow_twins"), everything)
    targets = [
        (len(r.views), r.views[-1].size, r.method["momentum_target"]) for r in made if r.method["name"] == "intl"
    ]
    assert len(targets) == 8  # the recipe's own two views too
    assert len(set(targets)) == 6


@pytest.mark.parametrize("name", ["axis", "axis_reduced"])
def test_both_axes_have_equal_batches_and_dimensions(name: str) -> None:
    made = cells.recipes(cells.load(name), 0)
    sizes = {
        axis: [(r.batch_size, r.projector.out) for r in made if r.method["axis"] == axis]
        for axis in ("channel", "batch")
    }
    assert sizes["channel"] == sizes["batch"]
    assert all(d < m for m, d in sizes["batch"])


def test_trace_loss_figure_shows_both_kinds_of_divergence() -> None:
    """The two kinds are eigenvalues far above one, and NaN."""
    paper = {"batch_size": 32, "method": {"iterations": 11, "variant": "paper"}}
    nan = {"config": paper, "metrics": {"diverged": 100.0}, "details": {}}
    points = [point(seed) for seed in range(2)] + [point(seed, **nan) for seed in range(2)]
    points += [point(seed, method="IterNorm", config=paper) for seed in range(2)]
    figure = FIGURES["trace_loss"](points)
    white, embedding, *_ = figure.axes
    deviation, decade = pytest.approx(8**0.5), pytest.approx(2**0.5)
    assert drawn(figure)[2:] == [
        {
            "with trace loss, coupled": [(3, 12, deviation)],
            "without trace loss, paper": [(11, 12, deviation)],
        },
        {
            "with trace loss, coupled": [(3, pytest.approx(6), decade)],
            "without trace loss, paper": [(11, pytest.approx(6), decade)],
        },
    ]
    for axes, mean in ((white, 1e6), (embedding, 1e4)):  # geometric means of the coupled iteration only
        (line,) = axes.get_lines()
        assert line.get_label() == "T = 3"
        assert line.get_xdata().tolist() == [50, 100]
        assert line.get_ydata().tolist() == pytest.approx([mean, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "cells: there is none; expected at least one"),
        ("name: x\ncells: [epochs=1]\nseeds: 0\n", "seeds=0"),
        ("name: x\ncells: [epochs=1]\ntasks: [quiz]\n", "tasks: 'quiz' is not one of linear, knn"),
        ("name: x\ncells: [epochs=1]\ntasks: [knn k]\n", "tasks: 'knn k': found k; expected TASK [--config NAME]"),
        ("name: x\nrecipe: demo\ncells: [epochs=1]\ntasks: [knn kk=1]\n", "unknown key 'kk'; did you mean k?"),
        ("name: x\ncells: [epochs=1]\nfigure: pie\n", "figure: 'pie' is not one of power"),
        ("name: x\ncells: [epochs=1]\nwords: {a: b}\n", "words.a: found 'b'; expected an override such as epochs=100"),
        ("name: x\ncells: [epoch=1]\n", "unknown key 'epoch'; did you mean epochs?"),
        ("name: x\nrecipe: demo\ncells: [epochs=1, method.axis=batch]\n", "512 features over 128 samples is singular"),
        ("name: x\nrecipe: demo\ncells: [epochs=1, epochs=01]\n", "epochs=1 and epochs=01: are the same training"),
        (f"{SMALL}tasks: [knn k=5000]\n", "k=5000: there are only 200 training images; expected at most 200"),
        (f"{SMALL}tasks: [linear selection=val val_share=0.999]\n", "val_share=0.999: leaves a class without images"),
        (
            f"{SMALL}tasks: [linear selection=val val_share=0.001]\n",
            "means 0 of the 200 images of 10 classes",
        ),
        (f"{SMALL}tasks: [finetune train_percent=10 batch_size=99 drop_last=true]\n", "only 20 images"),
        (f"{SMALL}tasks: [transfer size=32 val_share=0.99]\n", "val_share=0.99: leaves a class without images"),
        (f"{SMALL}tasks: [transfer size=32 ways=1]\n", "ways=1: expected at least 2"),
        ("name: x\nrecipe: cifar10_r19_intl\ncells: [epochs=1]\n", "did you mean cifar10_r18_intl?"),
    ],
)
def test_bad_grids_are_one_line(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(text)
    for option in ([], ["--dry-run"]):
        assert cli.main(["ablation", "bad.yaml", *option]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not Path("results").exists()


def test_a_score_on_a_gpu_is_refused_before_the_training_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("gpu.yaml").write_text(f"{SMALL}tasks: [knn device=cuda]\n")
    for option in ([], ["--dry-run"]):
        assert cli.main(["ablation", "gpu.yaml", *option]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert "device=cuda: PyTorch sees no GPU here" in line
    assert cli.main(["ablation", "gpu.yaml", "--dry-run", "--slurm", "timeout_min=9"]) == 0  # the jobs may have one
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_figure_shows_the_scores_of_the_grid_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_points: list[Sequence[Point]] = []
    figure = FIGURES["embedding_dim"]
    monkeypatch.setitem(FIGURES, "embedding_dim", lambda points: drawn_points.append(points) or figure(points))
    small = "[data.size=200, batch_size=32, epochs=1, warmup_epochs=0, projector.hidden=32]"
    for k in (7, 3, 5, 1):
        tasks = f"tasks: [linear epochs=1 batch_size=50 lr={k}e-3, knn]"
        Path("f.yaml").write_text(
            f"name: f\nrecipe: demo\noverrides: {small}\ncells: [projector.out=16]\nfigure: embedding_dim\n{tasks}\n"
        )
        assert cli.main(["ablation", "f.yaml", "--seeds", "1", "method.axis=batch"]) == 0
        records = RecordStore(Path("results/ablations/f/records")).load()
        (own,) = [r for r in records if r.task == "linear" and r.config["lr"] == k * 1e-3]
        assert drawn_points[-1][0].metrics["top1"] == own.metrics["top1"]
    assert len({points[0].metrics["top1"] for points in drawn_points}) > 1


def test_a_finished_cell_is_scored_on_the_images_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    values = arrays()
    Path("a.npz").write_bytes(npz(values))
    Path("one.yaml").write_text(
        GRID.replace("data.size=200", "data.kind=npz, data.name=mine, workers=0, device=cpu")
        .replace("  - method.iterations=60 method.variant=paper base_lr=5\n", "")
        .replace("random: true\nfigure: trace_loss\n", "")
    )

    def run(root: str) -> tuple[list[ResultRecord], int]:
        assert cli.main(["ablation", "one.yaml", "--seeds", "1", f"data.root={root}"]) == 0
        records = RecordStore(Path("results/ablations/tiny/records")).load()
        return [r for r in records if r.task == "knn"], capsys.readouterr().err.count("finished ")

    (first,), trained = run("a.npz")
    assert trained == 1
    Path("a.npz").rename("b.npz")  # the images moved, and a score got lost
    Path(first.file).unlink()
    (again,), trained = run("b.npz")
    assert (trained, again.metrics, again.key) == (0, first.metrics, first.key)
    values["test_y"] = values["test_y"][::-1].copy()  # other test images
    Path("b.npz").write_bytes(npz(values))
    both, trained = run("b.npz")
    assert trained == 0
    assert {r.key for r in both} > {first.key}
    assert len({r.evaluation["data"]["test"] for r in both}) == 2


def test_another_size_is_another_run_and_not_that_of_the_paper() -> None:
    power = cells.load("power")
    whole, small = (cells.recipes(power, 0, words) for words in ((), ("size=16",)))
    assert {recipe.scale for recipe in whole} == {"adapted"}
    assert {recipe.scale for recipe in small} == {"reduced"}
    assert {recipe.name for recipe in whole}.isdisjoint(recipe.name for recipe in small)


@pytest.mark.parametrize("word", ["seed=7", "name=mine"])
def test_the_grid_names_its_runs_and_seeds(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ablation", "power_reduced", word, "--dry-run"]) == 2
    assert f"{word}: a grid names its runs and seeds itself; choose seeds with --seeds" in capsys.readouterr().err


def test_the_command_needs_the_name_of_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ablation"]) == 2
    assert cli.main(["ablation", "powr"]) == 2
    assert "did you mean power?" in capsys.readouterr().err
    assert cli.main(["ablation", "grid.yaml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ablation   tiny: 2 cells x 2 seeds, scale reduced\nseeds      0, 1\n")
    assert "\ncells      cell  " in printed
    assert "\n           method.iterations_1 " in printed
    assert "0 of 2\n" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert not Path("results").exists()


@pytest.mark.parametrize("line", ["scale: x", "overrides: [[a]]", "cells: [{a: 1}]", "tasks: [[knn]]"])
def test_a_malformed_grid_is_one_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"name": "name: g", "recipe": "recipe: demo", "cells": "cells: [epochs=1]", line.split(":")[0]: line}
    Path("g.yaml").write_text("\n".join(values.values()))
    assert cli.main(["ablation", "g.yaml", "--dry-run"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"intl-bench: config g.yaml: {line.split(':')[0]}")


def test_equal_cells_would_share_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("name: tiny\nrecipe: demo\ncells: [epochs=1, 'epochs=1 ']")
    with pytest.raises(InputError, match=r"cells: 'epochs=1 ' has the name of another cell, tiny-epochs_1"):
        cells.recipes(cells.load(str(path)), 0)
