"""A run's folder explains itself, its end says what follows, early signs are named, and `watch` reads it."""

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import train_build

from intl_bench import run_state, watch
from intl_bench.cli import main
from intl_bench.core import files, machine
from intl_bench.core.by_products import ByProducts
from intl_bench.core.errors import ResourceError
from intl_bench.core.locks import lock
from intl_bench.core.transcript import Transcript, note
from intl_bench.report.curves import curves_html
from pretrain import pictures, run_folder, states
from pretrain.recipe import decides_the_same, load_recipe
from pretrain.signs import WINDOW, Signs

FOLDER = Path("runs/pretrain/demo/seed0")
TINY = ["data.size=80", "epochs=2", "batch_size=40", "warmup_epochs=0", "projector.hidden=16", "projector.out=16"]
COMMAND = ["pretrain", "demo", *TINY, "log_every=1", "spectrum_every=0", "device=cpu", "monitor.every=1"]
FILES = ("config.yaml", "command.txt", "log.txt", "views.png", "summary.json")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def summary() -> dict[str, object]:
    return dict(json.loads((FOLDER / "summary.json").read_text()))


def test_a_folder_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(run_folder, "CURVES_FROM", 0.0)
    assert main(COMMAND) == 0
    error = capsys.readouterr().err
    last = error.splitlines()[-2:]
    assert re.fullmatch(r"finished demo seed 0: loss [\d.]+, 5-NN [\d.]+%, linear probe [\d.]+%, in 0:00:\d\d", last[0])
    assert last[1] == f"next: intl-bench linear {FOLDER}/checkpoint.pt"

    # The settings are a recipe of the same training.
    assert decides_the_same(load_recipe(str(FOLDER / "config.yaml")), load_recipe("demo", COMMAND[2:]))
    first, second = (FOLDER / "command.txt").read_text().splitlines()
    assert first.startswith("# 20")
    assert shlex.split(second) == ["intl-bench", *COMMAND]
    log = (FOLDER / "log.txt").read_text()
    for line in error.splitlines():
        assert line in log
    for name, smallest in (("views.png", (8 * 100, 2 * 100)), ("curves.png", (900, 600))):
        size = Image.open(FOLDER / name).size
        assert size[0] >= smallest[0] <= size[1] * 8, name

    found = summary()
    assert (found["state"], found["step"], found["epochs"], found["warnings"]) == ("finished", 4, 2, [])
    rows = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    assert all(row["seconds"] > 0 for row in rows)
    assert found["loss"] == rows[-1]["loss"]
    assert found["scores"]["knn"] == pytest.approx(rows[-1]["monitor/knn"], abs=1e-3)  # type: ignore[index]


def test_scores_are_in_tensorboard_and_in_the_progress_line(capsys: Capture) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(COMMAND) == 0
    board = EventAccumulator(str(FOLDER / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("monitor/linear")] == [2, 4]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if re.match("pretrain demo: step 4 of 4,", line)]
    assert re.search(r"knn \d.*linear \d", line)


@pytest.mark.parametrize("name", FILES)
def test_a_fault_is_one_warning(name: str, capsys: Capture) -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / name).mkdir()
    assert main(COMMAND) == 0
    error = capsys.readouterr().err
    wanted = 0 if name == "views.png" else 1  # something is there already, and is left
    assert error.count(f"warning: {FOLDER / name} is not written any more: ") == wanted
    assert (FOLDER / "backbone.safetensors").exists()


def test_a_pipe_in_the_place_of_a_file_does_not_stop_a_run(capsys: Capture) -> None:
    FOLDER.mkdir(parents=True)
    os.mkfifo(FOLDER / "log.txt")
    assert main(COMMAND) == 0
    assert capsys.readouterr().err.count("log.txt is not written any more: ") == 1


def test_no_fault_is_repeated(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ResourceError("No space left on device")

    monkeypatch.setattr(files, "append_bytes", full)
    made = ByProducts(tmp_path)
    for _ in range(3):
        made.append("log.txt", "line\n")
    assert capsys.readouterr().err.count("No space left") == 1


def test_a_fault_of_the_summary_hides_no_end(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """After a fault of a GPU, a question about its memory fails too."""

    def lost(*_: object) -> dict[str, object]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(run_folder.RunFolder, "summary", lost)
    assert main([*COMMAND, "base_lr=1e20"]) == 3
    error = capsys.readouterr().err
    assert error.count("summary.json is not written any more: CUDA error") == 1
    assert "diverged at step" in error.splitlines()[-1]
    assert "diverged: diverged at step" in (FOLDER / "log.txt").read_text()
    assert main(COMMAND) == 0
    assert re.search(r"\nfinished demo seed 0: loss [\d.]+, 5-NN [\d.]+%.*\nnext: ", capsys.readouterr().err)


def test_a_diverged_run_says_so_in_its_folder(capsys: Capture) -> None:
    assert main([*COMMAND, "base_lr=1e20"]) == 3
    found = summary()
    assert found["state"] == "diverged"
    assert "diverged at step" in str(found["reason"])
    assert "diverged: diverged at step" in (FOLDER / "log.txt").read_text()
    capsys.readouterr()
    assert main(["watch", "demo"]) == 0
    assert "seed0: diverged, last line " in capsys.readouterr().out


def test_a_resumed_run_adds_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*COMMAND, "base_lr=1e20"]) == 3
    assert main([*COMMAND, "base_lr=0.5"]) == 0
    assert len((FOLDER / "command.txt").read_text().splitlines()) == 4
    assert summary()["state"] == "finished"


