"""What a grid does again: with `--fresh`, after a stop, after a divergence; nothing old stays beside the new."""

import contextlib
import dataclasses
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from intl_bench import cli, runs
from intl_bench.ablations import grid
from intl_bench.core.errors import DivergedError, Preempted
from intl_bench.core.signals import StopRequest
from intl_bench.records import RecordStore, ResultRecord
from pretrain import train

GRID = """
name: again
recipe: demo
overrides: [data.size=160, batch_size=32, epochs=1, warmup_epochs=0, projector.hidden=16, projector.out=16, workers=0]
cells: [method.beta=0.05, method.beta=0.1]
seeds: 1
tasks: [knn]
random: true
"""
RESULTS = Path("results/ablations/again")
RANDOM = "Random init"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)


@pytest.fixture(scope="module")
def _once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        Path("grid.yaml").write_text(GRID)
        assert ablation() == 0
    return folder


@pytest.fixture
def _finished(_once: Path, tmp_path: Path) -> None:
    """All of the grid is finished."""
    shutil.copytree(_once, tmp_path, dirs_exist_ok=True)


def ablation(*options: str) -> int:
    return cli.main(["ablation", "grid.yaml", *options])


def records(task: str = "") -> list[ResultRecord]:
    return [r for r in RecordStore(RESULTS / "records").load() if task in ("", r.task)]


def written() -> dict[str, int]:
    """When each record was written."""
    return {r.file: Path(r.file).stat().st_mtime_ns for r in records()}


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: Exception) -> Iterator[None]:
    """The given call of a function raises an error instead, from 1 on."""
    real, calls = getattr(owner, name), []

    def run(*words: Any, **options: Any) -> Any:
        calls.append(words)
        if len(calls) == call:
            raise error
        return real(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, run)
        yield


def trained(monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[list[str], list[str]]:
    """Run the grid; return the cells that it trained and what it scored."""
    cells, scores = [], []
    train_run, score = train.loop.train, runs._run_seed

    def training(self: Any, *rest: Any) -> Any:
        cells.append(f"beta {self.recipe.method['beta']}")
        return train_run(self, *rest)

    def scoring(plan: Any, task: Any, *rest: Any) -> Any:
        before = written()
        record = score(plan, task, *rest)
        if written() != before:
            scores.append(f"{plan.task} {record.method}")
        return record

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "train", training)
        patch.setattr(runs, "_run_seed", scoring)
        assert ablation(*options) == 0
    return cells, scores


ALL = (["beta 0.05", "beta 0.1"], ["knn INTL", "knn INTL", f"knn {RANDOM}"])


@pytest.mark.usefixtures("_finished")
def test_fresh_repeats_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = written()
    assert trained(monkeypatch) == ([], [])
    assert trained(monkeypatch, "--fresh") == ALL
    after = written()
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in before)
    assert not (RESULTS / "fresh.json").exists()
    assert trained(monkeypatch) == ([], [])


