"""How each library loads an exported backbone: its file, and the lines of Python that the model card shows.

The weights have no classifier, because the backbone was trained without one. The lines say so to each library, so
nothing is missing and nothing is unexpected.
"""

import dataclasses
from typing import Any

from pretrain.backbone import STEMS
from pretrain.checkpoint import Checkpoint, Preprocessing
from transfer.formats.loaded import DEPTHS, detectron2_values

SAFETENSORS, TORCHVISION, DETECTRON2 = "model.safetensors", "torchvision.pth", "detectron2.pkl"
TIMM_CONFIG, DETECTRON2_CONFIG = "config.json", "detectron2.yaml"
# Networks that torchvision and timm have too, under the same names.
COMMON = DEPTHS.keys() - {"resnet50w2"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """A library that loads the backbone.

    Attributes:
        imports: lines before `lines`.
        lines: Python that makes `model` (or `weights`) in the folder of the export.
        note: a sentence for people.
    """

    name: str
    imports: str
    lines: tuple[str, ...]
    note: str = ""


def libraries(checkpoint: Checkpoint) -> list[Library]:
    """Return how each library that has the network loads it."""
    name, stem = checkpoint.architecture.name, checkpoint.architecture.stem
    found = [
        Library(
            name="safetensors",
            imports="import safetensors.torch",
            lines=(f'weights = safetensors.torch.load_file("{SAFETENSORS}")',),
            note="The names are those of torchvision. The header holds the recipe and how the backbone was trained.",
        )
    ]
    if name in COMMON:
        found += [_torchvision(name, stem), _timm(name, stem)]
    if stem == "imagenet" and (name in COMMON or name == "resnet50w2"):
        found.append(_DETECTRON2)
    found.append(
        Library(
            name="intl-bench",
            imports="import safetensors.torch\nfrom pretrain.backbone import build_backbone",
            lines=(
                f'model = build_backbone("{name}", stem="{stem}")',
                f'model.load_state_dict(safetensors.torch.load_file("{SAFETENSORS}"))',
            ),
            note=f"To score it: `intl-bench linear {SAFETENSORS} data.root=PATH`.",
        )
    )
    return found


def without(checkpoint: Checkpoint) -> str:
    """Return a sentence about the libraries that do not have the network; "" if all have it."""
    name, stem = checkpoint.architecture.name, checkpoint.architecture.stem
    if name not in COMMON and name != "resnet50w2":
        return f"torchvision, timm and Detectron2 have no {name}."
    if name not in COMMON:
        return f"torchvision and timm have no {name}."
    if stem != "imagenet":
        return f"There is no file for Detectron2, whose networks have a stem of 7x7; this stem is `{stem}`."
    return ""


def timm_config(checkpoint: Checkpoint, pixels: Preprocessing) -> dict[str, Any]:
    """Return the content of `config.json`, from which `timm.create_model("local-dir:...")` builds the network."""
    recipe = checkpoint.recipe
    side = max(view.size for view in recipe.views) if recipe is not None else 224
    return {
        "architecture": checkpoint.architecture.name,
        "num_classes": 0,
        "pretrained_cfg": {
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "input_size": [3, side, side],
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def detectron2_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the content of `detectron2.yaml`, to be merged into the configuration of a detector."""
    values = detectron2_values(checkpoint)
    return {**values, "MODEL": {"WEIGHTS": DETECTRON2, **values["MODEL"]}}


def _stem_lines(stem: str) -> tuple[str, ...]:
    """Return the line that gives a network of torchvision or timm a small stem; none for the stem that they have."""
    if stem == "imagenet":
        return ()
    kernel, stride, padding, max_pool = STEMS[stem]
    convolution = f"torch.nn.Conv2d(3, 64, {kernel}, stride={stride}, padding={padding}, bias=False)"
    return (f"model.conv1 = {convolution}{'' if max_pool else '; model.maxpool = torch.nn.Identity()'}",)


def _torchvision(name: str, stem: str) -> Library:
    small = _stem_lines(stem)
    loaded = f'safetensors.torch.load_file("{SAFETENSORS}")' if small else f'torch.load("{TORCHVISION}")'
    return Library(
        name="torchvision",
        imports="import safetensors.torch\nimport torch\nimport torchvision"
        if small
        else "import torch\nimport torchvision",
        lines=(
            f"model = torchvision.models.{name}(); model.fc = torch.nn.Identity()",
            *small,
            f"model.load_state_dict({loaded})",
        ),
        note="`fc` is the identity, because a backbone has no classifier: the model returns features.",
    )


def _timm(name: str, stem: str) -> Library:
    if not (small := _stem_lines(stem)):
        return Library(
            name="timm",
            imports="import timm",
            lines=('model = timm.create_model("local-dir:.", pretrained=True)',),
            note=f"`{TIMM_CONFIG}` says that there is no classifier (`num_classes=0`), and the mean and std of pixels. "
            'After an upload to the Hugging Face Hub the name is `"hf-hub:USER/NAME"`.',
        )
    return Library(
        name="timm",
        imports="import safetensors.torch\nimport timm\nimport torch",
        lines=(
            f'model = timm.create_model("{name}", num_classes=0)',
            *small,
            f'model.load_state_dict(safetensors.torch.load_file("{SAFETENSORS}"))',
        ),
    )


_DETECTRON2 = Library(
    name="Detectron2",
    imports="from detectron2.checkpoint import DetectionCheckpointer\nfrom detectron2.config import get_cfg\n"
    "from detectron2.modeling import build_backbone\n\n"
    f'cfg = get_cfg()\ncfg.merge_from_file("{DETECTRON2_CONFIG}")',
    lines=(
        'cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]; model = build_backbone(cfg)',
        "DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)",
    ),
    note=f"For a detector, merge `{DETECTRON2_CONFIG}` after the file of the detector, without `OUT_FEATURES`. Norms "
    "are frozen unless `MODEL.RESNETS.NORM` is `SyncBN`, as in the published protocol.",
)