def test_checkpoints_of_epochs_stay_and_can_be_scored() -> None:
    words = [*COMMAND, "epochs=3", "keep_every=1", "monitor.every=0"]
    assert main(words) == 0
    assert sorted(path.name for path in FOLDER.glob("epoch*")) == ["epoch0001.pt", "epoch0002.pt", "epoch0003.pt"]
    kept = [states.load(FOLDER / f"epoch000{epoch}.pt")[0] for epoch in (1, 3)]
    assert [state["step"] for state in kept] == [2, 6]
    final = states.load(FOLDER / "checkpoint.pt")[0]
    for (name, one), (_, other) in zip(states.tensors(kept[1]), states.tensors(final), strict=True):
        assert torch.equal(one, other), name
    assert main(["knn", str(FOLDER / "epoch0001.pt"), "device=cpu", "workers=0"]) == 0


def test_a_run_that_was_killed_keeps_its_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of an epoch is there, and the state of the run is older."""
    words = [*COMMAND, "keep_every=1", "monitor.every=0"]
    assert main(words) == 0
    before = (FOLDER / "epoch0001.pt").read_bytes()
    (FOLDER / "checkpoint.pt").unlink()
    assert main(words) == 0
    assert (FOLDER / "epoch0001.pt").read_bytes() == before
    assert not (FOLDER / "epoch0001.1.pt").exists()


def test_the_disk_must_hold_the_kept_checkpoints(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import shutil

    free = 40 * 10**6
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    words = [*COMMAND, "data.size=80", "epochs=400"]
    assert main([*words, "keep_every=1"]) == 4
    assert "for 404 states of" in capsys.readouterr().err


def signs(capsys: Capture, *more: str) -> tuple[Signs, Callable[[], str]]:
    made = Signs(train_build(load_recipe("demo", more)))
    return made, lambda: capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([9.0, 7.0, 5.0, 8.0, 8.5], True),  # it fell by 4, and rose by 3
        ([9.0, 7.0, 5.0, 5.5, 4.0], False),
        ([1.0, 6.0, 8.0, 7.5], False),  # rises from the start, as with an empty queue
        ([9.0, 8.99, 9.05, 9.01], False),  # noise
    ],
)
def test_a_loss_that_rises_again_is_named_once(losses: list[float], says: bool, capsys: Capture) -> None:
    made, printed = signs(capsys)
    for number, loss in enumerate(losses):
        for step in range(WINDOW):
            made.step(loss, 0.0, number * WINDOW + step + 1)
    error = printed()
    assert error.count("the learning rate may be too high: lower base_lr=0.6") == says
    assert len(made.found) == says


@pytest.mark.parametrize(
    ("quota", "processes", "waited", "says"),
    [
        ("max 100000", 1, 0.5, "raise workers=1 to 4, one for each core"),
        ("max 100000", 2, 0.5, "raise workers=1 to 2, one for each core"),
        ("100000 100000", 1, 0.5, "1 worker on 1 core cannot make them faster"),  # of a container
        ("max 100000", 1, 0.1, ""),
    ],
)
def test_a_loader_that_starves_is_named(
    quota: str, processes: int, waited: float, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    made, printed = signs(capsys, "workers=1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(machine, "_QUOTA", Path("cpu.max"))
    Path("cpu.max").write_text(quota)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    for step in range(5 * WINDOW):
        now[0] += 1.0
        made.step(1.0, waited, step)
    error = printed()
    assert error.count(f"50% of the time is spent waiting for images; {says}") == bool(says)
    assert bool(error) == bool(says)


def test_a_collapse_is_named_when_it_begins_and_when_it_ends(capsys: Capture) -> None:
    made, printed = signs(capsys)
    fine, bad = ({"embedding/std": 1.0, "embedding/rank": rank, "embedding/largest": 0.1} for rank in (50.0, 2.0))
    for step, numbers in enumerate((fine, bad, bad, fine, bad)):
        made.embedding(numbers, 64, step, "of a batch")
    lines = printed().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning", "step 3", "warning"]
    assert "dimensional collapse: the embedding has an effective rank of 2.0 of 64" in lines[0]


def test_a_transcript_keeps_the_last_state_of_a_bar() -> None:
    lines: list[str] = []
    before, sys.stderr = sys.stderr, io.StringIO()
    try:
        with Transcript() as transcript:
            note("early")
            transcript.send_to(lines.append)
            sys.stderr.write("\r10%|#  |")
            sys.stderr.write("\r50%|## |")
            sys.stderr.write("\r99%|###|\n")
            print("a \x1b[31mcolor", file=sys.stderr)
        print("later", file=sys.stderr)
        assert sys.stderr.getvalue().endswith("later\n")
    finally:
        sys.stderr = before
    assert [line[20:] for line in lines] == ["early\n", "99%|###|\n", "a \\u001b[31mcolor\n"]


def test_views_of_two_sizes_are_drawn_with_the_colors_of_the_images() -> None:
    red = torch.zeros(3, 3, 96, 96)
    red[:, 0] = 1
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    large, small = (
        (view - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for view in (red, red[..., :40, :40])
    )
    picture = Image.open(io.BytesIO(pictures.draw_views([large, small], mean, std)))
    assert picture.size == (4 + 3 * 100, 4 + 2 * 100)
    assert picture.getpixel((50, 50)) == picture.getpixel((10, 110)) == (255, 0, 0)
    assert picture.getpixel((95, 195)) == (255, 255, 255)  # the small view is twice as large, not three times


def test_watch_finds_a_run_and_fits_the_terminal(capsys: Capture) -> None:
    assert main(["watch"]) == 2
    assert main(COMMAND) == 0
    capsys.readouterr()
    shown = []
    for words in ([], ["demo"], [str(FOLDER)], [str(FOLDER / "checkpoint.pt")], ["runs/pretrain/demo"]):
        assert main(["watch", *words]) == 0
        shown.append(capsys.readouterr().out)
    first = shown[0].splitlines()
    assert first[0].startswith(f"{FOLDER}: finished, last line ")
    assert first[1] == "[####################] 100%, step 4 of 4, epoch 2"
    assert first[-1] == f"next: intl-bench linear {FOLDER}/checkpoint.pt"
    assert all(len(line) <= 80 for line in first)
    assert len({text.partition("\n")[2] for text in shown}) == 1
    assert main(["watch", "dmeo"]) == 2
    assert "did you mean demo?" in capsys.readouterr().err


def test_watch_tells_a_running_run_from_a_killed_one() -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "config.yaml").write_text("epochs: 4\nmax_steps: null\n")
    log = FOLDER / "metrics.jsonl"
    log.write_text('{"step": 2, "epoch": 1.0, "seconds": 30.0}\n{"step": 3, "epo')  # a line that is being written
    assert run_state.read(FOLDER).state == "ended"
    (FOLDER / "checkpoint.pt").touch()
    state = run_state.read(FOLDER)
    assert (state.state, state.step, state.steps) == ("stopped", 2, 8)
    assert "its command, typed again, resumes it" in watch.show(state)
    with lock(FOLDER):
        shown = watch.show(run_state.read(FOLDER))
        assert "[#####...............] 25%, step 2 of 8, epoch 1, about 0:01:30 left" in shown
        (FOLDER / "config.yaml").write_text("epochs: 100\nmax_steps: 4\n")
        shown = watch.show(run_state.read(FOLDER))
        assert "[##########..........] 50%, step 2 of 4, epoch 1, about 0:00:30 left" in shown
        (FOLDER / "config.yaml").write_text("epochs: 200\nmax_steps: null\n")
        log.write_text('{"step": 399, "epoch": 199.5, "seconds": NaN}\n')
        shown = watch.show(run_state.read(FOLDER))
        assert "[###################.] 99%, step 399 of 400, epoch 199.5" in shown  # 99.75%: it is not done


def test_a_run_that_was_started_again_has_one_state_everywhere(capsys: Capture) -> None:
    assert main([*COMMAND, "base_lr=1e20"]) == 3
    os.utime(FOLDER / "summary.json", (0, 0))  # it is of an earlier session
    (FOLDER / "checkpoint.pt").touch()
    capsys.readouterr()
    assert main(["watch", "demo"]) == 0
    assert f"{FOLDER}: stopped, last line " in capsys.readouterr().out
    assert main(["ls", "runs"]) == 0
    assert re.search(rf"{FOLDER} +stopped", capsys.readouterr().out)
    assert "<li>seed 0: stopped, step 1 of 4 (25%).</li>" in curves_html(Path("runs"), [])
