"""Features of a frozen backbone. They are computed once and cached in runs/features/."""

import functools
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from intl_bench.core import distributed, files
from intl_bench.core.copies import fetch
from intl_bench.core.errors import BenchError, InputError, NotFiniteError
from intl_bench.core.identity import digest, identity
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import torch_seed
from intl_bench.core.sharing import largest_share
from pretrain import backbone as backbones
from pretrain import images as image_files
from pretrain.backbone import Backbone
from pretrain.checkpoint import Checkpoint, Origin
from pretrain.images.data import ArraySource, ImageSource, normalization
from pretrain.images.fingerprint import fingerprint
from pretrain.images.loader import evaluation_batches
from transfer.precision import DEFAULT, autocast
from transfer.task import open_both

FOLDER = Path("runs") / "features"
RANDOM = "Random init"
# On a CPU a batch that fits the caches is 1.5 times as fast as a large batch.
_BATCH = {"cpu": 32, "cuda": 256}
_GATHERED = 2**14  # rows of each process that are gathered at a time
# Files of code that decides the features. Their digests are part of the cache key.
_CODE = [
    Path(__file__),
    Path(__file__).with_name("precision.py"),
    Path(backbones.__file__),
    *(
        Path(image_files.__file__).with_name(f"{name}.py")
        for name in ("crops", "data", "decode", "loader", "pack", "rgb", "views")
    ),
]


class Features(NamedTuple):
    """Features and labels of a data set, on the CPU.

    Attributes:
        features: (n, F) float32. Do not write to it.
        labels: (n,) int64.
    """

    features: torch.Tensor
    labels: torch.Tensor


def build_backbone_of(checkpoint: Checkpoint) -> Backbone:
    """Build the backbone of a checkpoint with its weights.

    Raises:
        InputError: the weights do not match the architecture that the checkpoint names.
    """
    with torch.device("meta"):  # avoids drawing random weights, which would be replaced
        model = Backbone(checkpoint.architecture)
    own = model.state_dict()
    expected, given = ({k: tuple(v.shape) for k, v in state.items()} for state in (own, checkpoint.backbone))
    wrong = [
        f"{key} is {given.get(key, 'missing')}, expected {shape}"
        for key, shape in expected.items()
        if given.get(key) != shape
    ]
    wrong += [f"{key} is not part of it" for key in given if key not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"checkpoint {checkpoint.path}: its weights do not match a {checkpoint.architecture.name} with the stem "
            f"{checkpoint.architecture.stem}: {'; '.join(wrong[:3])}{more}"
        )
    copies = {key: value.to(own[key].dtype, copy=True) for key, value in checkpoint.backbone.items()}
    model.load_state_dict(copies, assign=True)
    return model


