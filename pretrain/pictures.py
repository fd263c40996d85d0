"""The pictures in the folder of a run: the views of its first step, and its curves. Also those of `data show`."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from intl_bench.core import files
from intl_bench.core.seeding import permutation
from pretrain.images import crops, loader
from pretrain.images.data import normalization, open_source
from pretrain.images.views import augment, normalize
from pretrain.recipe import Recipe

_IMAGES = 8  # in the picture of the views
_SIDE = 96  # pixels of a view in the picture, at least
_GAP = 4
_EPOCHS = 2  # whose views are shown before a run
_POINTS = 1000  # of a curve
_COLORS = {"loss": "black"}


def draw_views(views: Sequence[torch.Tensor], mean: Sequence[float], std: Sequence[float]) -> bytes:
    """Draw the views of a few images as a PNG: an image in each column, a view in each row.

    Args:
        views: each (m, 3, S, S), normalized; the size may differ.
        mean, std: of the normalization, for pixels in 0..1.
    """
    columns = min(_IMAGES, len(views[0]))
    side = max(_SIDE, *(view.shape[-1] for view in views))
    picture = Image.new("RGB", [_GAP + number * (side + _GAP) for number in (columns, len(views))], "white")
    scale, shift = (torch.tensor(values)[:, None, None] for values in (std, mean))
    for row, view in enumerate(views):
        pixels = view[:columns].detach().float().cpu() * scale + shift
        for column, one in enumerate(pixels.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)):
            times = side // one.shape[0]  # small views are enlarged by a whole number, so that their pixels are seen
            tile = Image.fromarray(one.numpy().repeat(times, 0).repeat(times, 1))
            picture.paste(tile, (_GAP + column * (side + _GAP), _GAP + row * (side + _GAP)))
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def show_views(recipe: Recipe, path: Path) -> list[str]:
    """Write a picture of the first images of a run with their views in the first epochs, as `draw_views` does.

    Returns:
        What each row of the picture is.

    Raises:
        InputError: an image cannot be read, or the file cannot be written.
    """
    source, (mean, std) = open_source(recipe.data, "train"), normalization(recipe.data)
    indices = permutation(recipe.seed, "order", 0, len(source))[:_IMAGES]
    images = [source.image(index) for index in indices.tolist()]
    side = max(view.size for view in recipe.views)
    whole = torch.stack([crops.center(image, side, side) for image in images])
    views, rows = [normalize(whole.float() / 255, mean, std)], ["the images"]
    for epoch in range(_EPOCHS):
        drawn = zip(recipe.views, *loader.draw_views(recipe.views, recipe.seed, epoch, indices), strict=True)
        for number, (view, shapes, parameters) in enumerate(drawn, start=1):
            made = []
            for image, shape in zip(images, shapes, strict=True):
                (box,) = crops.fit_boxes(shape[None], *image.shape[:2]).tolist()
                made.append(crops.crop(image, box, view.size, view.interpolation))
            views.append(augment(torch.stack(made), torch.from_numpy(parameters), mean, std))
            rows.append(f"epoch {epoch + 1}, view {number}")
    files.write_bytes(path, draw_views(views, mean, std))
    return rows


def draw_curves(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw the numbers of a run over its epochs as a PNG: loss, scores, effective ranks, and learning rate and speed.

    Args:
        rows: the lines of `metrics.jsonl` with the field `epoch`.
        title: name of the run.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    panels = figure.subplots(2, 2, sharex=True)
    terms = [name for name in _names(rows) if name == "loss" or _is_term(name)]
    terms = ["loss"] if len(terms) == 2 else terms  # a single term is the loss
    _plot(panels[0, 0], rows, {name: name for name in terms}, "loss")
    scores = {"monitor/linear": "linear probe", "monitor/knn": "5-NN"}
    _plot(panels[0, 1], rows, scores, "accuracy on a subset (%)", missing="monitor.every=1 scores each epoch")
    ranks = {
        "monitor/rank": "features, eval mode",
        "monitor/embedding/rank": "embedding, eval mode",
        "embedding/rank": "embedding of a batch",
    }
    _plot(panels[1, 0], rows, ranks, "effective rank (RankMe)", missing="spectrum_every=100 measures it")
    _plot(panels[1, 1], rows, {"lr": "learning rate"}, "learning rate", legend=False)
    speed = panels[1, 1].twinx()
    _plot(speed, rows, {"img/s": "images per second"}, "images per second (gray)", legend=False, color="0.6")
    for axes in panels.flat:
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in (*rows[:1], *rows[-1:]) for name in row))


def _is_term(name: str) -> bool:
    return "/" not in name and name not in ("step", "epoch", "seconds", "lr", "gradient_norm", "data", "img/s")


def _plot(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    label: str,
    *,
    missing: str = "",
    legend: bool = True,
    color: str | None = None,
) -> None:
    """Draw the values of some names, each with its own points, because not every line has every value."""
    drawn = 0
    for name, text in names.items():
        points = [
            (row["epoch"], row[name])
            for row in rows
            if isinstance(row.get(name), int | float) and math.isfinite(row[name])
        ]
        if not points:
            continue
        x, y = np.array(points[:: -(-len(points) // _POINTS)], dtype=float).T
        axes.plot(
            x,
            y,
            label=text,
            linewidth=1.2,
            color=color or _COLORS.get(name),
            marker="o" if len(x) <= 25 else None,
            markersize=3,
        )
        drawn += 1
    axes.set_ylabel(label, fontsize=9)
    if drawn and legend:
        axes.legend(fontsize=8, frameon=False)
    elif not drawn and missing:
        axes.text(0.5, 0.5, f"not measured; {missing}", transform=axes.transAxes, ha="center", color="0.4", fontsize=8)
