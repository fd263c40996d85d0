"""How work is divided among the processes of a run."""

import math

from intl_bench.core.errors import InputError


def require_even_batch(batch_size: int, processes: int) -> None:
    """Refuse a batch that does not divide into equal parts, one for each process.

    Raises:
        InputError: there is no process, or the batch size is not a multiple of their number.
    """
    if processes < 1:
        raise InputError(f"--processes {processes}: expected at least 1")
    if batch_size % processes:
        raise InputError(
            f"batch_size={batch_size}: cannot be divided evenly among {processes} processes; expected a multiple of "
            f"{processes}; change batch_size or the number of processes"
        )


def share_of(items: int, rank: int, processes: int) -> range:
    """Return the numbers of the items that process `rank` handles.

    The shares are consecutive and cover all items. All but the last ones have `largest_share` items.
    """
    size = largest_share(items, processes)
    return range(min(items, rank * size), min(items, (rank + 1) * size))


def largest_share(items: int, processes: int) -> int:
    """Return the number of items in the share of the first process, which no other share exceeds."""
    return math.ceil(items / processes)
