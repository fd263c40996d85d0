"""What only a GPU can show: `pytest -m gpu`. With INTL_BENCH_GPU_TESTS=cpu a CPU stands in, to see that it runs."""

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_cases import SMALL as DETECTOR
from detection_cases import batch as detection_batch
from detection_cases import calibrate, small_model
from method_cases import CAPTURABLE, marked
from tiny_runs import OVERRIDES
from transfer_cases import CPU, make_checkpoint, make_folder

from intl_bench import runs
from intl_bench.core import distributed
from intl_bench.core.errors import Preempted
from pretrain import accelerate, methods, states, train
from pretrain.images.data import IMAGENET_NORMALIZATION, ArraySource
from pretrain.images.loader import training_batches
from pretrain.recipe import Recipe, load_recipe
from pretrain.train import Training
from pretrain.train_log import Log
from transfer import features
from transfer.detection.annotations import generated
from transfer.neighbors import knn_predict
from transfer.probe import train_probe

STAND_IN = os.environ.get("INTL_BENCH_GPU_TESTS") == "cpu"
DEVICE = torch.device("cpu") if STAND_IN else torch.device("cuda", 0)
GPU = distributed.Process(rank=0, world_size=1, device=DEVICE)
pytestmark = pytest.mark.gpu

SMALL = [
    *("backbone={name: resnet10_narrow, stem: imagenet}", "projector={hidden: 32, out: 64}"),
    *("batch_size=32", "epochs=2", "warmup_epochs=1", "precision=fp32"),
]
SIX = (48, 48, 44, 40, 36, 32)  # smaller ones end in maps of one pixel, where oneDNN's bf16 convolutions are wrong


@pytest.fixture(autouse=True)
def _in_empty_folder_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 instead of TF32."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """An operation that makes the host wait for the GPU is an error."""
    if not STAND_IN:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if not STAND_IN:
            torch.cuda.set_sync_debug_mode("default")


def small(name: str, *overrides: str) -> Recipe:
    """A recipe on CIFAR-10, or INTL's with six views and a momentum target, with a small network."""
    if name == "six views":
        recipe = load_recipe("imagenet_r50_intl_multicrop_100ep", [*SMALL, f"device={DEVICE.type}", *overrides])
        views = tuple(dataclasses.replace(view, size=size) for view, size in zip(recipe.views, SIX, strict=True))
        return dataclasses.replace(recipe, views=views)
    return load_recipe(f"cifar10_r18_{name}", [*SMALL, *OVERRIDES.get(name, []), f"device={DEVICE.type}", *overrides])


def demo(*overrides: str) -> Recipe:
    """A run of 18 steps on generated images."""
    small = ["data.size=192", "batch_size=32", "epochs=3", "projector={hidden: 32, out: 32}", "log_every=1"]
    return load_recipe("demo", [*small, f"device={DEVICE.type}", *overrides])


def noise() -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), np.uint8)
    return ArraySource(pixels, np.arange(128) % 10, [str(label) for label in range(10)], "noise")


@contextlib.contextmanager
def begun(recipe: Recipe) -> Iterator[Training]:
    """A run at step 0, within the settings of its device."""
    with distributed.start(recipe.device, deterministic=recipe.deterministic, fixed_shapes=True) as process:
        training = train.build_training(recipe, process, 128, 10)
        accelerate.apply(training)
        yield training


def take_steps(training: Training, count: int, first: int = 0) -> list[dict[str, float]]:
    """What each of so many steps measured; the images come from the CPU."""
    recipe = training.recipe
    batches = training_batches(
        noise(), recipe.views, seed=0, batch_size=recipe.batch_size, first_step=first, last_step=first + count
    )
    return [training.take_step(batch).values() for batch in batches]


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Those that a run ended in."""
    return dict(states.load(recipe.checkpoint)[0]["method"])


def on_cpu(training: Training) -> dict[str, torch.Tensor]:
    """Copies of all of a run's tensors."""
    states = training.optimizer.state_dict()["state"]
    moments = {f"{n} {key}": value for n, state in states.items() for key, value in state.items()}
    return {key: value.to("cpu", copy=True) for key, value in (training.method.state_dict() | moments).items()}


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Length of the difference over the length of the second."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).norm() / other.norm())


