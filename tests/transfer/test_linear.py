"""Linear evaluation: the probe on features, and the classifier on augmented images, interrupted and resumed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT, SUPPORT
from torch import nn
from torchvision.transforms.v2 import functional as reference
from transfer_cases import make_checkpoint, make_folder, packaged

from intl_bench.core import distributed
from intl_bench.core.errors import DivergedError, InputError, Preempted
from intl_bench.core.seeding import permutation, torch_seed
from pretrain import states
from pretrain.images.crops import crop
from pretrain.images.data import DataConfig, FolderSource, normalization, open_source
from pretrain.images.loader import evaluation_batches, training_batches
from pretrain.images.views import ViewConfig, augment
from transfer import linear, sgd_classifier
from transfer.probe import train_probe
from transfer.scores import correct, last_and_best, percentages


def blobs(n: int, classes: int, width: int, seed: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Separable features: a class's own coordinate is larger by 4 than the others."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    features = torch.rand((n, width), generator=rng, dtype=dtype)
    features[torch.arange(n), labels] += 4
    return features, labels


def textbook_probe(features, labels, *, classes, seed, epochs, batch_size, lr, final_lr, weight_decay) -> nn.Linear:
    """The same protocol with PyTorch's own parts."""
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, "probe init"))
        classifier = nn.Linear(features.shape[1], classes, dtype=features.dtype)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=(final_lr / lr) ** (1 / epochs))
    for epoch in range(epochs):
        order = torch.from_numpy(permutation(seed, "probe", epoch, len(features)))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(features[chosen]), labels[chosen]).backward()
            optimizer.step()
        schedule.step()
    return classifier


PROBE = {"epochs": 30, "batch_size": 50, "lr": 1e-2, "final_lr": 1e-4, "weight_decay": 5e-4}


