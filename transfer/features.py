"""Features of a frozen backbone, computed once and kept under runs/features/."""

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
from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest, identity
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import torch_seed
from intl_bench.core.sharing import largest_share
from pretrain import backbone as backbones
from pretrain import images as image_files
from pretrain.backbone import Backbone
from pretrain.checkpoint import Checkpoint, Origin
from pretrain.images.data import ArraySource, ImageSource, normalization, open_source
from pretrain.images.fingerprint import fingerprint
from pretrain.images.loader import evaluation_batches
from transfer.precision import DEFAULT, autocast

FOLDER = Path("runs") / "features"
RANDOM = "Random init"
# On a CPU a batch that fits the caches is half as long again as quick as a large one.
_BATCH = {"cpu": 32, "cuda": 256}
_GATHERED = 2**14  # rows of each process that go round at once
# Whatever changes in these may change a feature.
_CODE = [
    Path(__file__),
    Path(__file__).with_name("precision.py"),
    Path(backbones.__file__),
    *(
        Path(image_files.__file__).with_name(f"{name}.py")
        for name in ("crops", "data", "decode", "loader", "pack", "views")
    ),
]


class Features(NamedTuple):
    """features (n, F) float32, not to be written to, and labels (n,) int64, both on the CPU."""

    features: torch.Tensor
    labels: torch.Tensor


def build_backbone_of(checkpoint: Checkpoint) -> Backbone:
    """The checkpoint's backbone with its weights, all of them and no others.

    Raises:
        InputError: the weights do not fit the architecture that the checkpoint names.
    """
    with torch.device("meta"):  # no weights are drawn that would be replaced at once
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
            f"checkpoint {checkpoint.path}: its weights are not those of a {checkpoint.architecture.name} with the "
            f"{checkpoint.architecture.stem} stem: {'; '.join(wrong[:3])}{more}"
        )
    copies = {key: value.to(own[key].dtype, copy=True) for key, value in checkpoint.backbone.items()}
    model.load_state_dict(copies, assign=True)
    return model


def random_init(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The same architecture, freshly initialized from `seed`: what pre-training with this seed begins with."""
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
    """What a checkpoint says about a classification task's configuration: how its pixels are normalized."""
    look = checkpoint.preprocessing
    return {} if look is None else {"data": {"mean": list(look.mean), "std": list(look.std)}}


def fingerprints(config: Any) -> dict[str, str]:
    """`pretrain.images.fingerprint.fingerprint` of the training and of the test images of `config.data`."""
    return {split: fingerprint(open_source(config.data, split)) for split in ("train", "test")}


def extract_both(checkpoint: Checkpoint, config: Any, process: distributed.Process) -> tuple[Features, Features]:
    """Features of the training and of the test images of `config.data`.

    Args:
        config: has `resize`, `crop`, `precision` and `workers`.

    Raises:
        InputError: the data set or an image cannot be read, or what `extract` raises.
    """
    sources = [open_source(config.data, split) for split in ("train", "test")]
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
        for source in sources
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
    precision: str = DEFAULT,
) -> Features:
    """Features of all images of a source, from the cache or computed, each process doing its share.

    The cache is keyed by the weights, the images' fingerprint, the preprocessing, the precision and the code, so that
    k-NN and probe share what either computed. A damaged file in it is written anew. Features from the cache stay in the
    file until they are used.

    Args:
        normalization: mean and standard deviation per channel, for pixels in 0..1.
        resize, crop: as for `pretrain.images.loader.evaluation_batches`.
        precision: of the backbone's forward pass, one of `transfer.precision.PRECISIONS`.

    Raises:
        InputError: an image cannot be read, the weights do not fit, or a feature is not finite.
        ResourceError: the disk is full.
    """
    about = {
        "weights": checkpoint.weights_sha256,
        "backbone": identity(checkpoint.architecture),
        "images": fingerprint(source),
        "preprocessing": [resize, crop, *normalization],
        "code": [files.sha256(path) for path in _CODE],
        "computed_by": [process.device.type, torch.__version__],
        **({} if precision == DEFAULT else {"precision": precision}),
    }
    path = FOLDER / f"{digest(about)}.npy"
    features = _cached(path)
    if not distributed.any_process(features is None, process.device):
        if process.is_main:
            print(f"features: those of {len(source)} images are there already, in {path}", file=sys.stderr)
    else:
        mean, std = normalization
        share, padded = process.share(len(source)), largest_share(len(source), process.world_size)
        batches = evaluation_batches(
            source,
            resize=resize,
            crop=crop,
            mean=mean,
            std=std,
            batch_size=_BATCH[process.device.type],
            first=share.start,
            last=share.stop,
            workers=0 if isinstance(source, ArraySource) else workers,  # what is in memory is quicker taken than sent
            device=process.device,
        )
        features = _forward(build_backbone_of(checkpoint), batches, len(share), process, precision)
        if process.world_size > 1:
            features = _gather(functional.pad(features, (0, 0, 0, padded - len(features))), process)[: len(source)]
        if not torch.isfinite(features).all():
            raise InputError(
                f"checkpoint {checkpoint.path}: its features are not finite: the weights are damaged or diverged"
            )
        if process.is_main:
            files.write_digested(path, functools.partial(_write, features.numpy()))
    assert features is not None
    return Features(features, torch.from_numpy(source.labels))


def _gather(share: torch.Tensor, process: distributed.Process) -> torch.Tensor:
    """The shares (rows, F) of all processes, in rank order; a part at a time, for all of ImageNet's are 10 GB."""
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
    """Features of the n images in `batches`, (n, F) float32 on the CPU."""
    fold_norms(model.eval())
    model.to(process.device, memory_format=torch.channels_last)
    features = torch.empty((n, model.num_features))
    size = _BATCH[process.device.type]
    progress = Progress(
        math.ceil(n / size), images_per_step=size * process.world_size, label="features", enabled=process.is_main
    )
    # A GPU has the next batch before it is waited for this one's features, so it never stands still for a copy. Only
    # these two are in page-locked memory, and none stay on the GPU: all of ImageNet's are 10 GB.
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
    """Multiplies every batch norm into the convolution that it follows, in place; for a model in eval mode."""
    for module in model.modules():
        for (name, convolution), (norm_name, norm) in itertools.pairwise([*module.named_children()]):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(convolution, norm))
                setattr(module, norm_name, nn.Identity())


def _write(features: np.ndarray, stream: Any) -> None:
    """NumPy's own format, without a copy of the array in between."""
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(features))
    stream.write(features.data)


def _cached(path: Path) -> torch.Tensor | None:
    """The features in a cache file, or None where there is none or it is damaged."""
    if not path.exists() or not path.with_name(f"{path.name}.sha256").exists():
        return None
    try:
        files.verify(path)
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (InputError, ValueError, OSError):
        return None