# Pre-training


@pytest.mark.parametrize("settings", [[], ["graph=true"]], ids=["eager", "graph"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["intl", "six views"])
def test_a_step_waits_for_nothing(name: str, precision: str, settings: list[str]) -> None:
    recipe = small(name, f"precision={precision}", *settings)
    warm = accelerate.WARM_UP + 2
    with begun(recipe) as training:
        options: dict[str, Any] = {"seed": 0, "batch_size": 32, "last_step": warm + 4, "device": DEVICE}
        batches = training_batches(noise(), recipe.views, **options)
        for _ in range(warm):
            training.take_step(next(batches))
        with no_waits():
            metrics = [training.take_step(batch) for batch in batches]
    losses = [metrics.values()["loss"] for metrics in metrics]
    assert len(set(losses)) == 4
    assert np.isfinite(losses).all()


def test_a_wait_would_be_noticed() -> None:
    if STAND_IN:
        pytest.skip("a CPU has nothing to wait for")
    with pytest.raises(RuntimeError, match="synchronizing"), no_waits():
        torch.ones((), device=DEVICE).item()


def gradients(training: Training) -> torch.Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in training.method.parameters() if p.grad is not None])


def assert_as_on_a_cpu(recipe: Recipe, loss: float, gradient: float) -> None:
    """The first step, from the same bytes: augmentation, network, loss and gradients."""
    found = {}
    for device in ("cpu", DEVICE.type):
        with begun(dataclasses.replace(recipe, device=device)) as training:
            (values,) = take_steps(training, 1)
            found[device] = values["loss"], gradients(training)
    (reference, expected), (value, own) = found["cpu"], found[DEVICE.type]
    assert value == pytest.approx(reference, rel=loss)
    assert apart(own, expected) < gradient


@pytest.mark.parametrize("name", ["intl", "six views"])
def test_a_step_is_that_of_a_cpu(name: str) -> None:
    assert_as_on_a_cpu(small(name), loss=1e-5, gradient=1e-3)


def test_a_step_of_the_papers_network_is_that_of_a_cpu() -> None:
    if STAND_IN:
        pytest.skip("a CPU against itself, for a minute")
    assert_as_on_a_cpu(load_recipe("cifar10_r18_intl", ["batch_size=64"]), loss=1e-5, gradient=1e-3)


@pytest.mark.parametrize("name", marked(methods.names()))
def test_every_method_steps_as_on_a_cpu(name: str) -> None:
    assert_as_on_a_cpu(small(name), loss=1e-4, gradient=1e-2)


@pytest.mark.parametrize("settings", [[], ["graph=true"]], ids=["eager", "graph"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_a_step_that_overflows_is_skipped_and_the_next_one_is_not(optimizer: str, settings: list[str]) -> None:
    with begun(small("intl", "precision=fp16", f"optimizer={optimizer}", *settings)) as training:
        # After one overflow the scale is 2^16, as it is at the start of a run.
        training.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**127, backoff_factor=2.0**-111)
        parameters = {key: value.clone() for key, value in training.method.named_parameters()}
        assert not np.isfinite(take_steps(training, 1)[0]["gradient_norm"])
        assert not different(dict(training.method.named_parameters()), parameters)
        assert training.scaler.get_scale() == 2**16
        assert np.isfinite([values["gradient_norm"] for values in take_steps(training, 6, first=1)]).all()
        assert different(dict(training.method.named_parameters()), parameters)
        assert all(torch.isfinite(value).all() for value in training.method.parameters())


def run_until_stopped(recipe: Recipe, step: int) -> None:
    """Runs `recipe` until SIGTERM comes, when the numbers of `step` are there."""
    write = Log.write

    def write_and_stop(log: Log, metrics: Any, more: Any = None) -> None:
        write(log, metrics, more)
        if metrics.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "write", write_and_stop)
        with pytest.raises(Preempted):
            train.run(recipe)


