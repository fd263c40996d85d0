"""The model card of an exported backbone, as Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from intl_bench.commands import pretraining, scorings
from intl_bench.core import config as configs
from intl_bench.core import planned
from intl_bench.core.escapes import escape_markdown
from intl_bench.core.identity import digest
from intl_bench.export.libraries import SAFETENSORS, libraries, without
from intl_bench.protocol import pretraining_scale
from intl_bench.records import ResultRecord
from intl_bench.report.cost import joules_of
from pretrain.backbone import Backbone
from pretrain.checkpoint import Checkpoint, Preprocessing

_SCALES = {
    "paper": "a published recipe with all of its images, to its last epoch",
    "adapted": "a published recipe whose training differs from its source, as its header says",
    "reduced": "cut down or changed: do not compare it with published numbers",
    "demo": "generated images: a demonstration",
}
_UNKNOWN = "unknown"


def write_card(
    checkpoint: Checkpoint,
    pixels: Preprocessing,
    records: Sequence[ResultRecord],
    digests: Mapping[str, str],
    warnings: Sequence[str],
    *,
    license: str | None,
    version: str,
) -> str:
    """Return the card.

    Args:
        pixels: what the backbone expects.
        records: the results of these weights.
        digests: {file: SHA-256} of the other files of the export.
        warnings: how the network of the source differs, and what is assumed about it.
        license: of the weights; None if the owner did not name one.
        version: of intl-bench.
    """
    name, method = checkpoint.architecture.name, escape_markdown(checkpoint.method)
    sections = {
        "Load it": _loading(checkpoint),
        "Pixels": "\n\n".join([_pixels(checkpoint, pixels), *(f"Beware: {line}." for line in warnings)]),
        "Scores": _scores(records),
        "Pre-training": _pretraining(checkpoint),
        "Cost": _cost(checkpoint, records),
        "Repeat it": _commands(checkpoint, records),
        "Files": _files(digests),
        "License": _license(license),
    }
    front = ["---", *([f"license: {license}"] if license else []), "pipeline_tag: image-feature-extraction"]
    front += ["tags:", "- self-supervised-learning", "- intl-bench", "---"]
    data = f" on {escape_markdown(checkpoint.recipe.data.dataset)}" if checkpoint.recipe is not None else ""
    seed = "" if checkpoint.seed is None else f", seed {checkpoint.seed}"
    text = [*front, "", f"# {name}, pre-trained with {method}{data}{seed}", ""]
    text += [f"A ResNet without a classifier: RGB images in, {_width(checkpoint)} features out. Exported by {version}."]
    if checkpoint.unfinished:
        text += ["", f"**Its pre-training is not finished: {checkpoint.progress}.**"]
    for heading, content in sections.items():
        text += ["", f"## {heading}", "", content]
    return "\n".join(text) + "\n"


def _width(checkpoint: Checkpoint) -> int:
    with torch.device("meta"):
        return Backbone(checkpoint.architecture).num_features


def _loading(checkpoint: Checkpoint) -> str:
    """Return the lines for each library, which run in the folder of the export."""
    parts = ["The lines run in the folder of this card."]
    for library in libraries(checkpoint):
        code = f"{library.imports}\n\n" + "\n".join(library.lines)
        parts.append(f"**{library.name}**\n\n```python\n{code}\n```" + (f"\n\n{library.note}" if library.note else ""))
    if missing := without(checkpoint):
        parts.append(missing)
    return "\n\n".join(parts)


def _pixels(checkpoint: Checkpoint, pixels: Preprocessing) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (pixels.mean, pixels.std))
    text = f"RGB from 0 to 1, minus the mean ({mean}), divided by the standard deviation ({std}). Call `model.eval()`."
    if checkpoint.preprocessing is None:
        text += " The two are assumed: the file does not tell them."
    if checkpoint.recipe is not None:
        sizes = sorted({view.size for view in checkpoint.recipe.views}, reverse=True)
        text += f" It was trained on crops of {' and '.join(map(str, sizes))} pixels."
    return text


def _scores(records: Sequence[ResultRecord]) -> str:
    """Return a table of the results, and the protocol of each."""
    if not records:
        return "None was measured. `intl-bench linear` and the other tasks measure them; then export again."
    lines: list[list[object]] = []
    protocols: dict[str, str] = {}
    for record in records:
        measured = {key: value for key, value in record.protocol.items() if not key.startswith("pretrain_")}
        stated = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in measured.items())
        protocols[record.evaluation_sha256] = f"{escape_markdown(stated)}; evaluation `{record.evaluation_sha256[:12]}`"
        mark = f"[{list(protocols).index(record.evaluation_sha256) + 1}]"
        metrics = ", ".join(f"{escape_markdown(key)} {value:.2f}" for key, value in sorted(record.metrics.items()))
        task, dataset = escape_markdown(record.task), escape_markdown(record.dataset)
        lines.append([task, dataset, record.transfer_seed, metrics, record.scale, mark])
    notes = [f"{number}. {text}" for number, text in enumerate(protocols.values(), 1)]
    headings = ["task", "data", "seed", "scores, 0 to 100", "scale", "protocol"]
    grid = tabulate(lines, headers=headings, tablefmt="pipe", disable_numparse=True)
    return "\n".join([grid, "", "Protocols:", "", *notes, "", "The full records are in `records/`."])


def _pretraining(checkpoint: Checkpoint) -> str:
    details, recipe = checkpoint.details, checkpoint.recipe
    if recipe is None:
        epochs = _UNKNOWN if checkpoint.epoch is None else str(checkpoint.epoch)
        facts = {"checkpoint of another project": checkpoint.source, "epochs": epochs, "data, recipe, seed": _UNKNOWN}
    else:
        scale = pretraining_scale(checkpoint)
        most = "" if recipe.max_steps is None else f", at most {recipe.max_steps} steps,"
        facts = {
            "method": checkpoint.method,
            "data": f"{recipe.data.dataset}: {details.get('images', _UNKNOWN)} images, without their labels",
            "fingerprint of the images": checkpoint.inputs.data or _UNKNOWN,
            "recipe": f"{recipe.name}, in recipe.yaml",
            "seed": str(recipe.seed),
            "epochs": f"{recipe.epochs}{most} in batches of {recipe.batch_size}; {checkpoint.progress}",
            "initial weights": checkpoint.inputs.initial_weights or "random",
            "encoder": checkpoint.branch,
            "scale": f"{scale}: {_SCALES[scale]}",
        }
        if "classes" in details and recipe.method.get("name") == "supervised":
            facts["data"] = f"{recipe.data.dataset}: {details.get('images')} images of {details['classes']} classes"
    facts["identity of the pre-training"] = digest(checkpoint.pretraining())
    facts["SHA-256 of the weights"] = checkpoint.weights_sha256
    return "\n".join(f"- {key}: {escape_markdown(value)}" for key, value in facts.items())


def _cost(checkpoint: Checkpoint, records: Sequence[ResultRecord]) -> str:
    seconds, gpu = checkpoint.details.get("seconds"), checkpoint.details.get("gpu_seconds")
    took = f"{planned.duration(seconds)}, wall time of its steps" if seconds else _UNKNOWN
    hours = f", {gpu / 3600:.3g} GPU-hours" if gpu else ""
    lines = [f"- pre-training: {took}{hours}{_energy(checkpoint.details)}"]
    for record in records:
        gpus, cores = record.hardware.get("gpus") or [], record.hardware.get("cores")
        device = f"{len(gpus)} x {gpus[0]}" if gpus else f"{cores} cores of {record.hardware.get('cpu')}"
        what = f"{record.task}, seed {record.transfer_seed}"
        took = f"{planned.duration(record.wall_time_s)} on {escape_markdown(device)}"
        lines.append(f"- {what}: {took}{_energy(record.details)}")
    if not any("kWh" in line for line in lines):
        lines.append("- energy: not measured")
    return "\n".join(lines)


def _energy(details: Mapping[str, Any]) -> str:
    joules = joules_of(details)
    return "" if joules is None else f", {joules / 3.6e6:.3g} kWh of its GPUs"


def _commands(checkpoint: Checkpoint, records: Sequence[ResultRecord]) -> str:
    """Return the commands that repeat the pre-training and the scores, without places of this machine."""
    recipe = checkpoint.recipe
    lines, source, layout, note = [], SAFETENSORS, "auto", "The pre-training is not one of intl-bench. "
    if recipe is not None:
        data = _elsewhere(configs.to_dict(recipe.data), recipe.data.dataset)
        lines += pretraining(checkpoint.pretraining(), recipe.seed, recipe.name, data).splitlines()
        layout = "auto" if checkpoint.branch == "online" else f"intl-bench:{checkpoint.branch}"
        source, note = str(recipe.checkpoint), ""
    lines += scorings([_of_export(record, source, layout) for record in records])
    if not lines:
        return f"{note}The scores: `intl-bench TASK {SAFETENSORS} data.root=PATH`."
    text = "\n".join(f"    {line}" for line in lines)
    return f"{text}\n\n{note}PATH is the place of the images. The settings of each score are in its record."


def _of_export(record: ResultRecord, source: str, layout: str) -> ResultRecord:
    """Return a record as if the file `source` had been scored on images in another place."""
    config = {**record.config, "data": _elsewhere(record.config.get("data", {}), record.dataset)}
    if config.get("file_list"):
        config["file_list"] = Path(config["file_list"]).name
    return dataclasses.replace(
        record, details={**record.details, "checkpoint": source, "layout": layout}, config=config
    )


def _elsewhere(data: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Return the settings of images in another place, with the name that their folder gave them."""
    if data.get("kind") in (None, "shapes"):
        return dict(data)
    moved = {**data, "root": "PATH"}
    if moved["kind"] in ("imagefolder", "npz"):
        moved["name"] = dataset
    if moved.get("classes"):
        moved["classes"] = Path(moved["classes"]).name
    return moved


def _files(digests: Mapping[str, str]) -> str:
    lines = [[f"`{name}`", f"`{sha256}`"] for name, sha256 in digests.items()]
    grid = tabulate(lines, headers=["file", "SHA-256"], tablefmt="pipe", disable_numparse=True)
    return f"`sha256sum --check SHA256SUMS` compares them.\n\n{grid}"


def _license(license: str | None) -> str:
    stated = f"The weights: {license}." if license else "The owner of the weights has not named a license."
    return (
        f"{stated} The terms of the images that the backbone was trained on may limit its use. intl-bench itself: MIT."
    )
