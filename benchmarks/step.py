"""Time a training step of ResNet-18 on CIFAR images with two views: this project, the authors, solo-learn, lightly.

    python benchmarks/step.py --batch 64 --repeats 3 --authors PATH        about two minutes on 2 cores
    PYTHONPATH=SOLO_LEARN python benchmarks/step.py --authors PATH         with solo-learn, lightning and lightly
    python benchmarks/step.py --device cuda --batch 256 --repeats 50

The speed is the median time of the authors' step divided by that of the other step; larger is faster. The floor is the
forward and backward pass of backbone and projector only. The authors' code is github.com/winci-ai/INTL, cloned at PATH;
on a CPU, its calls of `.cuda()` have no effect. solo-learn and lightly train Barlow Twins with their own backbone,
head, loss and loop (solo-learn within Lightning). All networks have the authors' stem, which makes maps of 34 x 34.
With padding 1, which lightly usually has, the network is a fifth cheaper.
"""

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn

from intl_bench.core import distributed
from pretrain import train
from pretrain.images.data import ArraySource
from pretrain.images.loader import training_batches
from pretrain.recipe import load_recipe

warnings.filterwarnings("ignore")
Step = Callable[[], object]


def batch_of(recipe, size: int, process: distributed.Process):
    """Return a batch of generated images as a data worker makes it."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, 32, 32, 3), np.uint8)
    source = ArraySource(pixels, np.zeros(size, np.int64), ["none"], "noise")
    return next(iter(training_batches(source, recipe.views, seed=0, batch_size=size, last_step=1)))


def ours(options: argparse.Namespace) -> dict[str, Step]:
    overrides = [f"batch_size={options.batch}", f"precision={options.precision}", f"device={options.device}"]
    recipe = load_recipe("cifar10_r18_intl", overrides)
    with distributed.start(options.device) as process:
        training = train.build_training(recipe, process, 50_000)
        batch = batch_of(recipe, options.batch, process)
    views = [torch.randn(options.batch, 3, 32, 32, device=process.device) for _ in recipe.views]
    encoder = nn.Sequential(training.method.backbone, training.method.projector)
    gradient = torch.randn(options.batch, recipe.projector.out, device=process.device) / options.batch

    def floor() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(process.device.type, dtype=training.autocast, enabled=training.autocast is not None):
            outputs = [encoder(view.contiguous(memory_format=torch.channels_last)) for view in views]
        torch.autograd.backward(outputs, [gradient.to(output.dtype) for output in outputs])

    return {
        "floor: backbone and projector alone": floor,
        "ours, from augmented views": lambda: training.optimize(views),
        "ours, from uint8 crops (augments too)": lambda: training.take_step(batch),
    }


def wait(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def authors(options: argparse.Namespace) -> dict[str, Step]:
    if options.authors is None:
        return {}
    sys.path.insert(0, options.authors)
    from methods.intl import INTL

    if options.device == "cpu":
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
    backend = "nccl" if options.device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    config = SimpleNamespace(
        arch="resnet18", dataset="cifar10", projection_layers=3, projection_size=2048, emb=2048, axis=0, iters=4,
        bs=options.batch,
    )  # fmt: skip
    model = INTL(config).to(options.device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, weight_decay=1e-4)
    views = [torch.randn(options.batch, 3, 32, 32, device=options.device) for _ in range(2)]

    def step() -> None:
        optimizer.zero_grad()
        loss = model(views)
        loss.backward()
        optimizer.step()
        loss.item(), loss.item()

    return {"authors' step": step}


def lightly(options: argparse.Namespace) -> dict[str, Step]:
    try:
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules import BarlowTwinsProjectionHead
    except ImportError:
        return {}
    from torchvision.models import resnet18

    backbone = resnet18()
    backbone.conv1, backbone.maxpool = nn.Conv2d(3, 64, 3, padding=2, bias=False), nn.Identity()
    backbone.fc = nn.Identity()
    model = nn.Sequential(backbone, BarlowTwinsProjectionHead(512, 2048, 2048)).to(options.device).train()
    criterion, optimizer = BarlowTwinsLoss(), torch.optim.SGD(model.parameters(), lr=0.06)
    views = [torch.randn(options.batch, 3, 32, 32, device=options.device) for _ in range(2)]

    def step() -> None:
        loss = criterion(*[model(view) for view in views])
        loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"lightly, Barlow Twins": step}


def solo_learn(options: argparse.Namespace) -> dict[str, Step]:
    try:
        import lightning.pytorch as lightning
        import omegaconf
        from solo.methods.barlow_twins import BarlowTwins
    except ImportError:
        return {}
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = omegaconf.OmegaConf.create(
        {
            "method": "barlow_twins", "backbone": {"name": "resnet18"}, "max_epochs": 1000, "num_large_crops": 2,
            "method_kwargs": {"proj_hidden_dim": 2048, "proj_output_dim": 2048, "scale_loss": 0.1},
            "data": {"dataset": "cifar10", "num_classes": 10, "num_large_crops": 2, "num_small_crops": 0},
            "optimizer": {"name": "sgd", "batch_size": options.batch, "lr": 0.3, "classifier_lr": 0.1,
                          "weight_decay": 1e-4},
            "scheduler": {"name": "warmup_cosine"},
        }
    )  # fmt: skip
    model = BarlowTwins(config)
    images = [torch.randn(options.batch, 3, 32, 32) for _ in range(2)]
    batch = [torch.arange(options.batch), images, torch.zeros(options.batch, dtype=torch.int64)]

    class Clock(lightning.Callback):
        seconds = 0.0

        def on_train_batch_start(self, *args: object) -> None:
            wait(options)
            self.seconds = time.perf_counter()

        def on_train_batch_end(self, *args: object) -> None:
            wait(options)
            self.seconds = time.perf_counter() - self.seconds

    def step() -> float:
        clock = Clock()
        trainer = lightning.Trainer(
            max_steps=1, accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
            precision="16-mixed" if options.precision == "fp16" else "32-true",
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader([batch], batch_size=None))
        return clock.seconds

    return {"solo-learn, Barlow Twins": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--authors", help="a clone of the authors' repository")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="precision of this project"
    )
    options = parser.parse_args()
    ways = {**authors(options), **ours(options), **lightly(options), **solo_learn(options)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.repeats + 1):  # the first round warms up
        for name, step in ways.items():
            started = time.perf_counter()
            own = step()
            wait(options)
            seconds = own if isinstance(own, float) else time.perf_counter() - started
            if number:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    reference, floor = median.get("authors' step"), median["floor: backbone and projector alone"]
    print(
        f"ResNet-18, CIFAR stem, batch {options.batch}, 2 views, {options.device}, ours in {options.precision}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n"
        "| step | seconds | img/s | speed against the authors' | time / floor |\n| --- | --- | --- | --- | --- |"
    )
    for name, seconds in median.items():
        speed = f"{reference / seconds:.2f}x" if reference else "–"
        print(f"| {name} | {seconds:.3f} | {options.batch / seconds:.0f} | {speed} | {seconds / floor:.3f} |")
    for name in ("authors' step", "lightly", "solo-learn"):
        if not any(name in way for way in ways):
            print(f"| {name} | not installed | | | |")


if __name__ == "__main__":
    main()
