"""A backbone that was read from a file, with the facts of the file, in words."""

import dataclasses
import re
from typing import Any

from intl_bench.core.overrides import flat
from pretrain import checkpoint as checkpoints
from pretrain.checkpoint import Checkpoint, Origin, Preprocessing
from pretrain.images.data import DataConfig
from transfer.formats.match import Extracted, Found

DEPTHS = {
    **{"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152},
    **{"resnet50w2": 50, "wide_resnet50_2": 50, "wide_resnet101_2": 101},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A backbone with the facts of its file.

    Attributes:
        facts: facts that `checkpoint` does not hold: digest of the source, differences of its network, assumptions.
        note: the note of its layout about preprocessing; "" for none.
    """

    found: Found
    extracted: Extracted
    checkpoint: Checkpoint
    facts: dict[str, Any]
    note: str

    @property
    def about(self) -> dict[str, Any]:
        """Return the facts to store beside the weights."""
        values = checkpoints.about(self.checkpoint) | self.facts
        if self.note and values["preprocessing"]:
            values["preprocessing"]["note"] = self.note
        return values

    @property
    def bottleneck_stride(self) -> bool:
        """Tell whether the strides of its bottleneck blocks are in other convolutions than ours."""
        return bool(self.facts.get("stride_in_1x1"))

    def choice(self) -> list[str]:
        """Return a line about the other backbones in the file and how to read them; none if there are none."""
        others = [f"--from {source} reads {place}" for place, source in self.found.others.items()]
        more = f", and {len(others) - 4} more" if len(others) > 4 else ""
        there = f"{len(others) + 1} backbones in the file: the one at {self.found.place} is read; "
        return [there + ", ".join(others[:4]) + more] if others else []

    def warnings(self) -> list[str]:
        """Return the missing part of its pre-training, the differences of its network and the assumptions."""
        found = []
        if self.checkpoint.unfinished:
            found.append(f"its pre-training is not finished: {self.checkpoint.progress}")
        if self.facts.get("differs"):
            found.append(f"its network uses {self.facts['differs']}, which ours does not: features are only similar")
        if self.facts.get("assumed"):
            found.append(self.facts["assumed"])
        return found


def describe(loaded: Loaded) -> list[str]:
    """Return lines for people: the backbone, its preprocessing, and the keys that are not part of it."""
    checkpoint, extracted = loaded.checkpoint, loaded.extracted
    preprocessing = _preprocessing(checkpoint)
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    origin = "as in the code of its project" if checkpoint.origin is Origin.FOREIGN else "as pre-trained"
    if checkpoint.preprocessing is None:
        origin = "assumed; on small images those of the data set are usual"
    lines = [
        f"{checkpoint.path}: {checkpoint.source}, {extracted.architecture} ({checkpoint.architecture.stem} stem) at "
        f"{loaded.found.place}, stored as {', '.join(extracted.dtypes)}",
        f"expects RGB in 0..1, mean {mean}, std {std} ({origin})" + (f"; {loaded.note}" if loaded.note else ""),
        *extracted.notes,
        *loaded.choice(),
    ]
    if extracted.counters:
        lines.append(f"{extracted.counters} num_batches_tracked are missing and become 0")
    if extracted.left_aside:
        lines.append(f"left aside: {_grouped(extracted.left_aside)}")
    return lines


def _preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Return the preprocessing of a checkpoint, or the default if it is unknown."""
    return checkpoint.preprocessing or Preprocessing.of(DataConfig())


def _grouped(keys: list[str]) -> str:
    """Join keys, grouped by their first names with counts: `module.encoder_k.* (161), optimizer`."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        wrapped = re.match(r"(?:(?:_orig_mod|module|model|backbone)\.)*[^.]+", key)
        groups.setdefault(wrapped[0] if wrapped else key, []).append(key)
    parts = [members[0] if len(members) == 1 else f"{name}.* ({len(members)})" for name, members in groups.items()]
    return ", ".join(parts[:12]) + (f", and {len(parts) - 12} more" if len(parts) > 12 else "")


def detectron2_values(checkpoint: Checkpoint, *, stride_in_1x1: bool = False) -> dict[str, Any]:
    """Return the settings of Detectron2 for a backbone, as the sections of its configuration.

    Args:
        stride_in_1x1: whether the stride of a bottleneck block is in its first 1x1 convolution.
    """
    pixels, state = _preprocessing(checkpoint), checkpoint.backbone
    last = "layer1.0.conv3.weight" if "layer1.0.conv3.weight" in state else "layer1.0.conv2.weight"
    return {
        "INPUT": {"FORMAT": "RGB"},
        "MODEL": {
            "PIXEL_MEAN": [round(255 * value, 3) for value in pixels.mean],
            "PIXEL_STD": [round(255 * value, 3) for value in pixels.std],
            "RESNETS": {
                "DEPTH": DEPTHS.get(checkpoint.architecture.name),
                "STRIDE_IN_1X1": stride_in_1x1,
                "WIDTH_PER_GROUP": len(state["layer1.0.conv2.weight"]),
                "STEM_OUT_CHANNELS": len(state["conv1.weight"]),
                "RES2_OUT_CHANNELS": len(state[last]),
            },
        },
    }


def detectron2_settings(loaded: Loaded) -> str:
    """Return the settings of Detectron2 for a converted backbone, in a line for people."""
    values = flat(detectron2_values(loaded.checkpoint, stride_in_1x1=loaded.bottleneck_stride))
    shown = (f"{key} {'none' if value is None else value}" for key, value in values.items())
    return f"in Detectron2 set {', '.join(shown)}"
