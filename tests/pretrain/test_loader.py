"""Test that batches do not depend on workers, processes and the first step, and how bad images are handled."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2 import functional as reference

from intl_bench.core.errors import InputError, ResourceError
from intl_bench.core.seeding import permutation, uniforms
from pretrain.images import crops, loader
from pretrain.images.ahead import ahead
from pretrain.images.data import ArraySource, DataConfig, ImageSource, open_source
from pretrain.images.loader import Batch, evaluation_batches, steps_per_epoch, training_batches
from pretrain.images.views import PARAMETER_DRAWS, PARAMETERS, ViewConfig, augment, draw_parameters, prepare

CPU = torch.device("cpu")
VIEWS = [ViewConfig(size=16), ViewConfig(size=24, blur_p=0.5, solarize_p=0.2)]


def arrays(n: int = 22) -> ArraySource:
    """Return random images; the label of an image is its index."""
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 40, 3), np.uint8)
    return ArraySource(images, np.arange(n), [str(number) for number in range(n)], "random images")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create ten images of different sizes in train/ and in val/, five for each of two classes."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(10):
            file = tmp_path / split / "ab"[number // 5] / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (30 + number, 50, 3), np.uint8)).save(file)
    return tmp_path


def assert_identical(ours: Iterable[Batch], theirs: Iterable[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.step == b.step
        assert a.bad_files == b.bad_files
        assert torch.equal(a.labels, b.labels)
        mine, other = (tree_leaves([batch.crops, list(batch.parameters)]) for batch in (a, b))
        for left, right in zip(mine, other, strict=True):
            assert type(left) is type(right)
            if isinstance(left, torch.Tensor):
                assert left.dtype == right.dtype
                assert torch.equal(left, right)
            else:
                assert left == right


def test_content_of_a_batch() -> None:
    source = arrays()
    batches = list(training_batches(source, VIEWS, seed=3, batch_size=8, last_step=4))
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    for batch in batches:
        assert [tuple(view.shape) for view in batch.crops] == [(8, 3, 16, 16), (8, 3, 24, 24)]
        assert all(view.dtype == torch.uint8 for view in batch.crops)
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.crops)
        assert [tuple(rows.shape) for rows in batch.parameters] == [(8, PARAMETERS)] * 2
        assert all(rows.dtype == torch.float32 for rows in batch.parameters)
        assert batch.labels.dtype == torch.int64
        assert batch.bad_files == []
    # The third batch is the first of epoch 1. Its sample 5 is computed here step by step.
    index = int(permutation(3, "order", 1, 22)[5])
    assert batches[2].labels[5] == index
    for number, view in enumerate(VIEWS):
        uniform = uniforms(3, "views", 1, np.array([index]), number, PARAMETER_DRAWS + crops.BOX_DRAWS)
        (box,) = crops.fit_boxes(crops.draw_shapes(view, uniform[:, PARAMETER_DRAWS:]), 32, 40)
        assert torch.equal(batches[2].crops[number][5], crops.crop(source.images[index], box, view.size))
        (row,) = draw_parameters(view, uniform[:, :PARAMETER_DRAWS])
        assert torch.equal(batches[2].parameters[number][5], torch.from_numpy(row))


@pytest.mark.parametrize("workers", [1, 4])
def test_same_batches_from_any_number_of_workers(workers: int) -> None:
    here = training_batches(arrays(), VIEWS, seed=1, batch_size=4, last_step=13)
    assert_identical(here, training_batches(arrays(), VIEWS, seed=1, batch_size=4, last_step=13, workers=workers))


@pytest.mark.parametrize(("first", "workers"), [(1, 0), (5, 0), (7, 2), (12, 0)])
def test_same_batches_from_any_first_step(first: int, workers: int) -> None:
    whole = list(training_batches(arrays(), VIEWS, seed=1, batch_size=4, last_step=13))
    rest = training_batches(arrays(), VIEWS, seed=1, batch_size=4, first_step=first, last_step=13, workers=workers)
    assert_identical(whole[first:], rest)


def test_processes_share_a_batch() -> None:
    def batches(rank: int, world_size: int) -> list[Batch]:
        return list(
            training_batches(
                arrays(), VIEWS, seed=1, batch_size=8, last_step=5, rank=rank, world_size=world_size, workers=rank % 2
            )
        )

    for whole, first, second in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        joined = Batch(
            first.step,
            [torch.cat(pair) for pair in zip(first.crops, second.crops, strict=True)],
            [torch.cat(pair) for pair in zip(first.parameters, second.parameters, strict=True)],
            torch.cat([first.labels, second.labels]),
            first.bad_files + second.bad_files,
        )
        assert len(first.labels) == 4
        assert_identical([whole], [joined])


def test_every_image_once_an_epoch_in_a_new_order() -> None:
    labels = [batch.labels for batch in training_batches(arrays(24), VIEWS[:1], seed=1, batch_size=4, last_step=18)]
    epochs = torch.cat(labels).view(3, 24)
    assert all(torch.equal(epoch.sort().values, torch.arange(24)) for epoch in epochs)
    assert len(epochs.unique(dim=0)) == 3


def test_views_are_independent_of_each_other() -> None:
    def made(views: list[ViewConfig], seed: int = 1) -> Batch:
        (batch,) = training_batches(arrays(), views, seed=seed, batch_size=8, last_step=1)
        return batch

    both, other = made(VIEWS), made([VIEWS[0], ViewConfig(size=20, min_scale=0.5)])
    assert torch.equal(both.crops[0], other.crops[0])
    assert torch.equal(both.parameters[0], other.parameters[0])
    twins = made([VIEWS[0], VIEWS[0]])
    assert torch.equal(twins.crops[0], both.crops[0])
    assert (twins.crops[0] != twins.crops[1]).flatten(1).any(dim=1).all()
    assert (twins.parameters[0] != twins.parameters[1]).any(dim=1).all()
    assert (made(VIEWS, seed=2).parameters[0] != both.parameters[0]).any()


def test_images_and_global_generator_do_not_change() -> None:
    source = arrays()
    before = source.images.copy()
    state = torch.get_rng_state()
    for workers in (0, 1):
        list(training_batches(source, VIEWS, seed=1, batch_size=4, last_step=5, workers=workers))
    assert np.array_equal(source.images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_worker_makes_its_batch_in_shared_memory(folder: Path) -> None:
    """Shared memory reaches the main process without a copy."""
    source = open_source(DataConfig(root=str(folder)), "train")
    steps = steps_per_epoch(10, 5)
    sampler = loader._Sampler(images=10, views=tuple(VIEWS), seed=1, steps=steps, batch_size=5, rank=0, world_size=1)

    def tensors(batch: Batch) -> list[torch.Tensor]:
        return [*batch.crops, *batch.parameters, batch.labels]

    def are_shared(step: int) -> list[bool]:
        return [tensor.is_shared() for tensor in tensors(loader._decoded_batch(source, sampler, step))]

    assert list(loader.iterate(are_shared, range(3), 2, False)) == [[True] * 5] * 3
    assert are_shared(0) == [False] * 5

    def evaluated(step: int) -> list[bool]:
        return [
            tensor.is_shared() for tensor in loader._evaluation_batch(source, range(10), 5, (28, 24, "bilinear"), step)
        ]

    assert list(loader.iterate(evaluated, range(2), 2, False)) == [[True] * 2] * 2
    (batch,) = training_batches(source, VIEWS, seed=1, batch_size=5, last_step=1, workers=1)
    assert all(tensor.is_shared() for tensor in tensors(batch))


def test_resident_images_make_the_same_batches() -> None:
    source = arrays()
    expected = list(training_batches(source, VIEWS, seed=1, batch_size=8, last_step=5, rank=1, world_size=2))
    sampler = loader._Sampler(images=22, views=tuple(VIEWS), seed=1, steps=2, batch_size=8, rank=1, world_size=2)
    assert_identical(list(loader._resident_batches(source, sampler, range(5), CPU)), prepared(expected))


def prepared(batches: list[Batch]) -> list[Batch]:
    """Return the batches with prepared parameters, as for resident images."""
    return [batch._replace(parameters=[prepare(rows, CPU) for rows in batch.parameters]) for batch in batches]


def test_an_error_in_the_next_batch_is_raised_when_it_is_used() -> None:
    def draws() -> Iterator[int]:
        yield from (0, 1)
        raise InputError("the third")

    drawn = ahead(draws(), CPU)
    assert [next(drawn), next(drawn)] == [0, 1]
    with pytest.raises(InputError, match="the third"):
        next(drawn)


def test_the_next_batch_is_drawn_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(3)]

    def draws() -> Iterator[int]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    drawn = ahead(draws(), CPU)
    assert next(drawn) == 0
    assert begun[1].wait(10)
    assert list(drawn) == [1, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("side", [32, 200])
def test_a_gpu_gets_the_same_batches_without_waiting(side: int) -> None:
    """Test images that stay on the GPU (32 pixels), and images that are too large for that and need workers (200)."""
    images = np.random.default_rng(0).integers(0, 256, (22, side, 40, 3), np.uint8)
    source = ArraySource(images, np.arange(22), ["none"], "random images")
    options = {"seed": 1, "batch_size": 8, "last_step": 5}
    batches = training_batches(source, VIEWS, **options, workers=1, device=torch.device("cuda"))
    for expected in training_batches(source, VIEWS, **options):
        batch = next(batches)
        assert batch.crops[0].is_cuda == (side == 32)
        assert batch.crops[0].is_cuda or batch.crops[0].is_pinned()
        on_host = batch._replace(crops=[view.cpu() for view in batch.crops])
        assert_identical([on_host], prepared([expected]) if side == 32 else [expected])
        torch.cuda.set_sync_debug_mode("error")
        for view, rows in zip(batch.crops, batch.parameters, strict=True):
            augment(view.to("cuda", non_blocking=True), rows, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        torch.cuda.set_sync_debug_mode("default")


def test_batch_larger_than_the_data_set() -> None:
    with pytest.raises(InputError, match=r"batch_size=32: .* only 22 images; .* at most 22"):
        training_batches(arrays(), VIEWS, seed=1, batch_size=32, last_step=5)
    assert steps_per_epoch(22, 22) == 1
    assert steps_per_epoch(22, 4) == 5


def test_the_last_batch_of_an_epoch_may_be_kept() -> None:
    """Each image comes once an epoch. The whole batches are those without the last one."""
    assert steps_per_epoch(12811, 256, drop_last=False) == 51  # 1% of ImageNet's labels
    assert steps_per_epoch(12811, 256) == 50
    options: Any = {"seed": 3, "batch_size": 8, "drop_last": False}
    batches = list(training_batches(arrays(), VIEWS, last_step=6, **options))
    assert [len(batch.labels) for batch in batches] == [8, 8, 6] * 2
    assert [len(rows) for batch in batches for rows in batch.parameters] == [8, 8, 8, 8, 6, 6] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat([batch.labels for batch in epoch]).tolist()) == list(range(22))
    dropped = list(training_batches(arrays(), VIEWS, seed=3, batch_size=8, last_step=2))
    assert_identical(batches[:2], dropped)
    resumed = training_batches(arrays(), VIEWS, first_step=2, last_step=6, workers=2, **options)
    assert_identical(batches[2:], resumed)


def test_the_last_batch_is_divided_evenly_among_processes() -> None:
    options: Any = {"seed": 3, "batch_size": 8, "drop_last": False, "last_step": 3}
    whole = list(training_batches(arrays(23), VIEWS, **options))
    parts = [list(training_batches(arrays(23), VIEWS, rank=rank, world_size=2, **options)) for rank in (0, 1)]
    assert [[len(batch.labels) for batch in part] for part in parts] == [[4, 4, 3]] * 2  # of the last 7 images, 6
    for batch, *shares in zip(whole, *parts, strict=True):
        together = torch.cat([share.labels for share in shares])
        assert torch.equal(together, batch.labels[: len(together)])
    assert steps_per_epoch(9, 8, drop_last=False) == 1  # one image has no batch statistics
    assert steps_per_epoch(11, 8, drop_last=False, world_size=2) == 1
    assert steps_per_epoch(3, 8, drop_last=False) == 1  # fewer images than in a batch
    with pytest.raises(InputError, match=r"batch_size=8: .* only 1 images"):
        steps_per_epoch(1, 8, drop_last=False)


def test_batch_that_does_not_divide_evenly() -> None:
    with pytest.raises(InputError, match=r"batch_size=8: .* 3 processes; .* multiple of 3"):
        training_batches(arrays(), VIEWS, seed=1, batch_size=8, last_step=5, world_size=3)


# Images that cannot be read


def truncate(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:700])
    return str(file)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_stops_with_its_name(folder: Path, workers: int) -> None:
    bad = truncate(folder / "train" / "b" / "7.JPEG")
    source = open_source(DataConfig(root=str(folder)), "train")
    with pytest.raises(InputError) as error:
        list(training_batches(source, VIEWS, seed=1, batch_size=10, last_step=4, workers=workers))
    message = str(error.value)
    assert message.startswith(bad)
    assert "\n" not in message
    assert error.value.exit_code == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_replaces_a_damaged_one(folder: Path, workers: int) -> None:
    clean = open_source(DataConfig(root=str(folder)), "train")
    (before,) = training_batches(clean, VIEWS, seed=1, batch_size=10, last_step=1)
    bad = [truncate(folder / "train" / name) for name in ("a/4.JPEG", "b/9.JPEG", "a/0.JPEG")]
    source = open_source(DataConfig(root=str(folder), on_bad_image="skip"), "train")
    batches = list(training_batches(source, VIEWS, seed=1, batch_size=10, last_step=3, workers=workers))
    order = permutation(1, "order", 0, 10)
    # Images 4, 9 and 0 are damaged. The next readable images, 5 and 1, replace them, with their own labels.
    replacement = {4: 5, 9: 1, 0: 1}
    assert batches[0].labels.tolist() == [int(replacement.get(index, index) >= 5) for index in order]
    for row, index in enumerate(order):
        same = torch.equal(batches[0].crops[1][row], before.crops[1][row])
        assert same == (index not in replacement)
    for batch in batches:
        assert set(batch.bad_files) == set(bad)
    assert_identical(batches, training_batches(source, VIEWS, seed=1, batch_size=10, last_step=3))


def test_the_name_of_a_damaged_image_becomes_text(folder: Path) -> None:
    name = Path(truncate(folder / "train" / "a/4.JPEG"))
    name.rename(name.with_name("4\udcff.JPEG"))  # the byte 255
    source = open_source(DataConfig(root=str(folder), on_bad_image="skip"), "train")
    (batch,) = training_batches(source, VIEWS, seed=1, batch_size=10, last_step=1)
    assert batch.bad_files == [str(name.with_name("4\\udcff.JPEG"))]


def test_no_readable_image_is_an_error(folder: Path) -> None:
    for file in (folder / "train").glob("*/*"):
        truncate(file)
    source = open_source(DataConfig(root=str(folder), on_bad_image="skip"), "train")
    with pytest.raises(InputError, match="no image of the data set can be decoded"):
        next(training_batches(source, VIEWS, seed=1, batch_size=10, last_step=1))


# Worker processes


class Deadly(ImageSource):
    """Images of which image 5 ends the process or raises an unexpected error."""

    def __init__(self, bug: Exception | None) -> None:
        super().__init__(np.zeros(40), ["none"])
        self.bug = bug

    def file(self, index: int) -> str:
        return "deadly"

    def image(self, index: int) -> np.ndarray:
        if index == 5 and self.bug is None:
            os._exit(9)
        if index == 5 and self.bug is not None:
            raise self.bug
        return np.zeros((32, 32, 3), np.uint8)


def test_death_of_a_worker_is_reported_in_one_line() -> None:
    for _ in range(5):  # PyTorch detects it in different ways
        with pytest.raises(ResourceError, match="a data worker died") as error:
            list(training_batches(Deadly(None), VIEWS[:1], seed=1, batch_size=4, last_step=99, workers=2))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("bug", [RuntimeError("oops"), EOFError("oops"), KeyError("oops")])
def test_unexpected_error_in_a_worker_keeps_its_type(bug: Exception) -> None:
    with pytest.raises(type(bug), match="oops"):
        list(training_batches(Deadly(bug), VIEWS[:1], seed=1, batch_size=4, last_step=99, workers=1))


SIGNALLED = """
import os, signal, sys
from pretrain.images.data import DataConfig, open_source
from pretrain.images.loader import training_batches
from pretrain.images.views import ViewConfig