def test_probe_equals_the_textbook_loop() -> None:
    features, labels = blobs(230, 7, 20, 0, torch.float64)
    features += 3 * torch.rand((230, 20), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probe = train_probe(features, labels, features, labels, classes=7, seed=3, **PROBE)
    expected = textbook_probe(features, labels, classes=7, seed=3, **PROBE)
    torch.testing.assert_close(probe.classifier.weight, expected.weight, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(probe.classifier.bias, expected.bias, rtol=1e-9, atol=1e-11)
    assert len(probe.history) == 30


def test_probe_learns_what_can_be_learned() -> None:
    train, test = blobs(1000, 10, 32, 0), blobs(300, 10, 32, 1)
    probe = train_probe(*train, *test, classes=10, seed=0, epochs=40, batch_size=100)
    assert probe.history[-1] == {"top1": 100.0, "top5": 100.0}


def test_probe_is_deterministic_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    train, test = blobs(330, 6, 8, 0), blobs(60, 6, 8, 1)
    one, again, other = (train_probe(*train, *test, classes=6, seed=seed, **PROBE) for seed in (4, 4, 5))
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert one.history == again.history
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_probe_of_a_small_data_set_takes_it_whole() -> None:
    train = blobs(30, 3, 8, 0)
    probe = train_probe(*train, *train, classes=3, seed=0, epochs=300, batch_size=1000)
    assert probe.history[-1] == {"top1": 100.0}


def test_probe_that_diverges_says_so() -> None:
    features, labels = blobs(60, 3, 8, 0)
    with pytest.raises(DivergedError, match="lower lr"):
        train_probe(features * 1e38, labels, features, labels, classes=3, seed=0, **PROBE | {"lr": 1e38})


def test_counting() -> None:
    logits = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).repeat(4, 1)
    labels = torch.tensor([0, 1, 4, 5])
    assert correct(logits, labels).tolist() == [1, 3]
    assert percentages([1, 3], 4, 7) == {"top1": 25.0, "top5": 75.0}
    assert percentages([1, 3], 4, 5) == {"top1": 25.0}
    history = [{"top1": 10.0, "top5": 30.0}, {"top1": 40.0, "top5": 50.0}, {"top1": 40.0, "top5": 60.0}]
    expected = {"top1": 40.0, "top5": 60.0, "best_top1": 40.0, "best_top5": 50.0}
    assert last_and_best(history) == (expected, 2)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_on_features(workplace: Path) -> None:
    config = linear.LinearConfig(
        data=DataConfig(kind="shapes", size=400), workers=0, device="cpu", epochs=30, batch_size=100
    )
    outcomes = [linear.run(make_checkpoint(), config, seed, folder=workplace / "work") for seed in (0, 0, 1)]
    assert outcomes[0] == outcomes[1] != outcomes[2]
    metrics, details = outcomes[0].metrics, outcomes[0].details
    assert sorted(metrics) == ["best_top1", "best_top5", "top1", "top5"]
    assert 0 <= metrics["top1"] <= metrics["best_top1"] <= 100
    assert details["train_images"] == 400
    assert details["classes"] == 10
    assert 1 <= details["best_epoch"] <= 30


AUGMENTED = {
    "workers": 0,
    "device": "cpu",
    "augment": True,
    "resize": 18,
    "crop": 16,
    "epochs": 3,
    "batch_size": 8,
    "lr": 4.0,
    "milestones": (2,),
    "weight_decay": 1e-4,
}


def augmented(root: Path, **changes) -> linear.LinearConfig:
    return linear.LinearConfig(data=DataConfig(kind="imagefolder", root=str(root)), **AUGMENTED | changes)


class Stopping(FolderSource):
    """A source that sends this process a signal when it has handed out so many images."""

    def __init__(self, inner: FolderSource, after: int, number: int = signal.SIGTERM) -> None:
        super().__init__(inner.place, inner.files, inner.labels, inner.class_names, inner.skip_bad)
        self.left, self.number = after, number

    def image(self, index: int) -> np.ndarray:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return super().image(index)


def settings_of(config: linear.LinearConfig, seed: int = 0, **changes) -> sgd_classifier.Settings:
    mean, std = normalization(config.data)
    values = {
        "seed": seed,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "head_lr": config.lr,
        "backbone_lr": 0.0,
        "weight_decay": config.weight_decay,
        "milestones": tuple(config.milestones),
        "resize": config.resize,
        "crop": config.crop,
        "mean": mean,
        "std": std,
    }
    return sgd_classifier.Settings(**values | changes)


def train(
    config: linear.LinearConfig,
    folder: Path,
    *,
    after: int = 0,
    number: int = signal.SIGTERM,
    device: str = "cpu",
    **changes,
):
    sources = [open_source(config.data, split) for split in ("train", "test")]
    return sgd_classifier.train_classifier(
        make_checkpoint(),
        Stopping(sources[0], after, number),
        sources[1],
        settings_of(config, **changes),
        device=device,
        workers=0,
        folder=folder,
        deterministic=config.deterministic,
    )


def state(folder: Path) -> dict:
    return states.load(folder / "state.pt")[0]


def assert_same_state(one: dict, other: dict) -> None:
    assert {key: one[key] for key in ("step", "history", "identity")} == {
        key: other[key] for key in ("step", "history", "identity")
    }
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
    momenta = [{k: v["momentum_buffer"] for k, v in s["optimizer"]["state"].items()} for s in (one, other)]
    assert all(torch.equal(value, momenta[1][key]) for key, value in momenta[0].items())


# 24 images, 3 steps an epoch: stopped within an epoch, at the end of one, and twice; frozen and fine-tuned
@pytest.mark.parametrize("backbone_lr", [0.0, 0.1])
@pytest.mark.parametrize("stops", [[10], [24], [5, 20]])
def test_interrupted_and_resumed_equals_uninterrupted(workplace: Path, stops: list[int], backbone_lr: float) -> None:
    config = augmented(make_folder(workplace / "data"))
    whole = train(config, workplace / "whole", backbone_lr=backbone_lr)
    for after in stops:
        with pytest.raises(Preempted, match="SIGTERM after step"):
            train(config, workplace / "parts", after=after, backbone_lr=backbone_lr)
    parts = train(config, workplace / "parts", backbone_lr=backbone_lr)
    assert parts == whole
    assert_same_state(state(workplace / "parts"), state(workplace / "whole"))
    logs = [metrics_of(workplace / name) for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [(row["step"], row["epoch"]) for row in logs[0]] == [(3, 1), (6, 2), (9, 3)]
    assert [row["top1"] for row in logs[0]] == [scores["top1"] for scores in state(workplace / "whole")["history"]]


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` without the rates, which are times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row.pop("data") <= 1 and row.pop("img/s") > 0 and row.pop("seconds") > 0 for row in rows)
    return rows


@pytest.mark.gpu
@pytest.mark.parametrize("backbone_lr", [0.0, 0.1])
def test_deterministic_on_a_gpu_too(workplace: Path, backbone_lr: float) -> None:
    options = {"device": "cuda", "backbone_lr": backbone_lr}
    config = augmented(make_folder(workplace / "data"), deterministic=True)
    whole = train(config, workplace / "whole", **options)
    with pytest.raises(Preempted):
        train(config, workplace / "parts", after=30, **options)
    assert train(config, workplace / "parts", **options) == whole
    assert_same_state(state(workplace / "parts"), state(workplace / "whole"))


def test_ctrl_c_has_its_own_exit_code(workplace: Path) -> None:
    with pytest.raises(Preempted) as raised:
        train(augmented(make_folder(workplace / "data")), workplace / "work", after=4, number=signal.SIGINT)
    assert raised.value.exit_code == 130


def test_a_finished_run_is_not_done_again(workplace: Path) -> None:
    config = augmented(make_folder(workplace / "data"))
    first = train(config, workplace / "work")
    assert train(config, workplace / "work", after=1) == first  # the first image would send the signal


def test_a_state_of_another_run_is_refused(workplace: Path) -> None:
    config = augmented(make_folder(workplace / "data"))
    train(config, workplace / "work")
    with pytest.raises(InputError, match=r"seed: 0 -> 1.*--fresh"):
        train(config, workplace / "work", seed=1)


@pytest.mark.parametrize("backbone_lr", [0.0, 0.1])
def test_half_precision_learns_other_weights_in_float32(workplace: Path, backbone_lr: float) -> None:
    config = augmented(make_folder(workplace / "data"), epochs=1, lr=0.5)
    for precision in ("fp32", "bf16"):
        train(config, workplace / precision, backbone_lr=backbone_lr, precision=precision)
    usual, half = (state(workplace / precision) for precision in ("fp32", "bf16"))
    assert half["identity"] == usual["identity"] | {"precision": "bf16"} != usual["identity"]
    with pytest.raises(InputError, match=r"precision: None -> bf16.*--fresh"):
        train(config, workplace / "fp32", backbone_lr=backbone_lr, precision="bf16")
    weight = "weight" if backbone_lr == 0 else "fc.weight"
    one, other = usual["model"][weight], half["model"][weight]
    assert other.dtype == torch.float32
    assert 1e-4 < float((other - one).norm() / one.norm()) < 0.05


def test_in_half_precision_the_classifier_still_computes_in_float32() -> None:
    model = sgd_classifier.Classifier(
        sgd_classifier.build_backbone_of(make_checkpoint()), 3, frozen=True, seed=0, precision="bf16"
    ).train()
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.backbone(images)
    assert features.dtype == torch.bfloat16
    assert torch.equal(model(images), model.fc(features.float()))


@pytest.mark.parametrize(("deterministic", "precision"), [(False, "fp32"), (True, "bf16")])
def test_what_a_configuration_asks_for_reaches_the_training(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool, precision: str
) -> None:
    asked, start = [], distributed.start

    def watched(device: str, **options):
        asked.append(options)
        return start(device, **options)

    monkeypatch.setattr(distributed, "start", watched)
    config = augmented(make_folder(workplace / "data"), epochs=1, deterministic=deterministic, precision=precision)
    linear.run(make_checkpoint(), config, 0, folder=workplace / "work")
    assert asked == [{"deterministic": deterministic}]
    assert state(workplace / "work")["identity"].get("precision", "fp32") == precision


def test_only_the_classifier_learns_when_frozen_and_the_rate_falls(workplace: Path) -> None:
    config = augmented(make_folder(workplace / "data"))
    outcome = linear.run(make_checkpoint(), config, 0, folder=workplace / "work")
    assert outcome.metrics["top1"] <= outcome.metrics["best_top1"]
    assert "top5" not in outcome.metrics
    assert outcome.details["train_images"] == 24
    final = state(workplace / "work")
    assert sorted(final["model"]) == ["bias", "weight"]
    (group,) = final["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(4.0 * 8 / 256 * 0.1)  # the last epoch comes after the milestone
    assert final["step"] == 9


def test_the_batch_norms_of_a_frozen_backbone_stay_as_they_are() -> None:
    backbone = sgd_classifier.build_backbone_of(make_checkpoint())
    classifier = sgd_classifier.Classifier(backbone, 3, frozen=True, seed=0).train()
    classifier(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(torch.equal(value, make_checkpoint().backbone[key]) for key, value in backbone.state_dict().items())
    assert [name for name, p in classifier.named_parameters() if p.grad is not None] == ["fc.weight", "fc.bias"]
    assert sgd_classifier.Classifier(backbone, 3, frozen=False, seed=0).train().backbone.bn1.training


def test_a_step_equals_the_textbook(workplace: Path) -> None:
    """One epoch of one batch, fine-tuned: SGD on the cross-entropy of the pictures that the loader made."""
    config = augmented(make_folder(workplace / "data"), epochs=1, batch_size=24)
    train(config, workplace / "work", backbone_lr=0.5)
    source, (mean, std) = open_source(config.data, "train"), normalization(config.data)
    view = ViewConfig(size=16, interpolation="bilinear", jitter_p=0, grayscale_p=0)
    (batch,) = training_batches(source, [view], seed=0, batch_size=24, last_step=1)
    images = augment(batch.crops[0], batch.parameters[0], mean, std)
    model = sgd_classifier.Classifier(
        sgd_classifier.build_backbone_of(make_checkpoint()), 3, frozen=False, seed=0
    ).train()
    nn.functional.cross_entropy(model(images), batch.labels).backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rate = (4.0 if name.startswith("fc") else 0.5) * 24 / 256
            expected = parameter - rate * (parameter.grad + 1e-4 * parameter)
            torch.testing.assert_close(state(workplace / "work")["model"][name], expected, rtol=1e-3, atol=1e-5)
    loss = nn.functional.cross_entropy(model(images), batch.labels).item()
    assert metrics_of(workplace / "work")[0]["loss"] == pytest.approx(loss, rel=1e-4)


def test_training_crops_are_torchvisions_bilinear_ones() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    box = (5, 7, 40, 33)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    expected = reference.resized_crop(pixels, *box, [24, 24], reference.InterpolationMode.BILINEAR, antialias=True)
    assert (crop(image, box, 24, "bilinear").int() - expected.int()).abs().max() <= 1
    assert not torch.equal(crop(image, box, 24), crop(image, box, 24, "bilinear"))


def test_divergence_is_reported(workplace: Path) -> None:
    config = augmented(make_folder(workplace / "data"), lr=1e30, epochs=3)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train(config, workplace / "work", backbone_lr=1e30)


def test_what_cannot_be_evaluated_is_refused(workplace: Path) -> None:
    root = make_folder(workplace / "data")
    with pytest.raises(InputError, match="batch_size=30"):
        linear.run(make_checkpoint(), augmented(root, batch_size=30), 0, folder=workplace / "work")
    for path in (root / "val" / "n00000001").iterdir():
        path.unlink()
    (root / "val" / "n00000001").rmdir()
    with pytest.raises(InputError, match="n00000001"):
        linear.run(make_checkpoint(), augmented(root), 0, folder=workplace / "work")
    for changes, message in (
        ({"crop": None}, "crop=224"),
        ({"lr": 0.0}, "more than 0"),
        ({"epochs": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            augmented(root, **changes)


def test_unequal_images_need_a_crop(workplace: Path) -> None:
    data = DataConfig(kind="imagefolder", root=str(make_folder(workplace / "data")))
    with pytest.raises(InputError, match="resize and crop"):
        linear.run(
            make_checkpoint(), linear.LinearConfig(data=data, workers=0, device="cpu"), 0, folder=workplace / "work"
        )


@pytest.mark.parametrize("name", ["default", "cifar10", "cifar100", "imagefolder", "imagenet", "imagenet100"])
def test_packaged_configs_load(name: str) -> None:
    config = packaged("linear", name)
    stamp = linear.protocol(config)
    assert all(value is None or isinstance(value, str | int | float | bool) for value in stamp.values())
    if name.startswith("image"):
        assert (stamp["lr"], stamp["milestones"]) == (0.4 if name == "imagenet" else 0.2, "60, 80")
    else:
        assert (stamp["lr"], stamp["final_lr"], stamp["epochs"]) == (1e-2, 1e-6, 500)
    if name == "cifar100":
        assert stamp["normalization"] == "mean 0.4914 0.4822 0.4465, std 0.247 0.243 0.261"


# Each case joins a process group of its own, at a port of its own.
WORKER = """
import os
from pathlib import Path
import torch
from test_linear import augmented, fixed, linear, make_checkpoint, score_with_other_statistics, train
from transfer import features
torch.set_num_threads(1)
features._GATHERED = 20
ports = iter(os.environ["PORTS"].split())
for case, backbone_lr in (("frozen", 0.0), ("tuned", 0.05)):
    os.environ["MASTER_PORT"] = next(ports)
    print(train(augmented(Path("data")), Path(case), backbone_lr=backbone_lr).metrics["top1"])
os.environ["MASTER_PORT"] = next(ports)
print(linear.run(make_checkpoint(), fixed(), 0, folder=Path("fixed")).metrics["top1"])
os.environ["MASTER_PORT"] = next(ports)
print(score_with_other_statistics(Path("data")))
"""


def score_with_other_statistics(root: Path) -> float:
    """Top-1 of a classifier that answers 2, unless its running statistics are spoilt as on all processes but one."""
    config = augmented(root)
    sources = [open_source(config.data, split) for split in ("train", "test")]
    with distributed.start("cpu") as process:
        run = sgd_classifier._prepare(make_checkpoint(), *sources, settings_of(config, backbone_lr=0.1), process)
        run.classifier.fc.bias.data[2] = 100
        if not process.is_main:
            for name, buffer in run.classifier.named_buffers():
                if "running" in name:
                    buffer.fill_(torch.nan)
        return run.test(sources[1], 0)["top1"]


def fixed() -> linear.LinearConfig:
    return linear.LinearConfig(
        data=DataConfig(kind="shapes", size=101), workers=0, device="cpu", epochs=3, batch_size=20, resize=16
    )


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    """The folder where two processes ran the cases together, and the scores that each of them got."""
    folder = tmp_path_factory.mktemp("two")
    make_folder(folder / "data", train=8, test=3)
    (folder / "worker.py").write_text(WORKER)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, SUPPORT, Path(__file__).parent))),
        "PORTS": " ".join(map(str, free_ports(4))),
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "worker.py"],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    return folder, [[float(line) for line in output.split()] for output, _ in outputs]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(workplace: Path, two_processes: tuple[Path, list[list[float]]]) -> None:
    folder, scores = two_processes
    one = train(augmented(folder / "data"), workplace / "one")
    assert [score[0] for score in scores] == [one.metrics["top1"]] * 2
    for key, value in state(workplace / "one")["model"].items():
        torch.testing.assert_close(state(folder / "frozen")["model"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_score_the_weights_of_the_first(two_processes: tuple[Path, list[list[float]]]) -> None:
    """Fine-tuned, each process has running statistics of its own; those of the first are scored, as they are saved."""
    folder, scores = two_processes
    assert [score[3] for score in scores] == [score_with_other_statistics(folder / "data")] * 2 == [100 / 3] * 2
    model = sgd_classifier.Classifier(sgd_classifier.build_backbone_of(make_checkpoint()), 3, frozen=False, seed=0)
    model.load_state_dict(state(folder / "tuned")["model"])
    model.eval()
    data = augmented(folder / "data").data
    mean, std = normalization(data)
    batches = evaluation_batches(open_source(data, "test"), resize=18, crop=16, mean=mean, std=std, batch_size=9)
    with torch.no_grad():
        (hits,) = [int((model(images).argmax(1) == labels).sum()) for images, labels in batches]
    assert [score[1] for score in scores] == [100 * hits / 9] * 2


@pytest.mark.slow
def test_two_processes_share_the_features(workplace: Path, two_processes: tuple[Path, list[list[float]]]) -> None:
    folder, scores = two_processes
    expected = linear.run(make_checkpoint(), fixed(), 0, folder=workplace / "one")
    assert [score[2] for score in scores] == pytest.approx([expected.metrics["top1"]] * 2, abs=100 / 25)
    paths = sorted((workplace / "runs").rglob("*.npy"))
    assert len(paths) == 2
    for path in paths:
        together = np.load(folder / path.relative_to(workplace))
        np.testing.assert_allclose(together, np.load(path), rtol=1e-4, atol=1e-5)
