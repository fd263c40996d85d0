"""A process that appends records, and file systems that lack something; for the tests of records."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any, NoReturn

from table_cases import make

from intl_bench.records import RecordStore


def append(folder: str, acknowledged: str, first: int, count: int, shared: int) -> None:
    """Append `count` records with the seeds from `first` on, each followed by one that all writers append.

    Args:
        acknowledged: a file that gets the seed of each record after it was stored.
        shared: number of records of all writers, with the seeds from 0 on.
    """
    store = RecordStore(Path(folder))
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    done = {int(line) for line in Path(acknowledged).read_text().split()}
    for number in range(first, first + count):
        for seed in (number, number % shared):
            if seed not in done:
                store.append(make("knn", "shapes", {"knn5": seed % 100}, {"k": 5}, transfer_seed=seed))
                os.write(log, f"{seed}\n".encode())


def without(what: str, error: str) -> None:
    """Let a function of the system fail for all files, as on a file system that does not have it.

    Args:
        what: "link" or "flock".
        error: the name of its error.
    """
    number = getattr(errno, error)

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    setattr({"link": os, "flock": fcntl}[what], what, fail)