received = []
source = open_source(DataConfig(kind="shapes", size=40), "train")
batches = training_batches(source, [ViewConfig(size=16)], seed=0, batch_size=20, last_step=10**6, workers=2)
for _ in range(2):  # one batch of each worker: both have started, and inherit no handlers
    next(batches)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: received.append(number))
print("ready", flush=True)
while len(received) < 3:
    next(batches)
steps = [next(batches).step for _ in range(20)]
print(steps == list(range(steps[0], steps[0] + 20)))
sys.exit(75)
"""


@pytest.mark.slow
def test_signals_to_the_process_group_do_not_end_workers() -> None:
    """A terminal and a cluster signal all processes; workers continue until the main process ends."""
    repository = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, cwd=repository, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.killpg(process.pid, number)
            time.sleep(0.1)
        assert process.communicate(timeout=300)[0] == b"True\n"
        assert process.returncode == 75
    finally:
        process.kill()


# Evaluation


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_in_order(workers: int) -> None:
    source, mean, std = arrays(), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    images, labels = zip(
        *evaluation_batches(source, mean=mean, std=std, batch_size=5, first=2, last=19, workers=workers), strict=True
    )
    assert [len(part) for part in labels] == [5, 5, 5, 2]
    assert torch.equal(torch.cat(labels), torch.arange(2, 19))
    expected = torch.from_numpy(source.images[2:19]).permute(0, 3, 1, 2).float().div(255)
    assert torch.equal(torch.cat(images), reference.normalize(expected, mean, std))


def test_evaluation_view_as_torchvision(folder: Path) -> None:
    source = open_source(DataConfig(root=str(folder)), "test")
    batches = evaluation_batches(source, resize=28, crop=24, mean=(0, 0, 0), std=(1, 1, 1), batch_size=4)
    images = torch.cat([part for part, _ in batches])
    assert images.shape == (10, 3, 24, 24)
    for index, image in enumerate(images):
        with Image.open(source.file(index)) as photo:
            theirs = reference.center_crop(reference.resize(photo.convert("RGB"), [28]), [24, 24])
        assert (image * 255 - reference.pil_to_tensor(theirs)).abs().max() < 2.01


def test_evaluation_never_replaces_an_image(folder: Path) -> None:
    bad = truncate(folder / "val" / "a" / "3.JPEG")
    source = open_source(DataConfig(root=str(folder), on_bad_image="skip"), "test")
    with pytest.raises(InputError) as error:
        list(evaluation_batches(source, resize=28, crop=24, mean=(0, 0, 0), std=(1, 1, 1), batch_size=4))
    assert str(error.value).startswith(bad)
    assert str(error.value).endswith("; scoring needs every image: data.on_bad_image=skip is for training")
    source = open_source(DataConfig(root=str(folder)), "test")
    with pytest.raises(InputError) as error:
        list(evaluation_batches(source, resize=28, crop=24, mean=(0, 0, 0), std=(1, 1, 1), batch_size=4))
    assert "data.on_bad_image" not in str(error.value), "it is of no use to a score"


def test_evaluation_of_different_sizes_asks_for_a_crop(folder: Path) -> None:
    source = open_source(DataConfig(root=str(folder)), "test")
    with pytest.raises(InputError, match="set resize and crop"):
        list(evaluation_batches(source, mean=(0, 0, 0), std=(1, 1, 1), batch_size=4))
