"""Counter-based randomness: every draw is a function of (seed, purpose, counters) and of nothing else.

So the numbers do not depend on the worker count, the process count or on where a run was interrupted, and there is no
generator state to save. The generator is NumPy's Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), whose key is the seed and purpose and whose counter holds the position.
"""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator for one position of one stream.

    Args:
        seed: the run's seed, 0 <= seed < 2**63.
        purpose: names the stream ("views", "order", ...), so that two uses of one seed are independent.
        counters: at most three non-negative integers below 2**64, such as (epoch, sample index, view).
    """
    if seed < 0 or len(counters) > 3:
        raise ValueError(f"seed must be >= 0 and counters at most three, got seed={seed}, counters={counters}")
    # The lowest counter word is left to the generator itself, which counts its own draws there.
    words = [0, *counters, *(0 for _ in range(3 - len(counters)))]
    key = [seed, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(key=key, counter=words))


def permutation(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """The order of n samples in one epoch, shape (n,) int64."""
    return generator(seed, purpose, epoch).permutation(n)


def torch_seed(seed: int, purpose: str, *counters: int) -> int:
    """A seed for `torch.Generator.manual_seed`, below 2**63."""
    return int(generator(seed, purpose, *counters).integers(2**63))
