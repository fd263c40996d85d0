"""`intl-bench data pack`: an image folder becomes a few large files, which `data.root` names in its place."""

import dataclasses
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from intl_bench.core.errors import InputError, Preempted, ResourceError
from intl_bench.core.progress import Progress
from intl_bench.core.signals import StopRequest
from pretrain.images import pack
from pretrain.images.data import FOLDERS, DataConfig, FolderSource, open_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One split on its way into a pack.

    Attributes:
        path: where the pack goes.
        source: the images of the split.
        size: their bytes together.
        complete: whether the pack is there already.
    """

    path: Path
    source: FolderSource
    size: int
    complete: bool

    def __str__(self) -> str:
        return (
            f"{self.path}: {len(self.source)} images of {len(self.source.class_names)} classes, "
            f"{self.size / 1e9:.3g} GB" + (", there already" if self.complete else "")
        )


def prepare(source: Path, out: Path) -> list[Part]:
    """What there is to pack in `source`: train/ and val/, or the one of them that it has.

    Raises:
        InputError: nothing to pack, or `out` holds a folder of images or a pack of other images.
    """
    if folder := next((out / name for name in FOLDERS.values() if (out / name).is_dir()), None):
        raise InputError(f"{folder}: a folder of images; choose another place for the packed ones")
    splits = [split for split, name in FOLDERS.items() if (source / name).is_dir()]
    return [_part(source, out / f"{FOLDERS[split]}.pack", split) for split in splits or ["train"]]


def _part(root: Path, path: Path, split: str) -> Part:
    source = open_source(DataConfig(root=str(root), name="packed"), split)  # any images may be packed
    if not isinstance(source, FolderSource):
        raise InputError(f"{root}: packed already; expected a folder with a folder of images for each class")
    sizes = source.sizes.tolist()
    complete = pack.index_of(path).exists()
    if complete:
        there = pack.Pack(path)
        wanted = {"name": source.files.tolist(), "label": source.labels.tolist(), "size": sizes}
        same = all(there.images[field].tolist() == values for field, values in wanted.items())
        if not same or there.class_names != source.class_names:
            raise InputError(f"{path}: holds other images than {source.place}; remove it, or choose another place")
    return Part(path=path, source=source, size=sum(sizes), complete=complete)


def write(parts: Sequence[Part]) -> None:
    """Writes the packs that are not complete; a pack has its name only when it is whole.

    Raises:
        InputError: an image file cannot be read, or a pack cannot be written.
        ResourceError: there is too little space.
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
    there = next(place for place in (folder, *folder.parents) if place.exists())
    needed, free = sum(part.size for part in parts), shutil.disk_usage(there).free
    if needed > free:
        raise ResourceError(f"cannot write {folder}: {needed / 1e9:.3g} GB needed, {free / 1e9:.3g} GB free")


def _contents(part: Part, stop: StopRequest) -> Iterator[bytes]:
    progress = Progress(len(part.source), label=part.path.name)
    for index in range(len(part.source)):
        if stop.received is not None:
            raise Preempted(
                f"stopped by {signal.Signals(stop.received).name} before {part.path} was whole: nothing of it is kept, "
                "and the same command starts it again",
                interrupted=stop.received == signal.SIGINT,
            )
        yield part.source.content(index)
        progress.step()
    progress.close()
