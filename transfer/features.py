"""Features of a frozen backbone, computed once and kept under runs/features/."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.nn import functional

from intl_bench.core import config as configs
from intl_bench.core import distributed, files
from intl_bench.core.errors import InputError, from_os_error
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import torch_seed
from pretrain import backbone as backbones
from pretrain import data as data_module
from pretrain import loader, views
from pretrain.backbone import Backbone, BackboneConfig
from pretrain.checkpoint import Checkpoint
from pretrain.data import ArraySource, ImageSource, normalization, open_source
from pretrain.loader import evaluation_batches

FOLDER = Path("runs") / "features"
RANDOM = "Random init"
_BATCH = 256
# Whatever changes in these may change a feature.
_CODE = [Path(str(module.__file__)) for module in (backbones, data_module, loader, views)] + [Path(__file__)]


class Features(NamedTuple):
    """features (n, F) float32 and labels (n,) int64, both on the CPU."""

    features: torch.Tensor
    labels: torch.Tensor


def build(checkpoint: Checkpoint) -> Backbone:
    """The checkpoint's backbone with its weights, all of them and no others.

    Raises:
        InputError: the weights do not fit the architecture that the checkpoint names.
    """
    config = checkpoint.config["backbone"]
    model = Backbone(configs.build(BackboneConfig, config, f"checkpoint {checkpoint.path}"))
    expected, given = (
        {k: tuple(v.shape) for k, v in state.items()} for state in (model.state_dict(), checkpoint.backbone)
    )
    wrong = [
        f"{key} is {given.get(key, 'missing')}, expected {shape}"
        for key, shape in expected.items()
        if given.get(key) != shape
    ]
    wrong += [f"{key} is not part of it" for key in given if key not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"checkpoint {checkpoint.path}: its weights are not those of a {config['name']} with the {config['stem']} "
            f"stem: {'; '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(checkpoint.backbone)
    return model


def random_init(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The same architecture, freshly initialised from `seed`: what pre-training with this seed begins with."""
    config = configs.build(BackboneConfig, checkpoint.config["backbone"], f"checkpoint {checkpoint.path}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        state = Backbone(config).state_dict()
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return dataclasses.replace(
        checkpoint,
        sha256=digest.hexdigest(),
        backbone=state,
        config={**checkpoint.config, "seed": seed},
        method=RANDOM,
        epoch=0,
        details={},
    )


def extract_both(checkpoint: Checkpoint, config: Any, process: distributed.Process) -> tuple[Features, Features]:
    """Features of the training and of the test images of `config.data`, as `config` (`resize`, `crop`, `workers`) says.

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
) -> Features:
    """Features of all images of a source, from the cache or computed, each process doing its share.

    The cache is keyed by the weights, the images (their bytes; of image folders the names, sizes and times of change),
    the preprocessing and the code; a damaged file in it is written anew.

    Args:
        normalization: mean and standard deviation per channel, for pixels in 0..1.
        resize, crop: as for `pretrain.loader.evaluation_batches`.

    Raises:
        InputError: an image cannot be read, the weights do not fit, or a feature is not finite.
        ResourceError: the disk is full.
    """
    about = {
        "checkpoint": checkpoint.sha256,
        "backbone": checkpoint.config["backbone"],
        "images": _fingerprint(source),
        "preprocessing": [resize, crop, *normalization],
        "code": [files.sha256(path) for path in _CODE],
        "computed_by": [process.device.type, torch.__version__],
    }
    path = FOLDER / f"{configs.digest(about)}.safetensors"
    features = _cached(path)
    if distributed.any_process(features is None, process.device):
        mean, std = normalization
        share = math.ceil(len(source) / process.world_size)
        first = min(len(source), process.rank * share)
        last = min(len(source), first + share)
        batches = evaluation_batches(
            source,
            resize=resize,
            crop=crop,
            mean=mean,
            std=std,
            batch_size=_BATCH,
            first=first,
            last=last,
            workers=0 if isinstance(source, ArraySource) else workers,  # what is in memory is quicker taken than sent
        )
        features = _forward(build(checkpoint), batches, last - first, process)
        if process.world_size > 1:
            padded = functional.pad(features, (0, 0, 0, share - len(features))).to(process.device)
            features = distributed.gather(padded)[: len(source)].cpu()
        if not torch.isfinite(features).all():
            raise InputError(
                f"checkpoint {checkpoint.path}: its features are not finite: the weights are damaged or diverged"
            )
        if process.is_main:
            content = save({"features": features}, metadata={"about": json.dumps(about)})
            files.write_digested(path, lambda stream: stream.write(content))
    assert features is not None
    return Features(features, torch.from_numpy(source.labels))


@torch.inference_mode()
def _forward(
    model: Backbone, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], n: int, process: distributed.Process
) -> torch.Tensor:
    """Features of the n images in `batches`, (n, F) float32 on the CPU."""
    model.to(process.device, memory_format=torch.channels_last).eval()
    features = torch.empty((n, model.num_features))
    progress = Progress(
        math.ceil(n / _BATCH), images_per_step=_BATCH * process.world_size, label="features", enabled=process.is_main
    )
    done = 0
    for images, _ in batches:
        images = images.to(process.device, memory_format=torch.channels_last)
        features[done : done + len(images)] = model(images)
        done += len(images)
        progress.step()
    progress.close()
    return features


def _cached(path: Path) -> torch.Tensor | None:
    """The features in a cache file, or None where there is none or it is damaged."""
    if not path.exists() or not path.with_name(f"{path.name}.sha256").exists():
        return None
    try:
        files.verify(path)
        return load_file(path)["features"]
    except (InputError, SafetensorError, KeyError):
        return None


def _fingerprint(source: ImageSource) -> str:
    """SHA-256 of what decides the images of a source and their order."""
    digest = hashlib.sha256()
    if isinstance(source, ArraySource):
        digest.update(f"{source.images.shape}".encode())
        digest.update(np.ascontiguousarray(source.images).data)
    else:
        for index in range(len(source)):
            file = source.file(index)
            try:
                status = os.stat(file)
            except OSError as error:
                raise from_os_error(error, f"cannot read {file}") from error
            digest.update(f"{file}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