def random_init(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """Return a checkpoint of the same architecture with random weights.

    They are the initial weights of a pre-training with this seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        state = Backbone(checkpoint.architecture).state_dict()
    return Checkpoint(
        path=checkpoint.path,
        sha256="",
        backbone=state,
        origin=Origin.RANDOM,
        method=RANDOM,
        architecture=checkpoint.architecture,
        preprocessing=checkpoint.preprocessing,
        seed=seed,
        epoch=0,
    )


def from_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings of a classification task that a checkpoint decides: the normalization of pixels."""
    own = checkpoint.preprocessing
    return {} if own is None else {"data": {"mean": list(own.mean), "std": list(own.std)}}


def extract_both(checkpoint: Checkpoint, config: Any, process: distributed.Process) -> tuple[Features, Features]:
    """Return the features of the training and of the test images of `config.data`.

    Args:
        config: a configuration with `data`, `resize`, `crop`, `precision` and `workers`.

    Raises:
        InputError: the data set cannot be read, or see `extract`.
    """
    train, test = (
        extract(
            checkpoint,
            source,
            normalization=normalization(config.data),
            resize=config.resize,
            crop=config.crop,
            process=process,
            workers=config.workers,
            precision=config.precision,
        )
        for source in open_both(config)
    )
    return train, test


def extract(
    checkpoint: Checkpoint,
    source: ImageSource,
    *,
    normalization: tuple[Sequence[float], Sequence[float]],
    resize: int | None,
    crop: int | None,
    process: distributed.Process,
    workers: int,
    interpolation: str = "bilinear",
    precision: str = DEFAULT,
) -> Features:
    """Return the features of all images of a source, from the cache if possible. Each process computes its share.

    The cache key holds the weights, the fingerprint of the images, the preprocessing, the precision, the code, the type
    of device and the version of PyTorch. So k-nearest-neighbors and linear classification share cached features. A
    damaged file in the cache is computed again. Cached features are read from the file when they are used.

    Args:
        normalization: mean and standard deviation per channel, for pixels in 0..1.
        resize: see `pretrain.images.loader.evaluation_batches`.
        crop: see `pretrain.images.loader.evaluation_batches`.
        workers: number of processes that read images.
        interpolation: see `pretrain.images.loader.evaluation_batches`.
        precision: precision of the backbone's forward pass, one of `transfer.precision.PRECISIONS`.

    Raises:
        InputError: an image cannot be read, the weights do not fit, or a feature is not finite.
        ResourceError: the disk is full.
    """
    path = _path(checkpoint, source, _look(resize, crop, normalization, interpolation), precision, process.device.type)
    features = _cached(path)
    if not distributed.any_process(features is None, process.device):
        if process.is_main:
            print(f"features: {len(source)} images, read from the cache {path}", file=sys.stderr)
    else:
        mean, std = normalization
        share, padded = process.share(len(source)), largest_share(len(source), process.world_size)
        batches = evaluation_batches(
            source,
            resize=resize,
            crop=crop,
            interpolation=interpolation,
            mean=mean,
            std=std,
            batch_size=_BATCH[process.device.type],
            first=share.start,
            last=share.stop,
            workers=0 if isinstance(source, ArraySource) else workers,  # arrays are in memory: workers would be slower
            device=process.device,
        )
        features = _forward(build_backbone_of(checkpoint), batches, len(share), process, precision)
        if process.world_size > 1:
            features = _gather(functional.pad(features, (0, 0, 0, padded - len(features))), process)[: len(source)]
        if not torch.isfinite(features).all():
            raise NotFiniteError(
                f"checkpoint {checkpoint.path}: its features are not finite: the weights are damaged or diverged"
            )
        if process.is_main:
            files.write_digested(path, functools.partial(_write, features.numpy()))
    assert features is not None
    return Features(features, torch.from_numpy(source.labels))


def _look(resize: int | None, crop: int | None, normalization: Sequence[Any], interpolation: str) -> list[Any]:
    """Return what decides the pixels of an image beside its file."""
    return [resize, crop, *normalization, *([] if interpolation == "bilinear" else [interpolation])]


def _path(checkpoint: Checkpoint, source: ImageSource, look: list[Any], precision: str, device: str) -> Path:
    """Return the file of the cache for some features; see `extract`."""
    about = {
        "weights": checkpoint.weights_sha256,
        "backbone": identity(checkpoint.architecture),
        "images": fingerprint(source),
        "preprocessing": look,
        "code": [files.sha256(path) for path in _CODE],
        "computed_by": [device, torch.__version__],
        **({} if precision == DEFAULT else {"precision": precision}),
    }
    return FOLDER / f"{digest(about)}.npy"


def is_cached(checkpoint: Checkpoint, source: ImageSource, config: Any, device: str) -> bool:
    """Return whether `extract_both` would find the features of a source in the cache.

    Args:
        config: as for `extract_both`.
        device: type of the device, "cpu" or "cuda".
    """
    if not any(FOLDER.glob("*.npy")):  # without reading the images for their fingerprint
        return False
    interpolation = getattr(config, "interpolation", "bilinear")
    look = _look(config.resize, config.crop, normalization(config.data), interpolation)
    return _path(checkpoint, source, look, config.precision, device).exists()


def _gather(share: torch.Tensor, process: distributed.Process) -> torch.Tensor:
    """Return the shares (rows, F) of all processes in the order of their ranks.

    They are gathered in parts, because all features of ImageNet are 10 GB.
    """
    together = torch.empty((process.world_size, *share.shape))
    for own, parts in zip(share.split(_GATHERED), together.split(_GATHERED, dim=1), strict=True):
        parts.copy_(distributed.stack(own.to(process.device)))
    return together.flatten(0, 1)


@torch.inference_mode()
def _forward(
    model: Backbone,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    n: int,
    process: distributed.Process,
    precision: str,
) -> torch.Tensor:
    """Compute the features of the n images in `batches`, (n, F) float32 on the CPU."""
    fold_norms(model.eval())
    model.to(process.device, memory_format=torch.channels_last)
    features = torch.empty((n, model.num_features))
    size = _BATCH[process.device.type]
    progress = Progress(
        math.ceil(n / size), images_per_step=size * process.world_size, label="features", enabled=process.is_main
    )
    # The next batch is sent to the GPU before the features of this batch are read, so copies do not stop the GPU. Only
    # these two batches are in page-locked memory, and no features stay on the GPU: those of ImageNet are 10 GB.
    rows, before = iter(features.split(size)), None
    for images, _ in batches:
        with autocast(precision, process.device):
            computed = fetch(model(images.contiguous(memory_format=torch.channels_last)))
        if before is not None:
            next(rows).copy_(before.read())
        before = computed
        progress.step()
    if before is not None:
        next(rows).copy_(before.read())
    progress.close()
    return features


def fold_norms(model: nn.Module) -> None:
    """Merge each batch normalization into the convolution before it, in place. The model must be in eval mode."""
    for module in model.modules():
        for (name, convolution), (norm_name, norm) in itertools.pairwise([*module.named_children()]):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(convolution, norm))
                setattr(module, norm_name, nn.Identity())


def _write(features: np.ndarray, stream: Any) -> None:
    """Write an array in NumPy's file format without copying it."""
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(features))
    stream.write(features.data)


def _cached(path: Path) -> torch.Tensor | None:
    """Return the features in a cache file; None if the file does not exist or is damaged."""
    if not path.exists():
        return None
    try:
        files.verify(path, required=True)
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (BenchError, ValueError, TypeError, OSError):
        return None