@pytest.mark.usefixtures("_finished")
@pytest.mark.parametrize(
    ("owner", "name", "call", "left"),
    [
        (grid.fresh, "start", 1, ([], [])),  # it has not begun
        pytest.param(train, "discard", 1, ALL, marks=pytest.mark.long),
        pytest.param(RecordStore, "remove", 1, ALL, marks=pytest.mark.long),
        (RecordStore, "remove", 2, ALL),  # the record of the end, which was to be removed last
        (runs, "run", 1, ([ALL[0][1]], ALL[1])),
        (RecordStore, "replace", 1, ([ALL[0][1]], ALL[1][1:])),
        (runs, "run", 3, ([], ALL[1][2:])),
    ],
)
def test_a_stopped_fresh_goes_on_without_it(
    owner: Any,
    name: str,
    call: int,
    left: tuple[list[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = written()
    with failing(monkeypatch, owner, name, call, Preempted("stopped", 75)):
        assert ablation("--fresh") == 75
    assert trained(monkeypatch) == left
    assert written().keys() == before.keys()
    if left != ([], []):
        assert all(written()[path] > before[path] for path in before)


def test_a_line_about_a_stop_says_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(StopRequest().error("after step 3", signal.SIGTERM)).endswith("; run the same command again to resume")
    monkeypatch.setattr("sys.argv", ["intl-bench", "ablation", "power", "--fresh"])
    assert str(StopRequest().error("after step 3", signal.SIGTERM)).endswith("again without --fresh to resume")


@pytest.mark.usefixtures("_finished")
def test_the_plan_counts_what_a_stopped_fresh_has_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation("--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count("  1 of 1\n") == 2
    assert "for what is left" not in printed  # the scores at random initialization are there too
    with failing(monkeypatch, train, "run", 2, Preempted("stopped", 75)):
        assert ablation("--fresh") == 75
    capsys.readouterr()
    assert ablation("--dry-run") == 0
    printed = capsys.readouterr().out
    assert (printed.count("  1 of 1\n"), printed.count("  0 of 1\n")) == (1, 1)
    assert "for what is left" in printed
    (RESULTS / "fresh.json").write_text("{")
    for option in ([], ["--dry-run"]):
        assert ablation(*option) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "fresh.json: damaged" in line
        assert "delete it, and add --fresh to start over again" in line


@pytest.mark.usefixtures("_finished")
def test_scores_of_earlier_weights_do_not_stay_beside_those_of_new_ones(capsys: pytest.CaptureFixture[str]) -> None:
    store, (first, *_) = RecordStore(RESULTS / "records"), [r for r in records("knn") if r.method != RANDOM]
    other = dataclasses.replace(first, weights_sha256="0" * 64, evaluation={**first.evaluation, "more": 1})
    store.append(other)  # as of a task that the grid has no more, of a training on another machine
    for record in records("pretrain"):
        store.remove(record)
    capsys.readouterr()
    assert ablation() == 0
    assert "removed 1 scores of earlier weights: knn" in capsys.readouterr().out
    assert {r.weights_sha256 for r in records("knn")} >= {first.weights_sha256}
    assert other.weights_sha256 not in {r.weights_sha256 for r in records()}


@pytest.mark.usefixtures("_finished")
def test_a_cell_that_diverges_has_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(monkeypatch, train, "run", 1, DivergedError("diverged at step 3")):
        assert ablation("--fresh") == 0
    ends = {r.config["method"]["beta"]: r.metrics["diverged"] for r in records("pretrain")}
    assert ends == {0.05: 100.0, 0.1: 0.0}
    assert len([r for r in records("knn") if r.method != RANDOM]) == 1
    row = next(line for line in (RESULTS / "table.md").read_text().splitlines() if "beta 0.05" in line)
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["–"] * 6 + ["100.00 (1)"]


def test_an_embedding_that_overflows_has_diverged_and_the_grid_continues() -> None:
    Path("grid.yaml").write_text(
        GRID.replace("batch_size=32", "batch_size=160").replace("method.beta=0.05", "base_lr=1e6")
    )
    assert ablation() == 0
    ends = {r.config["base_lr"]: r for r in records("pretrain")}
    assert ends.pop(1e6).metrics == {"diverged": 100.0}
    (finished,) = ends.values()
    assert finished.metrics["diverged"] == 0.0
    assert {r.weights_sha256 for r in records("knn") if r.method != RANDOM} == {finished.details["weights_sha256"]}


def test_a_score_that_diverges_is_named_and_the_other_cells_are_finished(capsys: pytest.CaptureFixture[str]) -> None:
    score = "finetune epochs=1 backbone_lr=1e18 head_lr=1e18 train_percent=10 batch_size=16"
    Path("grid.yaml").write_text(GRID.replace("[knn]", f"[knn, {score}]").replace("random: true", "random: false"))
    assert ablation() == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("intl-bench: ")]
    assert "method.beta_0.05/seed0: finetune epochs=1 backbone_lr=1e18" in line
    assert "2 of the cells lack a score" in line
    assert len(records("knn")) == 2
    assert not records("pretrain")


def test_random_initialization_is_scored_on_the_images_of_every_cell() -> None:
    Path("grid.yaml").write_text(GRID.replace("method.beta=0.1", "data.size=200 data.name=other"))
    assert ablation() == 0
    assert sorted(r.dataset for r in records("knn") if r.method == RANDOM) == ["other", "shapes"]


def test_the_plan_tells_which_images_of_a_score_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.yaml").write_text(
        GRID.replace("[knn]", "[knn, knn data.kind=imagefolder data.root=nowhere data.name=x]")
    )
    assert ablation("--dry-run") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "images x (imagefolder in nowhere): NOT OPENED: cannot read the image folder nowhere/train" in printed


def test_the_table_tells_where_other_scores_are() -> None:
    Path("grid.yaml").write_text(GRID.replace("[knn]", "[knn, finetune epochs=1 train_percent=10 batch_size=16]"))
    assert ablation() == 0
    assert f"Scores of finetune: intl-bench tables --results {RESULTS}" in (RESULTS / "table.md").read_text()


@pytest.mark.usefixtures("_finished")
def test_a_second_fresh_of_other_cells_does_not_forget_the_first() -> None:
    store = RecordStore(RESULTS / "records")
    one, other = records("pretrain")
    grid.fresh.start(RESULTS, [one])
    grid.start_over([], RESULTS)
    assert [r.key for r in grid.fresh.listed(store.load(), RESULTS)] == [one.key]
    store.remove(one)
    grid.fresh.end(RESULTS)
    assert not (RESULTS / "fresh.json").exists()
    assert [r.key for r in records("pretrain")] == [other.key]
