"""`intl-bench data pack`: pack an image folder into a few large files, which `data.root` can name instead."""

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from intl_bench.core import machine, planned
from intl_bench.core.errors import InputError, Preempted, ResourceError
from intl_bench.core.progress import Progress
from intl_bench.core.signals import StopRequest, exit_code
from pretrain.images import pack
from pretrain.images.data import FOLDERS, DataConfig, FolderSource, open_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One split and its pack.

    Attributes:
        path: path of the pack.
        source: the images of the split.
        size: bytes of all image files.
        complete: whether the pack exists already.
    """

    path: Path
    source: FolderSource
    size: int
    complete: bool

    def __str__(self) -> str:
        return (
            f"{self.path}: {len(self.source)} images of {len(self.source.class_names)} classes, "
            f"{planned.size(self.size)}" + (", exists already" if self.complete else "")
        )


def prepare(source: Path, out: Path) -> list[Part]:
    """List the splits to pack of the folder `source`: train/ and val/, or the only one that exists.

    Args:
        source: the image folder.
        out: the folder of the packs.

    Raises:
        InputError: there is nothing to pack, or `out` contains an image folder or a pack of other images.
    """
    if folder := next((out / name for name in FOLDERS.values() if (out / name).is_dir()), None):
        raise InputError(f"{folder}: a folder of images; choose another folder for the packs")
    splits = [split for split, name in FOLDERS.items() if (source / name).is_dir()]
    return [_part(source, out / f"{FOLDERS[split]}.pack", split) for split in splits or ["train"]]


def _part(root: Path, path: Path, split: str) -> Part:
    source = open_source(DataConfig(root=str(root), name="packed"), split)  # the name "packed" accepts any images
    if not isinstance(source, FolderSource):
        raise InputError(f"{root}: packed already; expected one folder of images per class")
    sizes = source.sizes.tolist()
    complete = pack.index_of(path).exists()
    if complete:
        existing = pack.Pack(path)
        wanted = {"name": source.files.tolist(), "label": source.labels.tolist(), "size": sizes}
        same = all(existing.images[field].tolist() == values for field, values in wanted.items())
        if not same or existing.class_names != source.class_names:
            raise InputError(f"{path}: contains other images than {source.place}; remove it, or choose another folder")
    return Part(path=path, source=source, size=sum(sizes), complete=complete)


def write(parts: Sequence[Part]) -> None:
    """Write the packs that are not complete; a pack gets its name when it is complete.

    Raises:
        InputError: an image file cannot be read, or a pack cannot be written.
        ResourceError: the free disk space is too small.
        Preempted: a signal asked to stop.
    """
    missing = [part for part in parts if not part.complete]
    if missing:
        _check_space(missing)
    with StopRequest() as stop:
        for part in missing:
            images = part.source
            pack.write(part.path, _contents(part, stop), images.files, images.labels, images.class_names)


def _check_space(parts: Sequence[Part]) -> None:
    folder = parts[0].path.absolute().parent
    needed, free = sum(part.size for part in parts), machine.free_bytes(folder)
    if needed > free:
        raise ResourceError(f"cannot write {folder}: {planned.size(needed)} needed, {planned.size(free)} free")


def _contents(part: Part, stop: StopRequest) -> Iterator[bytes]:
    progress = Progress(len(part.source), label=part.path.name)
    for index in range(len(part.source)):
        if stop.received is not None:
            raise Preempted(
                f"stopped by {signal.Signals(stop.received).name} before {part.path} was complete: it was removed; "
                "run the same command again",
                exit_code(stop.received),
            )
        yield part.source.content(index)
        progress.step()
    progress.close()
