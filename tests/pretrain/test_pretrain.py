"""The training loop on generated images: exact resume, refusals, distribution."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stopped_run import stop_after, wait

from intl_bench import cli
from intl_bench.core import distributed
from intl_bench.core.errors import DivergedError, InputError
from pretrain import states, train
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.recipe import Recipe, load_recipe
from transfer.convert import read

TINY = ["data.size=192", "batch_size=32", "epochs=2", "projector.hidden=32", "projector.out=32", "log_every=1"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(*overrides: str) -> Recipe:
    return load_recipe("demo", [*TINY, *overrides])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return states.load(path)[0]["method"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def command(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "intl_bench", *words], env=environment, capture_output=True, text=True, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("momentum_target", [False, True])
def test_resumes_bit_for_bit_from_any_step_with_any_workers(momentum_target: bool) -> None:
    target = f"method.momentum_target={momentum_target}"
    whole = weights(train.run(tiny("name=whole", target)))
    for steps, workers in ((1, 0), (5, 4), (6, 1), (11, 1)):
        recipe = tiny("name=broken", target, f"workers={workers}")
        recipe.checkpoint.unlink(missing_ok=True)
        stop_after(recipe, steps)
        assert_same(weights(train.run(recipe)), whole)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the final weights of six epochs without interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with contextlib.chdir(folder):
        assert cli.main(["pretrain", "demo", *TINY, "epochs=6", "workers=0"]) == 0
    return weights(folder / "runs/pretrain/demo/seed0/checkpoint.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.long),
    ],
)
def test_signals_save_and_the_same_command_resumes(
    number: signal.Signals, code: int, uninterrupted: dict[str, torch.Tensor]
) -> None:
    words = ["pretrain", "demo", *TINY, "epochs=6", "workers=1", "name=broken", "save_minutes=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "intl_bench", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Path("runs/pretrain/broken/seed0/metrics.jsonl")
    wait(lambda: log.exists() and len(log.read_text().splitlines()) >= 8)
    process.send_signal(number)
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == code, stderr
    if code > 0:
        assert len(stderr.strip().splitlines()[-1:]) == 1
        assert "run the same command again to resume" in stderr
    state, _ = states.load(Path("runs/pretrain/broken/seed0/checkpoint.pt"))
    assert 6 <= state["step"] < 36
    assert cli.main(words) == 0
    assert_same(weights(Path("runs/pretrain/broken/seed0/checkpoint.pt")), uninterrupted)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 37))


def test_finished_run_is_not_repeated() -> None:
    path = train.run(tiny())
    before = path.stat().st_mtime_ns
    assert train.run(tiny()) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_fresh_starts_over() -> None:
    train.run(tiny("epochs=3"))
    path = train.run(tiny(), fresh=True)
    assert read(path).epoch == 2


def test_another_configuration_is_not_continued() -> None:
    train.run(tiny())
    with pytest.raises(InputError, match=r"base_lr: 0\.6 -> 0\.5.*--fresh"):
        train.run(tiny("base_lr=0.5"))
    train.run(tiny("workers=1"))  # must not change the result


def test_damaged_checkpoint_is_detected() -> None:
    path = train.run(tiny())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        train.run(tiny())


def test_weights_of_another_architecture_are_refused() -> None:
    recipe = tiny()
    path = train.run(recipe)
    state, _ = states.load(path)
    state["method"]["backbone.conv1.weight"] = torch.zeros(8, 3, 3, 3)
    states.save(path, {key: value for key, value in state.items() if key != "format"})
    with pytest.raises(InputError, match=r"another architecture.*conv1"):
        train.run(recipe)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text, code = tmp_path / "text.pt", tmp_path / "code.pt"
    text.write_text("hello")
    torch.save({"format": 1, "x": Recipe}, code)
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    for name, message in (
        ("text.pt", "not a readable PyTorch file|could run code"),
        ("code.pt", "could run code"),
        ("plain.pt", "not written by"),
        ("missing.pt", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            states.load(tmp_path / name)


def test_divergence_keeps_the_last_weights(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny("base_lr=1e30", "warmup_epochs=0")
    with pytest.raises(DivergedError, match=r"step \d+ \(epoch \d\).*(alignment|trace|gradient norm) = (nan|inf)"):
        train.run(recipe)
    capsys.readouterr()
    assert cli.main(["pretrain", "demo", *TINY, "base_lr=1e30", "warmup_epochs=0", "name=again"]) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_metrics_of_a_diverged_step_are_an_error() -> None:
    recipe = tiny()
    with distributed.start("cpu") as process:
        source = open_source(recipe.data, "train")
        training = train.build_training(recipe, process, len(source))
        (batch,) = training_batches(source, recipe.views, seed=0, batch_size=32, last_step=1)
        with torch.no_grad():
            training.method.projector[-1].bias.fill_(float("nan"))
        with pytest.raises(DivergedError, match=r"at step 0 .*alignment = nan, trace = nan"):
            training.take_step(batch).values()


def test_a_diverged_state_is_never_saved() -> None:
    recipe = tiny("base_lr=1e30", "warmup_epochs=0", "save_minutes=0")
    with pytest.raises(DivergedError, match=r"step \d") as caught:
        train.run(recipe)
    state, _ = states.load(recipe.checkpoint)
    assert f"at step {state['step']} " in str(caught.value)
    assert all(torch.isfinite(value).all() for value in state["method"].values() if value.is_floating_point())


def test_later_changes_of_a_state_are_not_saved(tmp_path: Path) -> None:
    state = {"model": {"a": torch.zeros(1 << 20)}, "optimizer": {"groups": [{"b": torch.ones(3)}]}, "step": 1}
    with states.Writer() as writer:
        writer.save(tmp_path / "x.pt", state)
        state["model"]["a"].fill_(1)
        state["optimizer"]["groups"][0]["b"].zero_()
    saved, _ = states.load(tmp_path / "x.pt")
    assert not saved["model"]["a"].any()
    assert saved["optimizer"]["groups"][0]["b"].all()


def test_a_failed_save_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write"), states.Writer() as writer:
        writer.save(tmp_path / "file" / "x.pt", {"step": 1})


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["epoch=3"], 2, "unknown key 'epoch'; did you mean epochs?"),
        (["epochs=three"], 2, "epochs: found three; expected a whole number"),
        (["method.beeta=1"], 2, "did you mean beta?"),
        (["method.name=intel"], 2, "unknown method"),
        (["batch_size=4096"], 2, "batch_size=4096"),
        (["batch_size=8"], 2, "0.01 (log2 8 - 3) = 0"),
        (["method.axis=batch"], 2, "singular"),
        (["data.kind=imagefolder", "data.root=nowhere"], 2, "nowhere"),
        (["device=cuda"], 4, "sees no GPU"),
        (["views=[{size: 32}]"], 2, "at least two"),
        (["backbone.name=resnet51"], 2, "resnet50"),
    ],
)
def test_mistakes_end_in_one_line(
    overrides: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", "demo", *TINY, *overrides]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not Path("runs").exists(), "a refused run leaves nothing behind"


@pytest.mark.slow
def test_full_disk_keeps_the_last_checkpoint() -> None:
    """Simulate a full disk by a file size limit below the size of the second checkpoint."""
    recipe = tiny()
    stop_after(recipe, 6)
    before = recipe.checkpoint.read_bytes()
    limit = len(before) // 2
    done = command(
        "pretrain", "demo", *TINY, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert done.returncode == 4, done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert recipe.checkpoint.read_bytes() == before
    assert cli.main(["pretrain", "demo", *TINY]) == 0


def torchrun(processes: int, words: Sequence[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launcher, "-m", "intl_bench", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def losses(name: str) -> list[float]:
    lines = Path(f"runs/pretrain/{name}/seed0/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_two_processes_train_as_one() -> None:
    words = ["pretrain", "demo", *TINY, "device=cpu", "base_lr=0.05"]
    assert cli.main([*words, "name=one"]) == 0
    torchrun(2, [*words, "name=two"])
    # The order of summation differs, and training amplifies the rounding errors from step to step. test_intl.py tests
    # that the gradients are equal.
    one, two = losses("one"), losses("two")
    assert len(one) == len(two) == 12
    assert two[:3] == pytest.approx(one[:3], rel=1e-4)
    assert sum(two) == pytest.approx(sum(one), rel=0.05)


@pytest.mark.slow
def test_bfloat16_and_channels_last_train() -> None:
    path = train.run(tiny("precision=bf16"))
    reference = train.run(tiny("name=fp32", "channels_last=false"))
    del path, reference
    assert losses("demo")[0] == pytest.approx(losses("fp32")[0], rel=0.02)


@pytest.mark.slow
def test_spectrum_is_logged() -> None:
    train.run(tiny("spectrum_every=4"))
    rows = [json.loads(line) for line in Path("runs/pretrain/demo/seed0/metrics.jsonl").read_text().splitlines()]
    for name in ("features", "embedding", "transformed"):
        ranks = {row["step"]: row[f"{name}/rank"] for row in rows if f"{name}/rank" in row}
        assert ranks.keys() == {4, 8, 12}
        assert all(1 <= rank <= 32 for rank in ranks.values())


@pytest.mark.slow
def test_export_is_the_backbone() -> None:
    from safetensors.torch import load_file

    path = train.run(tiny())
    exported = load_file(path.with_name("backbone.safetensors"))
    assert_same(exported, read(path).backbone)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Create forty small JPEG files in two class folders; one file is truncated."""
    noise = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "photos" / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (48, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    bad = tmp_path / "photos" / "train" / "class1" / "7.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    return tmp_path / "photos"


def test_a_truncated_image_stops_with_its_name_or_is_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "data.kind=imagefolder", f"data.root={photos}"]
    assert cli.main(["pretrain", "demo", *words]) == 2
    assert "class1/7.jpg" in capsys.readouterr().err.splitlines()[-1]
    path = train.run(tiny("data.kind=imagefolder", f"data.root={photos}", "data.on_bad_image=skip", "epochs=3"))
    details = read(path).details
    assert details["bad_images"] == 1
    assert [Path(name).name for name in details["bad_files"]] == ["7.jpg"]


def test_an_empty_class_folder_is_named(photos: Path) -> None:
    (photos / "train" / "class2").mkdir()
    with pytest.raises(InputError, match="class2"):
        train.run(tiny("data.kind=imagefolder", f"data.root={photos}"))
