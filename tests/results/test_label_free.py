"""Rank correlations of RankMe, alpha and the condition number with the scores of runs."""

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import KNN, LINEAR, R18, make, record_pair

from intl_bench.cli import main
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.spectra.label_free import correlate, kendall, read, runs_of, spearman

PROJECT = Path(__file__).resolve().parents[2] / "results" / "project"


def five() -> list[ResultRecord]:
    """Return five runs whose RankMe has the order of the scores, and whose condition number has the reverse one."""
    rows = [
        (10.0, 5.0, 3.0, 0.0),
        (20.0, 6.0, 0.5, 0.0),
        (30.0, 7.0, 1.4, 1e-6),
        (40.0, 8.0, 0.7, 1e-4),
        (50.0, 9.0, None, 1e-2),
    ]
    return [one for place, row in enumerate(rows) for one in record_pair(place, *row)]


def test_folders_of_one_name_stay_apart(tmp_path: Path) -> None:
    for folder in ("results", "results/sweeps/a/search", "results/sweeps/b/search", "results/sweeps/b"):
        for one in record_pair(1, 50.0, 9.0, 1.0, 0.1):
            RecordStore(tmp_path / folder / "records").append(one)
    found = read([tmp_path / "results", tmp_path / "results" / "sweeps" / "a"])  # a folder twice
    assert {name: len(some) for name, some in found.items()} == {"results": 2, "a/search": 2, "b/search": 2, "b": 2}


def test_correlations_of_the_examples_of_scipys_documentation() -> None:
    assert spearman(np.arange(1.0, 6), np.array([5.0, 6, 7, 8, 7])) == pytest.approx(0.8207826816681233, abs=1e-12)
    found = kendall(np.array([12.0, 2, 1, 12, 2]), np.array([1.0, 4, 7, 1, 0]))
    assert found == pytest.approx(-0.47140452079103173, abs=1e-12)


def mean_ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_correlations_are_those_of_their_definitions(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(side, float) for side in zip(*pairs, strict=True))
    found = spearman(x, y), kendall(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert all(map(math.isnan, found))
        return
    assert found[0] == pytest.approx(np.corrcoef(mean_ranks(x.tolist()), mean_ranks(y.tolist()))[0, 1], abs=1e-9)
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i in range(len(x)) for j in range(i)]
    untied = [sum(one[side] != 0 for one in signs) for side in (0, 1)]
    assert found[1] == pytest.approx(sum(a * b for a, b in signs) / math.sqrt(untied[0] * untied[1]), abs=1e-9)


def test_each_number_is_ranked_as_its_paper_claims() -> None:
    found = {one.number: one for one in correlate(runs_of({"grid": five()}))}
    assert found["RankMe"].spearman == found["RankMe"].kendall == 1
    assert (found["RankMe"].chosen, found["RankMe"].best, found["RankMe"].mean) == (50, 50, 30)
    condition = found["1 / condition"]  # two infinite ones share the lowest rank
    assert condition.spearman == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4, 5], [1, 2, 3, 4, 5])[0, 1])
    alpha = found["-|alpha - 1|"]  # distances 2, 0.5, 0.4, 0.3 and no value
    assert (alpha.n, alpha.spearman, alpha.chosen) == (4, 1, 40)
    assert all(-1 <= one.low <= one.spearman <= one.high <= 1 for one in found.values())


def test_seeds_count_as_one_pretraining_and_scores_of_transfer_seeds_are_averaged() -> None:
    records = five()
    again = make("linear", "cifar10", {"top1": 14.0}, {**LINEAR, **R18, "pretrain_lr": 0}, transfer_seed=1)
    (runs,) = runs_of({"grid": [*records, again]}).values()
    assert sorted(run.score for run in runs) == [12, 20, 30, 40, 50]
    assert all(one.pretrainings == one.n for one in correlate({"score": runs}))


def test_other_evaluations_are_not_mixed_and_a_run_in_two_folders_counts_once() -> None:
    others = [
        make("linear", "cifar10", {"top1": 1.0}, {**LINEAR, **R18, "lr": 9.0, "pretrain_lr": n}) for n in range(5)
    ]
    neighbors = [make("knn", "cifar10", {"knn5": 50.0 - n}, {**KNN, **R18, "pretrain_lr": n}) for n in range(5)]
    found = runs_of({"one": [*five(), *others, *neighbors], "two": five()})
    assert [len(runs) for runs in found.values()] == [5, 5, 5]
    assert sorted(name.partition(",")[0] for name in found) == ["5-NN", "linear top-1", "linear top-1"]
    assert sum(", evaluation " in name for name in found) == 2
    by_runs = {(one.runs, one.score.partition(",")[0]): one for one in correlate(found) if one.number == "RankMe"}
    assert by_runs["all", "5-NN"].spearman == -1
    assert by_runs["two", "5-NN"].n == by_runs["all", "5-NN"].n == 5
    constant = [one for one in correlate(found) if one.best == one.mean]
    assert constant
    assert all(math.isnan(one.spearman) for one in constant)


def write(folder: Path, records: Sequence[ResultRecord]) -> None:
    for record in records:
        RecordStore(folder / "records").append(record)


def test_a_transfer_is_scored_by_the_metric_of_its_data_set() -> None:
    about = [{"metric": "mean_per_class", **R18, "pretrain_lr": n} for n in range(5)]
    scores = [make("transfer", "pets", {"top1": n, "mean_per_class": 50.0 - n}, about[n]) for n in range(5)]
    found = {one.score: one for one in correlate(runs_of({"one": [*five(), *scores]})) if one.number == "RankMe"}
    (name,) = [score for score in found if score.startswith("logistic regression, pets")]
    assert (found[name].spearman, found[name].best) == (-1, 50)


def test_a_score_of_held_out_images_says_so() -> None:
    about = [{"scored_on": "0.1 of the training images", **R18, "pretrain_lr": n} for n in range(5)]
    scores = [make("knn", "cifar10", {"knn5": float(n)}, about[n]) for n in range(5)]
    found = {one.score for one in correlate(runs_of({"one": [*five(), *scores]})) if one.score.startswith("5-NN")}
    assert "5-NN, cifar10, resnet18, held-out training images" in found


def test_the_command_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "results" / "ablations" / "tiny", five())
    out = tmp_path / "figure.png"
    for format in ("text", "markdown", "csv", "json"):
        assert main(["label-free", str(tmp_path / "results"), "--out", str(out), "--format", format]) == 0
        printed = capsys.readouterr().out
        if format == "json":
            assert json.loads(printed)[0]["spearman"] == 1
        elif format == "csv":
            assert next(csv.DictReader(io.StringIO(printed)))["number"] == "RankMe"
        else:
            assert "linear top-1, cifar10, resnet18" in printed.replace("\\", "")
            assert "1.00" in printed
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_records_of_the_project() -> None:
    if not PROJECT.is_dir():
        pytest.skip("no records of the project")
    code = (
        "import sys, pathlib; from intl_bench.spectra.label_free import *; "
        f"print(len(correlate(runs_of(read([pathlib.Path({str(PROJECT)!r})])))), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) >= 12
    assert found[1] == "False"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["few"], "label-free: fewer than four runs in few have spectra and one score; expected the runs of a grid"),
        (["few", "--out", "x.jpg"], "--out x.jpg: not a PNG file"),
        (["few", "--format", "html"], "--format html: unknown format"),
    ],
)
def test_faults_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "few", five()[:6])
    assert main(["label-free", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("label_free.png").exists()
