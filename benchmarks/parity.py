"""Print the differences between the built-in detector and Detectron2 as a Markdown table; needs Detectron2.

    python benchmarks/parity.py [FOLDER THAT HOLDS coco_tiny] > results/parity.md

Weights, inputs and random samples are equal. The difference is max|ours - theirs| / max|theirs|, the largest over all
tensors of a kind. For masks it is 1 - the smallest intersection over union. The first table is of R50-C4, the second of
R50-FPN. A third one has the gradients on real images, where float32 decides the sign of some activation; the difference
is the norm of the difference of all gradients, divided by their norm.
tests/detection/test_detection_parity.py asserts the same tolerances.
"""

import dataclasses
import platform
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "detection"))

import detectron2
import numpy as np
import torch
import torchvision
from detection_cases import SMALL_FPN, Values, batch, relative, small_model, training_values
from detectron2_cases import detectron2_model, detectron2_training_values
from test_detection_parity import (
    FEW_REGIONS,
    FEW_REGIONS_FPN,
    LIVE,
    MASK_IOU,
    both_float64,
    both_in_float64,
    both_resnet50,
    both_small,
    both_small_pyramids,
    coco_batch,
    mask_iou,
)

KINDS = {
    "backbone features": ("features",),
    "anchors": ("anchors",),
    "RPN logits and deltas": ("rpn_logits", "rpn_deltas"),
    "proposals, training settings": ("proposals/",),
    "proposals, test settings": ("test_proposals/",),
    "sampled anchors, matched boxes": ("rpn_foreground/", "rpn_background/", "rpn_targets/"),
    "sampled regions, their classes and boxes": ("region_",),
    "mask targets": ("mask_targets/",),
    "losses": ("loss_",),
    "gradients": ("grad/",),
    "detected boxes": ("boxes/",),
    "scores": ("scores/",),
    "classes": ("classes/",),
    "pasted masks": ("pasted/",),
}


def differences(ours: Values, theirs: Values) -> dict[str, float]:
    """Return the largest difference of each kind of tensor."""
    assert ours.keys() == theirs.keys()
    found = {}
    for kind, prefixes in KINDS.items():
        names = [name for name in theirs if name.startswith(prefixes)]
        if kind == "pasted masks":
            values = [1 - mask_iou(ours[name], theirs[name]) for name in names]
        else:
            values = [relative(ours[name], theirs[name]) for name in names]
        if values:
            found[kind] = max(values)
    return found


def six_in_float64() -> dict[str, float]:
    """Return the largest differences over six batches."""
    return largest([differences(*both_float64(seed)) for seed in range(0, 60, 10)])


def pyramids_in_float64() -> dict[str, float]:
    """Return the largest differences over both heads of R50-FPN."""
    heads = [dataclasses.replace(SMALL_FPN, box_head=head) for head in ("2fc", "4conv1fc")]
    return largest([differences(*both_in_float64(config, *batch(config, scale=3))) for config in heads])


def largest(each: list[dict[str, float]]) -> dict[str, float]:
    return {kind: max(found[kind] for found in each) for kind in each[0]}


def print_table(columns: dict[str, dict[str, float]]) -> None:
    print("| quantity | " + " | ".join(columns) + " | tolerance |")
    print("| --- |" + " --- |" * (len(columns) + 1))
    for kind in KINDS:
        cells = [
            f"{column[kind]:.1e}".replace("0.0e+00", "0") if kind in column else "–" for column in columns.values()
        ]
        print(f"| {kind} | " + " | ".join(cells) + f" | {1 - MASK_IOU if kind == 'pasted masks' else LIVE:.0e} |")


def gradient_distance(values: Values, reference: Values) -> float:
    """Return the norm of the difference of all gradients, divided by the norm of those of the reference."""
    names = [name for name in reference if name.startswith("grad/")]
    found, expected = (torch.cat([each[name].double().ravel() for name in names]) for each in (values, reference))
    return float((found - expected).norm() / expected.norm())


