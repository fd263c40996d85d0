"""What `convert` compares: features of random images, of a source and of the file that was written from it."""

import importlib

import torch

from pretrain.backbone import Backbone, BackboneConfig
from transfer.detection.engines import choice
from transfer.formats import safe_load
from transfer.formats.loaded import DEPTHS
from transfer.formats.match import Extracted, extract, find


@torch.inference_mode()
def compute(architecture: str, stem: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute features (2, F) of two random images with our backbone."""
    with torch.device("meta"):
        model = Backbone(BackboneConfig(name=architecture, stem=stem)).eval()
    model.load_state_dict(state, assign=True)
    features: torch.Tensor = model(_images())
    return features


def difference(
    source: Extracted, stem: str, expected: torch.Tensor, written: safe_load.Content, to: str
) -> tuple[float, str]:
    """Compare features of a written file with those of its source.

    Args:
        expected: (2, F), `compute` of the source.
        to: the layout of the written file.

    Returns:
        The largest difference relative to the largest feature, and the comparisons in words.
    """
    read_back = extract(find(written, "detectron2" if to == "detectron2" else "torchvision"), written.path).state
    found, against = [compute(source.architecture, stem, read_back)], "the written file read back"
    own = source.architecture in DEPTHS and len(set(source.widths)) == 1  # what `backbone_features` builds
    if to == "detectron2" and own and not choice.find_import_problem():
        detectron2 = importlib.import_module("transfer.detection.engines.detectron2")
        state = safe_load.tensors(written.data["model"])
        found.append(detectron2.backbone_features(state, _images(), DEPTHS[source.architecture]))
        against += ", and Detectron2's own ResNet"
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # a dead network has only zeros
    return max(float((features - expected).abs().max() / largest) for features in found), against


def _images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
