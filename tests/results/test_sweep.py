"""`intl-bench sweep`: the same search for every method, chosen on held-out images; resumed; its table."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intl_bench import cli
from intl_bench.ablations import sweep
from intl_bench.core import config as configs
from intl_bench.core.errors import DivergedError, InputError
from intl_bench.records import RecordStore, ResultRecord

WORDS = ["base_lr=[0.01,0.5,1000]", "data.size=200", "batch_size=32", "epochs=1", "warmup_epochs=0"]
SMALL = ["projector.hidden=32", "projector.out=16", "workers=0", "device=cpu"]
RESULTS = Path("results/sweeps/mine")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("simsiam.yaml").write_text("base: demo\nmethod: {name: simsiam}\n")


def plan(**changes: Any) -> sweep.Sweep:
    values = {"base_lr": ("0.1", "0.3", "1"), "weight_decay": ("0", "1e-4")}
    return sweep.Sweep(**{"name": "mine", "recipes": ("demo",), "space": values, "budget": 6, **changes})


def records(folder: Path = RESULTS) -> list[ResultRecord]:
    return RecordStore(folder / "records").load()


def test_the_settings_are_the_grid_or_a_seeded_part_of_it() -> None:
    whole = plan().settings
    assert whole[:3] == [
        ("base_lr=0.1", "weight_decay=0"),
        ("base_lr=0.1", "weight_decay=1e-4"),
        ("base_lr=0.3", "weight_decay=0"),
    ]
    assert len(set(whole)) == 6
    assert plan(budget=100).settings == whole
    few = [plan(budget=3, draw_seed=seed).settings for seed in range(20)]
    assert all(len(set(one)) == 3 and set(one) < set(whole) for one in few)
    assert len({tuple(one) for one in few}) > 5
    assert plan(budget=3, draw_seed=4, recipes=("demo", "simsiam.yaml")).settings == few[4]


def test_the_search_holds_out_images_and_the_final_runs_have_all() -> None:
    one = plan(recipes=("demo", "simsiam.yaml"), share=0.25, overrides=("data.size=200",))
    searched = one.searched()
    assert [recipe.method["name"] for recipe in searched] == ["intl"] * 6 + ["simsiam"] * 6
    assert {(recipe.data.holdout, recipe.data.size) for recipe in searched} == {(0.25, 200)}
    assert [(r.base_lr, r.weight_decay) for r in searched[:6]] == [(r.base_lr, r.weight_decay) for r in searched[6:]]
    final = one.final_cells(dict.fromkeys(one.recipes, one.settings[3]))[:2]
    assert [(r.base_lr, r.weight_decay, r.data.holdout) for r in final] == [(0.3, 1e-4, None)] * 2
    assert not {r.name for r in searched} & {r.name for r in final}
    Path("held.yaml").write_text("base: demo\ndata: {holdout: 0.3, holdout_seed: 7}\n")
    own = plan(recipes=("held.yaml",), share=0.25)
    data = [some[0].data for some in (own.searched(), own.final_cells({"held.yaml": own.settings[3]}))]
    assert [(one.holdout, one.holdout_seed if one.holdout else 0) for one in data] == [(0.25, 0), (None, 0)]
    on_test = plan(select="best-on-test")
    assert on_test.searched()[3] == on_test.final_cells({"demo": on_test.settings[3]})[0]


def test_sweeps_of_one_name_do_not_meet_in_a_folder_and_a_path_may_have_spaces() -> None:
    Path("my recipes").mkdir()
    Path("my recipes/it's one.yaml").write_text("base: demo\n")
    recipes = ("my recipes/it's one.yaml",)
    changes = [{}, {"share": 0.25}, {"overrides": ("epochs=3",)}, {"overrides": ("epochs=30",)}]
    made = [plan(recipes=recipes, **change) for change in changes]  # type: ignore[arg-type]
    assert len({recipe.name for one in made for recipe in one.searched()}) == 6 * len(made)
    final = [one.final_cells({recipes[0]: one.settings[0]})[0] for one in made]
    assert [final[0] == other for other in final] == [True, True, False, False]  # all training images, whatever chose
    assert len({recipe.name for recipe in final}) == 3
    moved = plan(recipes=recipes, overrides=("workers=0", "data.root="))
    assert [r.name for r in moved.searched()] == [r.name for r in made[0].searched()]
    assert final[0].name.startswith("mine-")
    assert all(len(recipe.name) < 80 for one in made for recipe in one.searched())


def test_lists_of_values_are_searched_and_list_settings_are_not() -> None:
    words = ["base_lr=[0.1, 0.3]", "data.mean=[0.5,0.5,0.5]", "epochs=3", "method.power=[0.5,1]"]
    space, overrides = sweep.parse(words)
    assert space == {"base_lr": ("0.1", "0.3"), "method.power": ("0.5", "1")}
    assert overrides == ["data.mean=[0.5,0.5,0.5]", "epochs=3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base_lr=[1,2]"], "RECIPE is missing"),
        (["demo"], "no list of values"),
        (["demo", "base_lr=0.3,0.6"], "no list of values in base_lr=0.3,0.6; expected at least one, such as"),
        (["demo", "base_lr=[1,1]"], "base_lr=[1,1]: expected different values"),
        (["demo", "base_lr=[0.1,1e-1]"], "demo base_lr=0.1 and demo base_lr=1e-1: are the same training"),
        (["demo", "base_lr=[0.1,'0.1']"], "are the same training; expected different ones"),
        (["demo", "decay_one_dimensional=[true,True]"], "are the same training; expected different ones"),
        (["demo", "optimizer=[sgd,adamw]", "momentum=[0.5,0.9]"], "demo optimizer=adamw momentum=0.9: are the same"),
        (["log.yaml", "demo", "base_lr=[1]"], "log.yaml base_lr=1 and demo base_lr=1: are the same training"),
        (["demo", "method.name=[intl,vicreg]"], "method.name: cannot be searched; name a recipe for each method"),
        (["demo", "base_lr=[0.1,0.3]", "data.kind=npz", "data.root=no_test.npz"], "no array 'test_x'"),
        (["demo", str(configs.CONFIGS / "pretrain" / "demo.yaml"), "base_lr=[1]"], "are the same training"),
        (["demo", "base_lr=[1]", "base_lr=2"], "base_lr=2: this setting has a list of values too"),
        (["demo", "base_lr=[]"], "expected different values"),
        (["demo", "demo", "base_lr=[1]"], "twice"),
        (["demo", "base_lr=[1]", "base_lr=[2]"], "has two lists"),
        (["demo", "seed=[1,2]"], "seed: cannot be searched"),
        (["demo", "workers=[1,2]"], "workers: cannot be searched"),
        (["demo", "data.size=[100,200]"], "data.size: cannot be searched"),
        (["demo", "base_lr=[1]", "data.holdout=0.1"], "a sweep sets it itself"),
        (["demo", "base_lr=[1]", "--budget", "0"], "--budget 0: expected at least 1"),
        (["demo", "base_lr=[1]", "--share", "1"], "--share 1.0: expected more than 0"),
        (["demo", "base_lr=[1]", "--score", "coco"], "--score coco: expected linear or knn"),
        (["demo", "base_lr=[1]", "--score", "knn five"], "--score: 'knn five': found five; expected TASK [--config"),
        (["demo", "base_lr=[1]", "--score", "knn 'k=5"], "No closing quotation; close the quotation"),
        (["demo", "base_lr=[1]", "--score", "knn data.holdout=null"], "has other images; expected those of the search"),
        (["demo", "base_lr=[1]", "--score", "knn 'data={holdout: null}'"], "has other images"),
        (["demo", "base_lr=[1]", "--score", "knn k=7"], "--score knn k=7: has k=7; expected k=5"),
        (["demo", "base_lr=[1]", "--score", "knn --config dino"], "has k=20; expected k=5"),
        (["demo", "base_lr=[1]", "--score", "linear selection=best-on-test"], "has selection=best-on-test; expected"),
        (["demo", "base_lr=[1]", "--score", "linear nosuch=3"], "unknown key 'nosuch'"),
        (["demo", "base_lr=[1]", "--score", "linear --config nosuch"], "nosuch"),
        (["demo", "base_lr=[1]", "--score", "linear epochs=abc"], "epochs: found abc; expected"),
        (["demo", "base_lr=[0.1,1]", "precision=fp16", "device=cpu"], "precision=fp16: expected a GPU"),
        (["demo", "base_lr=[1]", "--name", "a/b"], "it is a path"),
        (["demo", "base_lr=[nan]"], "base_lr=nan"),
        (["demo", "method.powr=[1]"], "powr"),
        (["nowhere", "base_lr=[1]"], "nowhere"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("log.yaml").write_text("base: demo\nname: other\nlog_every: 5\nworkers: 0\n")
    np.savez("no_test.npz", train_x=np.zeros((400, 32, 32, 3), np.uint8), train_y=np.arange(400) % 4)
    for option in ([], ["--dry-run"]):
        assert cli.main(["sweep", *words, *option]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert not printed.out
    assert not Path("results").exists()
    assert not Path("runs").exists()


def test_the_size_of_the_views_is_a_setting_of_the_training() -> None:
    one = plan(space={"size": ("16", "24")}, overrides=("epochs=3",))
    assert [recipe.views[0].size for recipe in one.searched()] == [16, 24]
    other = plan(overrides=("size=16",))
    assert {recipe.name for recipe in other.searched()}.isdisjoint(recipe.name for recipe in plan().searched())
    assert plan(score="linear --config default size=64 device=cpu").chosen_by == "linear --config default size=64"


def test_the_best_score_is_chosen_the_first_of_equal_ones_and_never_a_diverged_one() -> None:
    def tried(*scores: float | None) -> list[sweep.Tried]:
        return [sweep.Tried(setting=(f"x={n}",), score=s, cell=None) for n, s in enumerate(scores)]  # type: ignore[arg-type]

    chosen = sweep.choose({"a": tried(None, 3.0, 7.0, 7.0), "b": tried(0.0, None)})
    assert {name: best.setting for name, best in chosen.items()} == {"a": ("x=2",), "b": ("x=0",)}
    with pytest.raises(DivergedError, match="b: every setting of the search diverged"):
        sweep.choose({"b": tried(None, None)})
    with pytest.raises(InputError, match="not finished; run the same"):
        sweep.tried(plan(space={"base_lr": ("0.1",)}, overrides=("data.size=200",)), Path("results"))


@pytest.mark.slow
def test_a_sweep_of_two_methods_from_search_to_table(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "demo", "simsiam.yaml", *WORDS, *SMALL, "--budget", "2", "--seeds", "2", "--share", "0.25"]
    command += ["--name", "mine", "--draw-seed", "1", "--score", "linear epochs=20"]
    assert cli.main([*command, "--dry-run"]) == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "search: 2 of 3 settings for each of 2 recipes" in printed
    assert "fixed costs add" in printed
    assert not Path("results").exists()

    assert cli.main(command) == 0
    printed, progress = capfd.readouterr()
    assert "next:" not in progress  # the sweep scores its runs itself
    searched = records(RESULTS / "search")
    assert {
        (record.protocol["scored_on"], record.details["test_images"])
        for record in searched
        if record.task != "pretrain"
    } == {("0.25 of the training images, held out with seed 0", 50)}
    assert {record.protocol["epochs"] for record in searched if record.task == "linear"} == {20}
    tuned = [record for record in records() if record.task == "sweep"]
    assert sorted((record.method, record.pretrain_seed) for record in tuned) == [
        ("INTL", 0),
        ("INTL", 1),
        ("SimSiam", 0),
        ("SimSiam", 1),
    ]
    assert len({record.evaluation_sha256 for record in tuned}) == 1
    for record in tuned:
        scores = {tuple(one["setting"]): one["score"] for one in record.details["search"]}
        assert len(scores) == 2
        best = max(scores, key=lambda setting: -1 if scores[setting] is None else scores[setting])
        assert record.metrics.get("val/score") == (scores[best] if record.pretrain_seed == 0 else None)
        assert record.protocol["chosen"] == best[0].replace("=", " ")
        assert record.protocol["budget"] == "2 of 3 settings"
        assert record.protocol["chosen_by"] == "top1 of linear epochs=20, seed 0"
        assert record.pretraining["settings"]["base_lr"] == float(best[0].partition("=")[2])
        own = {
            r.task: r
            for r in records()
            if r.task in ("knn", "linear") and (r.method, r.pretrain_seed) == (record.method, record.pretrain_seed)
        }
        assert record.metrics["knn/knn5"] == own["knn"].metrics["knn5"]
        assert record.metrics["linear/top1"] == own["linear"].metrics["top1"]
        assert own["knn"].details["train_images"] == 200
        assert own["linear"].protocol["epochs"] == 20
    text = (RESULTS / "table.md").read_text()
    assert text.strip() in printed
    assert text.count("budget 2 of 3 settings, chosen on 0.25 of the training images") == 2

    before = {path: path.read_bytes() for path in RESULTS.rglob("*.json")}
    tuned_paths = [path for path in before if path.parent.name == "sweep"]
    assert len(tuned_paths) == 4
    next(path for path in before if path.parent.name == "knn" and "search" in path.parts).unlink()
    assert cli.main(command) == 0
    assert capfd.readouterr().out.count("already there") >= 7
    after = {path: path.read_bytes() for path in RESULTS.rglob("*.json")}
    assert after.keys() == before.keys()

    # A score of the same weights with another k is none of the sweep.
    extra = next(record for record in records() if record.task == "knn")
    other = {**extra.evaluation, "settings": {**extra.evaluation["settings"], "k": 7}}
    metrics = {"knn5": 99.0}
    RecordStore(RESULTS / "records").append(
        dataclasses.replace(extra, evaluation=other, metrics=metrics, transfer_seed=5, file="")
    )
    assert cli.main(command) == 0
    assert {path: path.read_bytes() for path in tuned_paths} == {path: after[path] for path in tuned_paths}
    capfd.readouterr()

    # Another choice of the same search replaces the records of the earlier one.
    (first,) = {record.protocol["chosen"] for record in tuned if record.method == "INTL"}
    scored = [r for r in records(RESULTS / "search") if (r.task, r.method) == ("linear", "INTL")]
    loser = next(r for r in scored if f"base_lr {r.pretraining['settings']['base_lr']:g}" != first)
    RecordStore(RESULTS / "search" / "records").replace(dataclasses.replace(loser, metrics={"top1": 100.0}, file=""))
    assert cli.main([*command, "--seeds", "1"]) == 0
    now = {
        (r.pretrain_seed, r.protocol["chosen"] == first) for r in records() if (r.task, r.method) == ("sweep", "INTL")
    }
    assert now == {(0, False)}  # no seed of the earlier choice is left
    assert cli.main(command) == 0
    tuned = [record for record in records() if record.task == "sweep"]
    assert len(tuned) == 4
    assert {record.protocol["chosen"] for record in tuned if record.method == "INTL"} != {first}

    # Rows of other overrides stay, such as those of another budget of epochs or of another method by an override.
    assert cli.main(["sweep", "demo", *WORDS, *SMALL, "epochs=2", *command[-8:]]) == 0
    assert len([record for record in records() if record.task == "sweep"]) == 7
    assert len([r for r in records() if r.task == "sweep" and r.pretraining["settings"]["epochs"] == 1]) == 4

    # A seed that diverged stays in the row of the others.
    (end,) = [
        record
        for record in records()
        if (record.task, record.method, record.pretrain_seed) == ("pretrain", "INTL", 1)
        and record.pretraining_sha256 in {one.pretraining_sha256 for one in tuned}
    ]
    gone = {"diverged": "the loss is not finite", "weights_sha256": None}
    store = RecordStore(RESULTS / "records")
    store.replace(dataclasses.replace(end, metrics={"diverged": 100.0}, details=gone, weights_sha256=None, file=""))
    assert cli.main(command) == 0
    rows = [r for r in records() if (r.task, r.method) == ("sweep", "INTL") and r.config["epochs"] == 1]
    assert [record.metrics["diverged"] for record in rows] == [0.0, 100.0]
    assert len({record.evaluation_sha256 for record in rows}) == 1
    capfd.readouterr()

    # The same search on the test images has rows of its own. It takes the pre-trainings that are there. With --fresh it
    # trains each setting once, that of the choice too.
    words = ["sweep", "demo", "base_lr=[0.01,0.5]", *WORDS[1:], *SMALL, "--seeds", "1", "--name", "mine"]
    words += ["--score", "knn", "--select", "best-on-test"]
    assert cli.main(words) == 0
    assert capfd.readouterr().err.count("finished ") == 0
    ways = {
        tuple(r.details["scores"]) for r in records() if r.task == "sweep" and "test images" in r.protocol["chosen_on"]
    }
    assert ways == {("knn",)}  # without a linear classifier, which takes longer
    assert cli.main([*words, "--fresh"]) == 0
    assert capfd.readouterr().err.count("finished ") == 2
    text = (RESULTS / "table.md").read_text()
    assert text.count("settings, chosen on the test images") == 1
    assert text.count("settings, chosen on 0.25 of the training images") == 3  # one of them with two epochs


@pytest.mark.slow
@pytest.mark.parametrize("select", ["val", "best-on-test"])
def test_fresh_repeats_the_search_and_the_final_runs(select: str) -> None:
    command = ["sweep", "demo", "method.beta=[0.05,0.1]", *WORDS[1:], *SMALL, "--score", "knn", "--seeds", "2"]
    command += ["--name", "mine", "--select", select]
    assert cli.main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in RESULTS.rglob("records/*/*.json")}
    assert cli.main([*command, "--fresh"]) == 0
    after = {path: path.stat().st_mtime_ns for path in RESULTS.rglob("records/*/*.json")}
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in before)
    assert not list(RESULTS.rglob("fresh.json"))
    assert cli.main(command) == 0
    again = {path: path.stat().st_mtime_ns for path in RESULTS.rglob("records/*/*.json") if path.parent.name != "sweep"}
    assert again.items() <= after.items()
