"""Spectra of a checkpoint: of its features, its embedding and its transformed output, on the test images of a data set.

Batch normalization uses its running averages, as in every evaluation of the features. In training mode it would give
every channel unit variance over the current batch. The rounding noise of a collapsed network would then look like a
spectrum, which would also depend on the batch size. The 256 features of an untrained ResNet have a RankMe of 66 with
running averages, and of 206 in training mode.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intl_bench.core import config as configs
from intl_bench.core import distributed
from intl_bench.core.errors import InputError, NotFiniteError
from intl_bench.core.machine import cores
from intl_bench.core.seeding import permutation
from pretrain import recipe as recipes
from pretrain import states, train
from pretrain.checkpoint import Origin, Preprocessing
from pretrain.images.data import ArraySource, DataConfig, FileSource, ImageSource, normalization, open_source
from pretrain.images.loader import evaluation_batches
from pretrain.methods import Method
from pretrain.recipe import Recipe, inherited_data
from pretrain.spectrum import Spectrum, compute_spectrum
from transfer import features
from transfer.convert import interpret
from transfer.formats import safe_load

IMAGES = 2048
_FORWARD_BATCH = 64  # changes no result, because batch normalization uses its running averages


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spectra:
    """The spectra of one checkpoint.

    Attributes:
        path: the file.
        label: the method, and the run or the file.
        dataset: the name of the data set of the images.
        spectra: the spectra of "features", and of "embedding" and "transformed" if the checkpoint has them, in this
            order.
    """

    path: Path
    label: str
    dataset: str
    spectra: dict[str, Spectrum]


def measure_checkpoint(
    path: Path, *, layout: str = "auto", overrides: Sequence[str] = (), images: int = IMAGES
) -> Spectra:
    """Measure any checkpoint: a run of `intl-bench pretrain` with `measure_run`, others with `measure_backbone`.

    Args:
        layout: the layout of the checkpoint, as in `transfer.convert.read`.
        overrides: see `measure_run`.
        images: see `measure_run`.

    Raises:
        InputError: see `transfer.convert.read`, `measure_run` and `measure_backbone`.
    """
    content = safe_load.read(path)
    interpreted = interpret(content, layout)
    recipe = interpreted.recipe
    if interpreted.origin is Origin.TRAINED and interpreted.branch == "online":
        return measure_run(content.path, content.data, overrides=overrides, images=images)
    return measure_backbone(
        features.build_backbone_of(interpreted),
        path=content.path,
        label=f"{interpreted.method} ({content.path.name})",
        data=data_config(None if recipe is None else recipe.data, interpreted.preprocessing, overrides),
        size=max(view.size for view in recipe.views) if recipe is not None else 224,
        images=images,
    )


def measure_run(
    path: Path,
    state: dict[str, Any] | None = None,
    *,
    overrides: Sequence[str] = (),
    images: int = IMAGES,
    batch: int | None = None,
) -> Spectra:
    """Measure a checkpoint of `intl-bench pretrain`, in eval mode and float32.

    Features and embedding are of all chosen images. The transformed output is of their first batch, because whitening
    is an operation on a batch; only methods with `transform` have it.

    Args:
        path: the file.
        state: the content of the file, if the caller has already read it.
        overrides: "data.key=value", changes of the recipe's data set.
        images: number of test images. The choice is random, but the same each time. All images if there are fewer.
        batch: size of the batch to transform; None takes the recipe's batch size.

    Raises:
        InputError: the file does not exist, is not a pre-training checkpoint or is incomplete; weights or an output
            are not finite; there are fewer than two images or no data set; or the method cannot transform the batch.
    """
    if state is None:
        state, _ = states.load(path)
    if not {"method", "config", "step"} <= state.keys():
        raise InputError(
            f"checkpoint {path}: not a checkpoint of a pre-training run; expected a file such as "
            "runs/pretrain/NAME/seedK/checkpoint.pt"
        )
    recipe = recipes.from_dict(state["config"], f"checkpoint {path}")
    data = data_config(recipe.data, None, overrides)
    source = choose(open_source(data, "test"), images)
    with distributed.start() as process:
        method = _rebuild(path, recipe, state, len(source.class_names), process)
        feature_matrix, embedding = _outputs(
            method.backbone, method.projector, source, data, size=max(view.size for view in recipe.views)
        )
        matrices = {"features": feature_matrix, "embedding": embedding}
        _require_finite(path, matrices)
        transformed = _transform(path, method, embedding[: batch or recipe.batch_size])
        if transformed is not None:
            matrices["transformed"] = transformed
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
    """Measure the features of a backbone, in eval mode.

    Args:
        backbone: maps images (n, 3, H, W) to features (n, F).
        path: the file of the backbone, for `Spectra` and error messages.
        label: see `Spectra`.
        data: the data set of the images.
        size: side in pixels of the center crop of photos.
        images: see `measure_run`.

    Raises:
        InputError: a feature is not finite, there are fewer than two images, or there is no data set.
    """
    source = choose(open_source(data, "test"), images)
    with distributed.start() as process:
        matrix, _ = _outputs(backbone.to(process.device).eval(), None, source, data, size=size)
        _require_finite(path, {"features": matrix})
        return Spectra(path=path, label=label, dataset=data.dataset, spectra={"features": compute_spectrum(matrix)})


def data_config(own: DataConfig | None, preprocessing: Preprocessing | None, overrides: Sequence[str]) -> DataConfig:
    """Return the data set of a checkpoint with overrides applied, and with the normalization of the checkpoint.

    Args:
        own: the data set of the pre-training; None if it is unknown. If an override selects another kind of data, only
            the normalization of `own` is kept.
        preprocessing: the normalization of the checkpoint, used if `own` is None.
        overrides: "data.key=value".

    Raises:
        InputError: an override does not start with "data.", or its key or value is unknown.
    """
    for change in overrides:
        if not change.startswith("data."):
            raise InputError(f"override {change}: expected data.key=value, such as data.root=PATH")
    changes = [change.removeprefix("data.") for change in overrides]
    values = {} if own is None else inherited_data(own, changes)
    if own is None and preprocessing is not None:
        values = {"mean": preprocessing.mean, "std": preprocessing.std}
    return configs.build(DataConfig, values, "data", changes)


def choose(source: ArraySource | FileSource, images: int) -> ImageSource:
    """Choose images at random; all of them if there are fewer.

    The first files are not representative, because files are sorted by class.

    Args:
        images: number of images to choose.

    Raises:
        InputError: fewer than two images are requested or available.
    """
    if images < 2:
        raise InputError(f"images={images}: too few for a spectrum; expected at least 2")
    if len(source) < 2:
        raise InputError(f"{source.file(0)}: the only test image; a spectrum needs at least 2 images")
    return source.choose(permutation(0, "spectrum", 0, len(source))[:images])


def _rebuild(path: Path, recipe: Recipe, state: dict[str, Any], classes: int, process: distributed.Process) -> Method:
    """Build the method of a recipe with the weights of a checkpoint, in eval mode.

    Args:
        classes: number of classes of the data set, for checkpoints that do not store theirs.
    """
    weights, details = state["method"], state["details"]
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NotFiniteError(f"checkpoint {path}: {name} is not finite: the weights are damaged or diverged")
    in_float32 = dataclasses.replace(recipe, precision="fp32")
    method = train.build_training(in_float32, process, details["images"], details.get("classes", classes)).method
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        missing = [part for part in ("backbone", "projector") if not any(k.startswith(f"{part}.") for k in weights)]
        reason = f"it has no {missing[0]}" if missing else " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path}: the weights do not fit its recipe: {reason}") from error
    method.step = state["step"]  # the random numbers of a method depend on the step
    return method.eval()


@torch.inference_mode()
def _outputs(
    backbone: nn.Module, projector: nn.Module | None, source: ImageSource, data: DataConfig, *, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, F) and embedding (N, d) of images without augmentation.

    Without a projector both are the features.
    """
    photos = data.kind == "imagefolder"
    mean, std = normalization(data)
    batches = evaluation_batches(
        source,
        resize=round(size * 256 / 224) if photos else None,  # the usual proportion on ImageNet
        crop=size if photos else None,
        mean=mean,
        std=std,
        batch_size=_FORWARD_BATCH,
        workers=min(8, cores()) if photos else 0,
        device=next(backbone.parameters()).device,
    )
    found = []
    for images, _ in batches:
        output = backbone(images.contiguous(memory_format=torch.channels_last))
        found.append((output, output if projector is None else projector(output)))
    all_features, embedding = (torch.cat(parts) for parts in zip(*found, strict=True))
    return all_features, embedding


@torch.inference_mode()
def _transform(path: Path, method: Method, embedding: torch.Tensor) -> torch.Tensor | None:
    try:
        transformed = method.transform(embedding)
    except (ValueError, torch.linalg.LinAlgError) as error:
        m, d = embedding.shape
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint {path}: its method cannot transform an embedding of {m} x {d}: {reason}"
        ) from error
    return transformed


def _require_finite(path: Path, matrices: dict[str, torch.Tensor]) -> None:
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():
            raise NotFiniteError(
                f"checkpoint {path}: its {name} has values that are not finite: the weights are damaged or diverged"
            )
