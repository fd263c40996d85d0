"""Spectra of a checkpoint: of its features, its embedding and its transformed output, on a data set's test images.

Batch norms use their running averages, as where the features are used. In training mode they would give every channel
unit variance over whatever batch comes: a collapsed network's rounding noise blown up to look like a spectrum, another
one for each batch size (an untrained ResNet's 256 features have a RankMe of 66 so, and of 206 in training mode).
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intl_bench.core import config as configs
from intl_bench.core import distributed
from intl_bench.core.errors import InputError
from intl_bench.core.seeding import permutation
from pretrain import checkpoint, train
from pretrain import recipe as recipes
from pretrain.checkpoint import Preprocessing
from pretrain.images.data import ArraySource, DataConfig, FileSource, ImageSource, normalization, open_source
from pretrain.images.loader import evaluation_batches
from pretrain.recipe import Recipe, inherited_data
from pretrain.spectrum import Spectrum, compute_spectrum

IMAGES = 2048
_FORWARD = 64  # images at a time; with running averages it changes no result


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spectra:
    """What was measured of one checkpoint.

    Attributes:
        path: the file.
        label: the method, and which run's or file's it is.
        dataset: the name of the images' data set.
        spectra: of "features", and where the checkpoint has them of "embedding" and "transformed", in this order.
    """

    path: Path
    label: str
    dataset: str
    spectra: dict[str, Spectrum]


def measure_run(
    path: Path,
    state: dict[str, Any] | None = None,
    *,
    overrides: Sequence[str] = (),
    images: int = IMAGES,
    batch: int | None = None,
) -> Spectra:
    """The spectra of a checkpoint of `intl-bench pretrain`, in eval mode and float32.

    Features and embedding over all the images, the transformed output over the first batch of them, for a method with
    `transform`: whitening is of a batch.

    Args:
        state: the file's, where it has been read already.
        overrides: "data.key=value", on top of the recipe's own data set.
        images: how many of the test images, chosen at random but the same ones each time; all where there are fewer.
        batch: size of the batch to transform; None takes the recipe's.

    Raises:
        InputError: no such file, not a pre-training checkpoint or not a whole one, weights or an output that are not
            finite, fewer than two images, no data set, or a batch that the method cannot transform.
    """
    if state is None:
        state, _ = checkpoint.load(path)
    if not {"method", "config", "step"} <= state.keys():
        raise InputError(
            f"checkpoint {path}: not of a pre-training run; expected runs/pretrain/NAME/seedK/checkpoint.pt"
        )
    recipe = recipes.from_dict(state["config"], f"checkpoint {path}")
    data = data_config(recipe.data, None, overrides)
    source = choose(open_source(data, "test"), images)
    with distributed.start() as process:
        method = _rebuild(path, recipe, state, len(source.class_names), process)
        features, embedding = _outputs(
            method.backbone, method.projector, source, data, size=max(view.size for view in recipe.views)
        )
        matrices = {"features": features, "embedding": embedding}
        _require_finite(path, matrices)
        if hasattr(method, "transform"):
            matrices["transformed"] = _transform(path, method, embedding[: batch or recipe.batch_size])
        epoch = state["step"] // state["steps_per_epoch"]
        return Spectra(
            path=path,
            label=f"{state['display']} ({recipe.name}, seed {recipe.seed}, epoch {epoch})",
            dataset=data.dataset,
            spectra={name: compute_spectrum(matrix) for name, matrix in matrices.items()},
        )


def measure_backbone(
    backbone: nn.Module, *, path: Path, label: str, data: DataConfig, size: int, images: int = IMAGES
) -> Spectra:
    """The spectrum of any backbone's features, in eval mode; see `measure`.

    Args:
        size: side of the square that is cut from the middle of photos.

    Raises:
        InputError: as `measure`.
    """
    source = choose(open_source(data, "test"), images)
    with distributed.start() as process:
        features, _ = _outputs(backbone.to(process.device).eval(), None, source, data, size=size)
        _require_finite(path, {"features": features})
        return Spectra(path=path, label=label, dataset=data.dataset, spectra={"features": compute_spectrum(features)})


def data_config(own: DataConfig | None, look: Preprocessing | None, overrides: Sequence[str]) -> DataConfig:
    """A checkpoint's own data set under overrides "data.key=value", with the normalization of the checkpoint.

    Args:
        own: the data set that it was trained on, if it is known; of another kind of data nothing else is its own.
        look: its normalization, where `own` does not tell.

    Raises:
        InputError: an override of something else, an unknown key or value.
    """
    for change in overrides:
        if not change.startswith("data."):
            raise InputError(f"override {change}: expected data.key=value, such as data.root=PATH")
    changes = [change.removeprefix("data.") for change in overrides]
    values = {} if own is None else inherited_data(own, changes)
    if own is None and look is not None:
        values = {"mean": look.mean, "std": look.std}
    return configs.build(DataConfig, values, "data", changes)


def choose(source: ArraySource | FileSource, images: int) -> ImageSource:
    """`images` of a source at random, all where there are fewer: in the order of files the first ones are one class.

    Raises:
        InputError: fewer than two.
    """
    if images < 2:
        raise InputError(f"images={images}: a spectrum needs at least 2")
    if len(source) < 2:
        raise InputError(f"{source.file(0)}: the only test image; a spectrum needs at least 2")
    return source.choose(permutation(0, "spectrum", 0, len(source))[:images])


def _rebuild(path: Path, recipe: Recipe, state: dict[str, Any], classes: int, process: distributed.Process) -> Any:
    """The method of a recipe with a checkpoint's weights, in eval mode."""
    weights, about = state["method"], state["details"]
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"checkpoint {path}: {name} is not finite: the weights are damaged or diverged")
    full = dataclasses.replace(recipe, precision="fp32")
    method = train.build_training(full, process, about["images"], about.get("classes", classes)).method
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        missing = [part for part in ("backbone", "projector") if not any(k.startswith(f"{part}.") for k in weights)]
        reason = f"it has no {missing[0]}" if missing else " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path}: not the weights of its recipe: {reason}") from error
    method.step = state["step"]  # what a method draws is a function of it
    return method.eval()


@torch.inference_mode()
def _outputs(
    backbone: nn.Module, projector: nn.Module | None, source: ImageSource, data: DataConfig, *, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, F) and embedding (N, d) of un-augmented images; without a projector the features twice."""
    photos = data.kind == "imagefolder"
    mean, std = normalization(data)
    batches = evaluation_batches(
        source,
        resize=round(size * 256 / 224) if photos else None,  # ImageNet's usual proportion
        crop=size if photos else None,
        mean=mean,
        std=std,
        batch_size=_FORWARD,
        workers=min(8, os.cpu_count() or 1) if photos else 0,
        device=next(backbone.parameters()).device,
    )
    found = []
    for images, _ in batches:
        features = backbone(images.contiguous(memory_format=torch.channels_last))
        found.append((features, features if projector is None else projector(features)))
    features, embedding = (torch.cat(parts) for parts in zip(*found, strict=True))
    return features, embedding


@torch.inference_mode()
def _transform(path: Path, method: Any, embedding: torch.Tensor) -> torch.Tensor:
    try:
        transformed: torch.Tensor = method.transform(embedding)
    except (ValueError, torch.linalg.LinAlgError) as error:
        m, d = embedding.shape
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path}: its method cannot transform {m} x {d} embeddings: {reason}") from error
    return transformed


def _require_finite(path: Path, matrices: dict[str, torch.Tensor]) -> None:
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():
            raise InputError(
                f"checkpoint {path}: values of its {name} are not finite: the weights are damaged or diverged"
            )