@pytest.mark.parametrize(
    "settings",
    [
        ["deterministic=true"],
        ["deterministic=true", "graph=true"],
        ["deterministic=true", "graph=true", "precision=fp16"],
        ["graph=true", "precision=fp16"],
        [],
    ],
    ids=",".join,
)
def test_stopped_and_resumed_is_uninterrupted(settings: list[str]) -> None:
    """Bit for bit with deterministic kernels; without them each step is done once, on the same images."""
    whole, broken = (demo(f"name={name}", *settings) for name in ("whole", "broken"))
    train.run(whole)
    run_until_stopped(broken, 7)
    assert 7 < states.load(broken.checkpoint)[0]["step"] < 18
    train.run(broken)
    rows = [
        [json.loads(line) for line in (recipe.folder / "metrics.jsonl").read_text().splitlines()]
        for recipe in (whole, broken)
    ]
    assert [row["step"] for row in rows[1]] == list(range(1, 19))
    if "deterministic=true" in settings or STAND_IN:
        assert not different(weights(broken), weights(whole))
    else:
        losses = [[row["loss"] for row in some] for some in rows]
        assert losses[1][:8] == pytest.approx(losses[0][:8], rel=1e-2)


@pytest.mark.parametrize("name", marked(CAPTURABLE))
def test_a_recorded_step_is_the_eager_one(name: str) -> None:
    """All of a step's state, bit for bit with deterministic kernels."""
    states = []
    for settings in ([], ["graph=true"]):
        with begun(small(name, "deterministic=true", *settings)) as training:
            numbers = take_steps(training, 8)
            assert (training.recorded is not None) == (bool(settings) and not STAND_IN)
            states.append((numbers, on_cpu(training)))
    (numbers, state), (own_numbers, own_state) = states
    assert own_numbers == numbers
    assert not different(own_state, state)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_recorded_step_is_the_eager_one_in_half_precision(precision: str) -> None:
    recipes = [demo(f"name={n}", f"precision={precision}", "deterministic=true", f"graph={n}") for n in (True, False)]
    for recipe in recipes:
        train.run(recipe)
    assert not different(*map(weights, recipes))


def test_compiled_networks_train_alike() -> None:
    found = []
    for settings in ([], ["compile=true"]):
        with begun(small("intl", *settings)) as training:
            found.append((take_steps(training, 4), torch.cat([p.flatten() for p in training.method.parameters()])))
    (reference, expected), (values, own) = found
    assert values[0]["loss"] == pytest.approx(reference[0]["loss"], rel=1e-4)
    assert apart(own, expected) < 1e-2


@pytest.mark.parametrize("settings", [[], ["graph=true"]], ids=["eager", "graph"])
def test_a_checkpoint_holds_the_state_of_its_step_while_training_goes_on(settings: list[str]) -> None:
    with begun(small("intl", *settings)) as training, states.Writer() as writer:
        take_steps(training, 6)
        expected = on_cpu(training)
        writer.save(Path("checkpoint.pt"), training.state())
        take_steps(training, 6, first=6)
        assert different(on_cpu(training), expected)
        writer.wait()
        state, _ = states.load(Path("checkpoint.pt"))
    moments = {f"{n} {key}": v for n, one in state["optimizer"]["state"].items() for key, v in one.items()}
    assert state["step"] == 6
    assert not different(state["method"] | moments, expected)


# Scoring


def test_features_are_those_of_a_cpu() -> None:
    options: dict[str, Any] = {
        "normalization": IMAGENET_NORMALIZATION,
        "resize": None,
        "crop": None,
        "workers": 0,
    }
    found, expected = (
        features.extract(make_checkpoint(), noise(), process=process, **options).features for process in (GPU, CPU)
    )
    assert apart(found, expected) < 1e-5


def classes(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 64) in ten classes that overlap, and labels."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(10, 64, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(10, (images,), generator=draw)
    return (0.5 * centers[labels] + torch.randn(images, 64, generator=draw)).relu(), labels


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_neighbors_are_those_of_a_cpu(distance: str) -> None:
    (train_x, train_y), (test_x, _) = classes(3000, 0), classes(1000, 1)
    own, expected = (
        knn_predict(train_x, train_y, test_x, k=5, distance=distance, device=device) for device in (DEVICE, "cpu")
    )
    assert (own == expected).double().mean() > 0.998


