"""Prepare the next batch in a thread while the main thread gives work to the device."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yield `items` in order; a thread computes each item while the caller uses the previous one.

    Args:
        device: the device that uses the items. Page-locked memory is allocated for the current GPU of the thread, which
            would otherwise be the first GPU.
    """
    select_gpu = functools.partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with ThreadPoolExecutor(max_workers=1, initializer=select_gpu) as thread:
        end = object()
        upcoming = thread.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