def on_real_images(data: Path, images: int = 8) -> dict[str, list[float]]:
    """Return the differences of the gradients of a ResNet-50 on single COCO images, by comparison."""
    found: dict[str, list[float]] = {}
    for number in range(images):
        case = coco_batch(data, number)
        ours = small_model(FEW_REGIONS)
        weights = {name: value.clone() for name, value in ours.state_dict().items()}
        theirs = detectron2_training_values(detectron2_model(FEW_REGIONS, weights), *case)
        weights["backbone.stem.conv1.weight"].ravel().view(torch.int32)[0] ^= 1
        changed = detectron2_training_values(detectron2_model(FEW_REGIONS, weights), *case)
        pairs = {
            "built-in detector against Detectron2, float64": both_in_float64(FEW_REGIONS, *case),
            "built-in detector against Detectron2, float32": (training_values(ours, *case), theirs),
            "Detectron2 against itself with the last bit of one weight changed, float32": (changed, theirs),
        }
        for name, pair in pairs.items():
            found.setdefault(name, []).append(gradient_distance(*pair))
    return found


def main() -> None:
    torch.set_num_threads(1)
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    print("# The built-in detector against Detectron2\n")
    print_table(
        {
            "width / 8, float32": differences(*both_small()),
            "width / 8, float64": six_in_float64(),
            "ResNet-50, float32": differences(*both_resnet50(data)),
        }
    )
    heads = [differences(*both_small_pyramids(box_head=head)) for head in ("2fc", "4conv1fc")]
    print("\nThe same for R50-FPN, the larger of the differences with either head:\n")
    print_table(
        {
            "width / 8, float32": largest(heads),
            "width / 8, float64": pyramids_in_float64(),
            "ResNet-50 2fc, float32": differences(*both_resnet50(data, FEW_REGIONS_FPN)),
        }
    )
    print(
        "\nLargest difference relative to the largest value; of pasted masks 1 - the smallest intersection over union. "
        "Indices, classes and binary targets are equal where 0 stands.\n\n"
        "- width / 8: three images (96x128 polygons, 112x80 bitmaps, 64x96 without objects), 12 regions an image, 5 "
        "classes, batch norms in training mode, nothing frozen; `norm` after res5.\n"
        "- float64: training on six batches; boxes, proposals and losses are float32 in both. In float32 the gradient "
        "of a batch with an activation within rounding of 0 differs by up to 5e-3, for the ReLU's slope jumps there; "
        "the float32 column's batch has none.\n"
        "- ResNet-50: one COCO image at a quarter of its size, 8 regions, 80 classes.\n"
        "- R50-FPN, width / 8: images three times as large, 40 regions an image from three levels; in float32 the "
        "tolerance of its gradients is 1e-04, because they are sums over more positions.\n"
        "- Resized sizes over a grid and whole training images are compared exactly in "
        "tests/detection/test_detection_data.py, the learning rate of every iteration of 1x, 2x and 24k to 1e-9 in "
        "tests/detection/test_detectron2_engine.py.\n"
        "\n| gradients of a ResNet-50 on real images | smallest | median | largest |\n| --- | --- | --- | --- |"
    )
    for name, values in on_real_images(data).items():
        cells = [f"{value:.1e}" for value in (min(values), statistics.median(values), max(values))]
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        "\nNorm of the difference of all gradients, divided by their norm; eight COCO images, one at a time, at a "
        "quarter of their size. The rounding of float32 decides the sign of activations near 0, where the slope of the "
        "ReLU jumps. So the claim about gradients is that of float64.\n"
        f"\nMeasured by `python benchmarks/parity.py` with Detectron2 {detectron2.__version__} (main), torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, NumPy {np.__version__}, Python "
        f"{platform.python_version()}, one thread of an {processor()}."
    )


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    wide = any("avx512f" in line for line in lines)
    return f"{name} CPU{' with AVX-512' if wide else ''}"


if __name__ == "__main__":
    main()
