"""`intl-bench data`."""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intl_bench.cli.common import add_command, split_words
from intl_bench.core.errors import InputError

if TYPE_CHECKING:
    from pretrain.images.data import DataConfig
    from transfer.detection.config import AnnotatedDataConfig

_MOST_COLUMNS = 100
_SHOWN = Path("runs") / "show"
_SHOWN_IMAGES = 4  # of a split of a detection data set


def add(commands: Any) -> None:
    """Add the parsers of the command and of its steps."""
    data = commands.add_parser(
        "data", help="check, show and pack data sets", description="Check, show and pack data sets.", allow_abbrev=False
    )
    steps = data.add_subparsers(dest="step", required=True, metavar="COMMAND")
    check = add_command(steps, "check", "find everything that is wrong with a data set, with counts", _check)
    check.add_argument(
        "words",
        nargs="*",
        metavar="ROOT | key=value",
        help="an image folder, packs, arrays (.npz), files of CIFAR, COCO's or VOC's layout; and settings as for the "
        "run, such as data.classes=list.txt or data.train=annotations/train.json",
    )
    check.add_argument("--all", action="store_true", help="name every file and class, not only the first")
    show = add_command(steps, "show", "a picture of what a run sees: augmented views, or boxes and masks", _show)
    show.add_argument(
        "words",
        nargs="*",
        metavar="ROOT | key=value",
        help="as for check; seed=N for other images and views; for labeled images also other settings of the recipe, "
        "such as size=64",
    )
    show.add_argument("--recipe", default="imagenet_r50_intl", help="whose views (default: imagenet_r50_intl)")
    show.add_argument("--out", type=Path, metavar="FILE", help="a PNG (default: runs/show/NAME.png)")
    pack = add_command(
        steps, "pack", "an image folder as a few large files, read in its place with data.root=OUT", _pack
    )
    pack.add_argument("source", type=Path, metavar="SOURCE", help="holds train/CLASS/* and val/CLASS/*, or one of them")
    pack.add_argument("out", type=Path, metavar="OUT", help="gets train.pack and val.pack; complete ones are kept")
    pack.add_argument("--dry-run", action="store_true", help="print what would be packed and write nothing")


def _check(args: argparse.Namespace) -> None:
    from pretrain.images import check as images
    from transfer.detection.annotations import check as annotations
    from transfer.detection.config import AnnotatedDataConfig

    root, overrides = split_words(args.words, "ROOT")
    config = _find(root, overrides)
    report = annotations.check(config) if isinstance(config, AnnotatedDataConfig) else images.check(config)
    columns = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
    print(report.format(width=columns, everything=args.all))
    if report.stops:
        kinds = "1 kind of fault" if report.stops == 1 else f"{report.stops} kinds of faults"
        raise InputError(f"{config.root}: {kinds} would stop a run; what they are is printed above")


def _show(args: argparse.Namespace) -> None:
    from transfer.detection.config import AnnotatedDataConfig

    root, overrides = split_words(args.words, "ROOT")
    if root is None and not any(word.startswith("data.root=") for word in overrides):
        _show_views(args, overrides)
        return
    config = _find(root, [word for word in overrides if word.startswith("data.")])
    if isinstance(config, AnnotatedDataConfig):
        if others := [word for word in overrides if not word.startswith(("data.", "seed="))]:
            raise InputError(f"{others[0]}: expected a setting of the data, because {config.root} has annotations")
        _show_objects(args, config, [word for word in overrides if word.startswith("seed=")])
    else:
        place = {"kind": config.kind, "root": config.root, "name": config.dataset}  # not the name in the recipe
        _show_views(args, [*(f"data.{key}={value}" for key, value in place.items()), *overrides])


def _show_views(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from pretrain import pictures
    from pretrain.recipe import load_recipe

    recipe = load_recipe(args.recipe, overrides)
    path = args.out or _SHOWN / f"{recipe.data.dataset}.png"
    rows = pictures.show_views(recipe, path)
    print(f"picture: {path}; from the top: {'; '.join(rows)}")


def _show_objects(args: argparse.Namespace, config: "AnnotatedDataConfig", overrides: Sequence[str]) -> None:
    import numpy as np

    from intl_bench.core.seeding import permutation
    from pretrain.recipe import load_recipe
    from transfer.detection.annotations.split import read_split
    from transfer.detection.evaluation.visualize import draw_objects

    seed, parts = load_recipe(args.recipe, overrides).seed, {}
    for name, split in (("train", "train"), ("val", "test")):
        found = read_split(config, split, masks=None)
        with_objects = np.flatnonzero(found.last > found.first)
        order = permutation(seed, "show", 0, len(with_objects))[:_SHOWN_IMAGES]
        parts[name] = found, with_objects[order].tolist()
    path = args.out or _SHOWN / f"{config.dataset}.png"
    draw_objects(parts, path)
    drawn = ", ".join(f"{len(indices)} of {len(found)} {name}" for name, (found, indices) in parts.items())
    print(f"picture: {path}; images with their objects: {drawn}")


def _find(root: str | None, overrides: Sequence[str]) -> "DataConfig | AnnotatedDataConfig":
    """Return the settings of the data set in `root`: its kind and its files by their usual places, and `overrides`.

    Args:
        overrides: settings of a run about its data, "data.KEY=VALUE".

    Raises:
        InputError: a setting is not one of data, or there is no such place.
    """
    from intl_bench.core import config as configs
    from intl_bench.core import data_folders
    from pretrain.images.data import DataConfig
    from transfer.detection.annotations import layouts
    from transfer.detection.config import AnnotatedDataConfig

    if wrong := [word for word in overrides if not word.startswith("data.")]:
        raise InputError(f"{wrong[0]}: expected a setting of the data, such as data.classes=list.txt")
    changes = [word.removeprefix("data.") for word in overrides]
    asked = dict(change.partition("=")[::2] for change in changes)
    if not (root := asked.get("root") or root):
        raise InputError("no data set is named; expected its folder or file, as in intl-bench data check FOLDER")
    place = Path(os.path.expanduser(root))
    if not place.exists():
        raise InputError(f"{place}: no such file or folder; expected a data set")
    kind = asked.get("kind") or data_folders.kind_of(place) or "imagefolder"
    values = {"kind": kind, "root": str(place)}
    if kind in ("coco", "voc"):
        values |= layouts.find_files(place, kind)
        return configs.build(AnnotatedDataConfig, values, "data", changes)
    return configs.build(DataConfig, values, "data", changes)


def _pack(args: argparse.Namespace) -> None:
    from pretrain.images import pack_command

    parts = pack_command.prepare(args.source, args.out)
    if not args.dry_run:
        pack_command.write(parts)
    print("\n".join(map(str, parts)))