def test_the_probe_is_that_of_a_cpu() -> None:
    train, test = classes(3000, 0), classes(1000, 1)
    own, expected = (
        train_probe(*train, *test, classes=10, seed=0, epochs=10, batch_size=500, device=device)
        for device in (DEVICE, "cpu")
    )
    assert apart(own.classifier.weight, expected.classifier.weight) < 1e-3
    assert own.history[-1]["top1"] == pytest.approx(expected.history[-1]["top1"], abs=0.5)


# Detection


@pytest.fixture
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permutations that do not depend on the device."""
    original = torch.randperm

    def permutation(n: int, *, generator: Any = None, device: Any = None) -> torch.Tensor:
        return original(n, generator=torch.Generator().manual_seed(n)).to(device)

    monkeypatch.setattr(torch, "randperm", permutation)


def test_a_detectors_step_is_that_of_a_cpu(same_draws: None) -> None:
    images, targets = detection_batch()
    found = []
    for device in (DEVICE, torch.device("cpu")):
        model = small_model().to(device).train()
        draws = [torch.Generator(device).manual_seed(number) for number in range(len(images))]
        losses = model([image.to(device) for image in images], [target.to(device) for target in targets], draws)
        sum(losses.values()).backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
        found.append(({name: value.item() for name, value in losses.items()}, gradient))
    (losses, own), (reference, expected) = found
    assert losses == pytest.approx(reference, rel=1e-4)
    assert apart(own, expected) < 1e-2


@pytest.mark.parametrize("threshold", [DETECTOR.score_threshold, 0.9999])
def test_detections_are_those_of_a_cpu_and_may_be_none(threshold: float) -> None:
    images, targets = detection_batch()
    model = small_model(dataclasses.replace(DETECTOR, score_threshold=threshold))
    calibrate(model, images, targets)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    expected = model.eval().detect(images, sizes)
    found = model.to(DEVICE).detect([image.to(DEVICE) for image in images], sizes)
    assert (sum(map(len, (one.scores for one in expected))) == 0) == (threshold > 0.9)
    for own, theirs in zip(found, expected, strict=True):
        assert len(own.boxes) == len(own.scores) == len(own.classes) == len(theirs.scores)
        torch.testing.assert_close(own.scores.cpu(), theirs.scores, rtol=1e-3, atol=1e-4)


# Everything


def test_the_whole_path_ends_in_records() -> None:
    """As the command line does it: pre-training, then every task, each with its loader, its loop and its record."""
    path = train.run(demo("epochs=1"))
    generated.write(Path("figures"), train=8, test=4)
    folder = make_folder(Path("photos"), train=20, side=40)
    Path("list.txt").write_text("".join(f"{file.name}\n" for file in sorted(folder.glob("train/*/*_[01].png"))))
    photos = ["data.kind=imagefolder", f"data.root={folder}", "resize=40", "crop=32", "epochs=2", "batch_size=4"]
    tasks: dict[str, tuple[str | None, list[str]]] = {
        "knn": (None, []),
        "linear": (None, ["epochs=2"]),
        "linear on crops": ("imagefolder", [*photos, "workers=2"]),
        "finetune": ("imagefolder", [*photos, "workers=0", "file_list=list.txt", "train_percent=10"]),
        "coco": (
            "demo",
            ["data.root=figures", "iterations=4", "milestones=[3]", "warmup_iterations=2", "precise_bn=2"],
        ),
    }
    for name, (config, overrides) in tasks.items():
        plan = runs.TaskRun(
            task=name.split()[0],
            checkpoint=path,
            config=config,
            overrides=[*overrides, f"device={DEVICE.type}"],
            results=Path("results"),
        )
        (record,) = runs.run(plan)
        assert record.metrics, name
        assert bool(record.hardware["gpus"]) != STAND_IN
