"""Memory of training steps on a CPU. A step allocates what the step before it has freed."""

import ctypes

# glibc's names: the free memory at the end of the heap that is returned, and the number of blocks outside the heap.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep freed memory in this process instead of returning large blocks to the system; for work on a CPU.

    The system clears every page that it provides. glibc requests activations of more than 32 MiB again each time, which
    takes 40% of a ResNet-50's forward pass at a batch of 32. Without glibc this function changes nothing.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_TRIM_THRESHOLD, -1)
        library.mallopt(_M_MMAP_MAX, 0)
