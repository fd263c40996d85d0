"""`intl-bench convert`."""

import argparse
from pathlib import Path
from typing import Any

from intl_bench.cli.common import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(commands, "convert", "rewrite a ResNet checkpoint of any project, every tensor checked", _run)
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    command.add_argument("out", type=Path, metavar="OUT")
    command.add_argument("--to", required=True, choices=("detectron2", "torchvision", "timm", "safetensors"))
    command.add_argument("--from", dest="layout", default="auto", help="its layout (default: found by its keys)")
    command.add_argument("--dry-run", action="store_true", help="say what would be read and written; write nothing")


def _run(args: argparse.Namespace) -> None:
    from transfer import convert

    if args.dry_run:
        print("\n".join(convert.plan(args.checkpoint, args.out, args.to, args.layout)))
        return
    print("\n".join(convert.convert(args.checkpoint, args.out, to=args.to, source=args.layout).lines))
