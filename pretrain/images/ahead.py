"""The next batch's host work, done by a thread while the device is given this one's."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """The same items in the same order, each made by another thread while the one before it is used.

    Args:
        device: which the items are for. Page-locked memory asks the thread's own GPU, which would be the first one.
    """
    own_gpu = functools.partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with ThreadPoolExecutor(max_workers=1, initializer=own_gpu) as thread:
        end = object()
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
