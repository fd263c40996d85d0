"""Test the counts of a plan against independent formulas, real passes and real files; test its estimates."""

import dataclasses
import functools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from intl_bench import cli
from intl_bench.core import distributed
from intl_bench.core.errors import InputError
from pretrain import states, train
from pretrain.backbone import ARCHITECTURES, STEMS
from pretrain.dry_run import costs, machine, plan
from pretrain.dry_run import text as words
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
TINY = ["data.size=192", "batch_size=32", "epochs=3", "projector.hidden=64", "projector.out=48"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(*overrides: str) -> Recipe:
    return load_recipe("demo", [*TINY, *overrides])


@functools.cache
def planned(*overrides: str, processes: int = 1) -> plan.CostPlan:
    return plan.make_plan(tiny(*overrides), processes=processes)


def built(recipe: Recipe) -> train.Training:
    process = distributed.Process(rank=0, world_size=1, device=torch.device("cpu"))
    return train.build_training(recipe, process, len(open_source(recipe.data, "train")))


@functools.cache
def default_plan() -> plan.CostPlan:
    return plan.make_plan(load_recipe("imagenet_r50_intl"))


@pytest.mark.slow
def test_flops_of_the_published_recipes() -> None:
    """Reference values in GFLOP: ResNet-50 at 224 px 8.17, projector 0.30 per view; 50.9 and 80.7 in total."""
    two = default_plan()
    assert two.flops / 1e9 == pytest.approx(50.9, abs=0.05)
    six = plan.make_plan(load_recipe("imagenet_r50_intl_multicrop_100ep"))
    assert six.flops / 1e9 == pytest.approx(80.7, abs=0.05)
    projector = 2 * (2048 * 8192 + 2 * 8192**2) / 1e9
    backbone = {size: flops / 1e9 - projector for size, flops in six.view_flops.items()}
    expected = {224: 8.17, 192: 6.01, 160: 4.17, 128: 2.67, 96: 1.50}
    assert backbone == {size: pytest.approx(flops, abs=0.006) for size, flops in expected.items()}
    assert six.parameters == {
        "backbone": 23_508_032,
        "projector": 151_035_904,
        "trained": 174_543_936,
        "target": 174_543_936,
    }
    assert (two.steps_per_epoch, two.total_steps) == (5004, 800 * 5004)
    assert two.images_from.startswith("as published; cannot count them: cannot read")


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 32), ("cifar", 24)])
def test_flops_by_hand(stem: str, size: int) -> None:
    """Count the multiply-adds of the small ResNet layer by layer."""
    kernel, stride, padding, pool = STEMS[stem]
    _, blocks, width = ARCHITECTURES["resnet10_narrow"]

    def convolution(side: int, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> int:
        nonlocal total
        side = (side + 2 * padding - kernel) // stride + 1
        total += side**2 * inputs * outputs * kernel**2
        return side

    total = 64 * 48 + 64 * 64 + 256 * 64  # the projector
    side = convolution(size, 3, width, kernel, stride, padding)
    side = (side + 2 - 3) // 2 + 1 if pool else side
    inputs = width
    for stage in range(len(blocks)):
        outputs, stride = width << stage, 1 if stage == 0 else 2
        if stride > 1:
            convolution(side, inputs, outputs, 1, stride, 0)
        side = convolution(side, inputs, outputs, 3, stride, 1)
        side = convolution(side, outputs, outputs, 3, 1, 1)
        inputs = outputs
    made = planned(f"backbone.stem={stem}", f"views=[{{size: {size}}}, {{size: {size}}}]")
    assert made.view_flops == {size: 2 * total}
    assert made.forward_flops == 2 * made.view_flops[size]
    assert made.flops == 3 * made.forward_flops + made.loss_flops


def test_flops_of_the_loss() -> None:
    """The forward pass has Gram matrices and T - 1 iterations; both passes together take at most four times as much."""
    m, d, iterations = 32, 48, 5
    made = planned(f"method.iterations={iterations}")
    forward = 2 * (3 * m * m * d + 2 * 3 * (iterations - 1) * m**3 + 2 * m**3)
    assert forward < m * made.loss_flops < 4 * forward


def test_passes_of_a_momentum_target() -> None:
    made = planned("method.momentum_target=true", "views=[{size: 32}, {size: 24}, {size: 24}]")
    target, trained = made.view_flops[32], made.view_flops[24]
    assert made.flops == target + 2 * 3 * trained + made.loss_flops
    assert made.parameters["target"] == made.parameters["trained"]


@pytest.mark.parametrize("momentum_target", [False, True])
def test_parameters_and_persistent_memory(momentum_target: bool) -> None:
    made = planned(f"method.momentum_target={momentum_target}")
    training = built(made.recipe)
    parameters = list(training.method.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    target = sum(p.numel() for p in parameters) - trained
    assert made.parameters["trained"] == trained == made.parameters["backbone"] + made.parameters["projector"]
    assert made.parameters["target"] == target == (trained if momentum_target else 0)
    buffers = sum(b.numel() * b.element_size() for b in training.method.buffers())
    assert made.memory["weights"] == 4 * trained + buffers
    assert made.memory["gradients"] == made.memory["momentum"] == 4 * trained
    assert made.memory["momentum target"] == 4 * target
    assert made.memory["pictures"] == 2 * 32 * 3 * 32**2 * 4
    assert made.peak == sum(made.memory.values())


@pytest.mark.parametrize("momentum_target", [False, True])
def test_checkpoint_is_as_large_as_a_saved_one(momentum_target: bool) -> None:
    made = planned(f"method.momentum_target={momentum_target}")
    size = train.run(made.recipe).stat().st_size
    tensors = len(states.load(made.recipe.checkpoint)[0]["method"])
    assert abs(made.checkpoint - size) < 64 * 2 * tensors + 1024  # padding, and the digits of counters
    assert made.checkpoint == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize("overrides", [[], ["precision=bf16"], ["method.momentum_target=True"], ["method.axis=batch"]])
def test_activations_equal_those_of_a_real_pass(overrides: list[str]) -> None:
    """Collect all storages that autograd saves for the backward pass, by its hooks."""
    if "method.axis=batch" in overrides:
        overrides = [*overrides, "projector.out=16"]
    made = planned(*overrides)
    recipe, training = made.recipe, built(made.recipe)
    (batch,) = training_batches(open_source(recipe.data, "train"), recipe.views, seed=0, batch_size=32, last_step=1)
    views = [crops.float().contiguous(memory_format=torch.channels_last) for crops in batch.crops]
    there = [*training.method.parameters(), *training.method.buffers(), *views]
    known = {tensor.untyped_storage().data_ptr() for tensor in there}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bf16")
        with half:
            terms = training.method(views)
    assert all(term.requires_grad for term in terms.values())
    real = sum(storage.nbytes() for storage in saved.values())
    # The plan counts the memory in use at the end of the pass, including the terms of the loss, which are scalars.
    assert abs(made.memory["activations"] + made.memory["loss"] - real) < made.memory["loss"] / 4


def test_the_peak_equals_that_of_real_tensors() -> None:
    """Compare with the count of a pass with real tensors, whose backward pass frees memory."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    x = torch.randn(512, 64)
    real = costs.count(lambda: network(x).square().mean())
    with costs.without_data():
        costs.strip(network)
        x = torch.empty(512, 64)
        counted = costs.count(lambda: network(x).square().mean())
    assert counted == real
    hidden, weights = 512 * 256 * 4, sum(p.numel() * 4 for p in network.parameters())
    assert 2 * hidden < counted.saved < 4 * hidden + 2**16  # the outputs of a linear layer and of its ReLU
    assert counted.saved < counted.peak < counted.saved + 2 * hidden + weights
    assert counted.flops == 2 * 512 * (3 * (64 * 256 + 256 * 256 + 256) - 64 * 256)  # the input needs no gradient


def test_processes_share_the_batch_but_each_counts_the_whole_loss() -> None:
    one, two = planned("method.momentum_target=False"), planned(processes=2)
    assert two.flops == one.flops
    assert two.steps_per_epoch == one.steps_per_epoch
    assert two.memory["pictures"] == one.memory["pictures"] / 2
    assert two.memory["activations"] == pytest.approx(one.memory["activations"] / 2, rel=0.05)
    assert two.memory["loss"] == one.memory["loss"]
    for processes, message in ((3, "cannot be divided evenly"), (0, "--processes 0: expected at least 1")):
        with pytest.raises(InputError, match=message):
            plan.make_plan(tiny(), processes=processes)


def test_estimates_follow_the_stated_model() -> None:
    """A device with a single limited rate takes the time of that rate."""
    endless = costs.Device(
        name="any",
        flops=dict.fromkeys(("half", "conv32", "matmul32"), math.inf),
        bandwidth=math.inf,
        memory=math.inf,
        launch=0.0,
    )
    operation = costs.Operation(flops=10**9, unit="half", bytes=10**6)
    other = costs.Operation(flops=10, unit="matmul32", bytes=10**8)
    cost = costs.Cost(operations=Counter({operation: 3, other: 2}), saved=0, peak=0)

    def seconds(processes: int = 1, **changes: object) -> float:
        device = dataclasses.replace(endless, **changes)
        return costs.step_seconds(cost, device, trained=4 * 10**6, target=10**6, processes=processes)

    rates = {"half": 1e12, "conv32": math.inf, "matmul32": math.inf}
    assert seconds() == 0
    assert seconds(flops=rates) == pytest.approx(3e-3)
    memory = 3e-3 + 0.2 + (6 * 4 + 3) * 1e-3
    assert seconds(bandwidth=1e9) == pytest.approx(memory)
    assert seconds(bandwidth=1e9, flops=rates) == pytest.approx(memory)  # the slower of the two counts
    assert seconds(launch=1e-3) == pytest.approx(5e-3)
    assert seconds(launch=1e-3, flops=rates) == pytest.approx(5e-3)
    assert seconds(processes=4, link=1e9) == pytest.approx(2 * 3 / 4 * 4e-3)
    assert seconds(processes=4, link=1e9, memory_share=0.5) == pytest.approx(2 * 2 * 3 / 4 * 4e-3)
    assert seconds(flops=rates, product_share=0.5) == pytest.approx(6e-3)
    assert seconds(bandwidth=1e9, memory_share=0.5) == pytest.approx(2 * memory)

    def roofline(**changes: object) -> float:
        return costs.roofline_seconds(cost, dataclasses.replace(endless, **changes), trained=4 * 10**6, target=10**6)

    slow = {"product_share": 0.5, "memory_share": 0.5, "launch": 1.0, "link": 1.0}  # ignored by the roofline
    assert roofline(flops=rates, **slow) == pytest.approx(3e-3)
    assert roofline(bandwidth=1e9, **slow) == pytest.approx(memory)


def test_hours_and_rates_follow_from_the_step() -> None:
    made = planned("method.momentum_target=False")
    assert (made.images, made.images_from, made.steps_per_epoch, made.total_steps) == (192, "counted", 6, 18)
    assert [estimate.device.name for estimate in made.estimates] == ["A100 80GB", "H100 SXM", "H200", "RTX 4090"]
    for estimate in made.estimates:
        assert estimate.images_per_second * estimate.step == pytest.approx(32)
        assert estimate.hours == pytest.approx(18 * estimate.step / 3600)
        assert estimate.fits
    large = default_plan()
    assert {estimate.device.name for estimate in large.estimates if not estimate.fits} == {"RTX 4090"}
    fastest_first = sorted(large.estimates, key=lambda estimate: estimate.step)
    assert [estimate.device.name for estimate in fastest_first] == ["H200", "H100 SXM", "A100 80GB", "RTX 4090"]


def test_unknown_images_leave_the_steps_out() -> None:
    made = plan.make_plan(tiny("data.kind=imagefolder", "data.root=nowhere", "data.name=birds"))
    assert (made.images, made.steps_per_epoch, made.total_steps) == (None, None, None)
    assert all(estimate.hours is None for estimate in made.estimates)
    text = words.format_plan(made)
    assert "not known; cannot count them: cannot read the image folder nowhere/train" in " ".join(text.split())


def test_dry_run_prints_the_plan_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "demo", *TINY, "--dry-run", "--verbose", "--processes", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    short, text, settings = out.split("\n\n", 1)[0], words.format_plan(planned(processes=2)), out.rpartition("\n\n")[2]
    counted = text.partition("\nestimated, on 2 of")[0]
    assert counted in out
    assert settings.startswith("recipe:\n  name: demo\n")
    assert max(len(line) for line in text.splitlines()) <= 120
    assert max(len(line) for line in short.splitlines()) <= 80
    for part in ("trained: backbone", "a training step", "18 = 6 x 3 epochs", "activations", "checkpoint", "H200"):
        assert part in text
    assert "not a measurement" in text
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["batch_size=4096"], "batch_size=4096"),
        (["batch_size=8"], "0.01 (log2 8 - 3) = 0"),
        (["epochs=three"], "epochs: found three; expected a whole number"),
        (["--processes", "5"], "cannot be divided evenly"),
    ],
)
def test_a_bad_configuration_is_refused(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "demo", *TINY, *given, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_the_default_recipe_from_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "intl_bench", "pretrain", "--dry-run"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pretrain   imagenet_r50_intl, seed 0, scale paper\n")
    assert "4,003,200 = 5,004 x 800 epochs" in done.stdout
    assert not list(Path().iterdir())


HERE = machine.Machine(
    device=dataclasses.replace(costs.GPUS[0], name="here", memory=2**34, launch=0.0), on_gpu=False, cores=2
)


def short(capsys: pytest.CaptureFixture[str], *given: str) -> dict[str, str]:
    """Return the rows of the short plan by label."""
    assert cli.main(["pretrain", "demo", *TINY, *given, "--dry-run"]) == 0
    rows, label = dict[str, str](), ""
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 80
        label = line[:11].strip() or label
        rows[label] = f"{rows.get(label, '')} {line[11:]}".strip()
    return rows


def test_this_machine_comes_first_and_prepares_its_images() -> None:
    ready = machine.Preparation(loading=0.01, augmenting=0.002)
    made = plan.make_plan(tiny(), here=HERE, preparation=ready)
    (plain, *gpus), without = planned().estimates, plan.make_plan(tiny(), here=HERE, preparation=machine.Preparation())
    here = made.estimates[0]
    assert [estimate.device.name for estimate in made.estimates[1:]] == [one.device.name for one in (plain, *gpus)]
    assert here.step == pytest.approx(without.estimates[0].step + 32 * 0.012)  # without workers, all in turn
    assert here.images_per_second == pytest.approx(32 / here.step)
    assert here.fits
    measured = plan.make_plan(tiny(), here=HERE).preparation
    assert measured is not None
    assert 0 < measured.loading < 1
    assert 0 < measured.augmenting < 1
    nowhere = plan.make_plan(tiny("data.kind=imagefolder", "data.root=nowhere", "data.name=birds"), here=HERE)
    assert nowhere.preparation is None


def test_the_rates_of_this_machine_are_those_of_its_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.machine, "_MEMORY_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    measure = machine.measure.__wrapped__  # without the cache
    found, half = measure("cpu"), measure("cpu", processes=2)
    assert not found.on_gpu
    assert 1e8 < found.device.flops["matmul32"] < 1e14
    assert 1e8 < found.device.bandwidth < 1e13
    assert found.device.memory == 2**28, "the limit of the container"
    assert half.device.memory == 2**27


@pytest.mark.gpu
def test_the_rates_of_a_gpu_are_near_those_of_a_data_sheet() -> None:
    found = machine.measure("cuda")
    assert found.on_gpu
    assert 1e13 < found.device.flops["half"] < 1e16
    assert found.device.flops["conv32"] >= found.device.flops["matmul32"]
    made = plan.make_plan(tiny(), here=found)
    assert made.estimates[0].device.name == torch.cuda.get_device_name()
    assert made.preparation == machine.Preparation()  # small images stay on the GPU


def test_the_short_plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure", lambda device, processes: HERE)
    views = "views=[{size: 32}, {size: 24}]"
    rows = short(capsys, views, "workers=3")
    assert rows["pretrain"] == "demo, seed 0, scale demo"
    for change in ("epochs: 6 -> 3", "data.size: 8192 -> 192", "views.1.size: 32 -> 24", "projector.out: "):
        assert change in rows["changed"]
    assert "name" not in rows["changed"]
    assert rows["resolved"] == f"device cpu; 3 workers on {machine.machine.cores()} cores"
    assert rows["batch"] == "32 of 192 images; none is left out, views 1 x 32 px, 1 x 24 px"
    assert rows["steps"] == "18 = 6 x 3 epochs"
    assert rows["time"].startswith("estimated")
    assert "here" in rows["time"]
    assert rows["state"] == "the folder holds no state; the run starts at step 0"
    rows = short(capsys, "batch_size=50", "precision=fp16", "name=other")
    assert rows["batch"].startswith("50 of 192 images; each epoch leaves out 42,")
    assert "computed in bf16" in rows["resolved"]
    assert rows["writes"].startswith("runs/pretrain/other/seed0: checkpoint.pt")
    few, many = (short(capsys, f"keep_every={every}")["disk"].split(" needed")[0] for every in (0, 1))
    assert float(many.split()[0]) == pytest.approx(
        float(few.split()[0]) * 7 / 4, rel=0.05
    )  # four states, and three more
    assert not list(Path().iterdir())


def test_the_short_plan_reads_the_initial_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "measure", lambda device, processes: HERE)
    path = train.run(tiny("epochs=1"))
    start = short(capsys, f"init={path}", "name=more")["start"]
    assert start == f"all weights from {path}"
    assert short(capsys, f"init={path}", "name=more", "projector.out=40")["start"].startswith(
        f"the backbone from {path};"
    )
    for init, change, message in (
        ("nowhere.pt", "epochs=2", "no such file"),
        (path, "backbone.name=resnet18", "another"),
    ):
        assert cli.main(["pretrain", "demo", *TINY, f"init={init}", "name=more", change, "--dry-run"]) == 2
        assert message in capsys.readouterr().err


def test_the_short_plan_tells_what_the_folder_holds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "measure", lambda device, processes: HERE)
    path = train.run(tiny("epochs=1"))
    capsys.readouterr()
    assert short(capsys, "epochs=1")["state"] == f"{path} is finished; nothing would be trained"
    state, _ = states.load(path)
    state["details"]["seconds"] = 40.0
    states.save(path, {**state, "step": 2})
    assert short(capsys, "epochs=1")["state"] == (
        f"resumes from step 2 of 6 in {path}, about 80 s left at the speed so far"
    )
    assert cli.main(["pretrain", "demo", *TINY, "epochs=2", "--dry-run"]) == 2  # as the run would
    assert "belongs to another configuration (epochs: 1 -> 2)" in capsys.readouterr().err
    assert short(capsys, "epochs=2", "--fresh")["state"] == f"--fresh discards the state in {path}"
    path.write_bytes(b"damaged")
    assert short(capsys, "epochs=1")["state"].startswith("not readable: checkpoint")
