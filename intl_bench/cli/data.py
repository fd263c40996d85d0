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


def _find(root: str | None, overrides: Sequence[str]) -> "DataConfig | AnnotatedDataConfig":
    """Return the settings of the data set in `root`: its kind and its files by their usual places, and `overrides`.

    Args:
        overrides: settings of a run about its data, "data.KEY=VALUE".

    Raises:
        InputError: a setting is not one of data, or there is no such place.
    """
    from intl_bench.core import config as configs
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
    kind = asked.get("kind") or _find_kind(place, layouts.find_kind(place))
    values = {"kind": kind, "root": str(place)}
    if kind in ("coco", "voc"):
        values |= layouts.find_files(place, kind)
        return configs.build(AnnotatedDataConfig, values, "data", changes)
    return configs.build(DataConfig, values, "data", changes)


def _find_kind(place: Path, annotated: str | None) -> str:
    """Return the `data.kind` of a place; `annotated` is that of a detection data set, if it has the layout of one."""
    if place.is_file():
        return "npz"
    for kind, folder in (("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")):
        if (place / folder).is_dir():
            return kind
    return annotated or "imagefolder"


def _pack(args: argparse.Namespace) -> None:
    from pretrain.images import pack_command

    parts = pack_command.prepare(args.source, args.out)
    if not args.dry_run:
        pack_command.write(parts)
    print("\n".join(map(str, parts)))
