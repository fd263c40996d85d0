"""Read arrays of an .npz archive, which somebody else wrote."""

import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from intl_bench.core import inputs
from intl_bench.core.errors import InputError, from_os_error


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read plain arrays. Arrays of objects are refused, because reading them runs code of the file.

    Raises:
        InputError: the file cannot be read, lacks an array, is damaged, or its arrays need more memory than this
            machine has.
    """
    wanted = list(dict.fromkeys(names))
    try:
        with inputs.open_file(path) as stream, zipfile.ZipFile(stream) as archive:
            missing = next((name for name in wanted if f"{name}.npy" not in archive.namelist()), None)
            if missing is not None:
                raise InputError(f"{path}: no array {missing!r}; expected {', '.join(wanted)}")
            needed = sum(_bytes_of(archive, name) for name in wanted)
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if needed > memory:
                raise InputError(
                    f"{path}: arrays of {needed} bytes; expected at most {memory}, the memory of this machine"
                )
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in wanted}
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise from_os_error(error, f"cannot read data.root={path}") from error
    except Exception as error:  # the readers of zip files and of arrays raise many kinds of errors for damaged bytes
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a complete .npz archive of plain arrays ({reason}); copy it again") from error


def _bytes_of(archive: zipfile.ZipFile, name: str) -> int:
    """Return the bytes of an array in memory, from its header."""
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
    return math.prod(shape) * kind.itemsize
