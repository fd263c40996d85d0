"""Counter-based randomness: every draw is a function of (seed, purpose, counters) alone.

The numbers do not depend on the number of workers or processes, or on interruptions, and no generator state is saved.
The generator is Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Its key consists of the
seed and the purpose. Its counter holds the position. NumPy's generator serves one stream at a time, and a vectorized
one serves many samples at once.
"""

import functools
import zlib

import numpy as np

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_INCREMENTS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_WORD = np.uint64(0xFFFFFFFF)


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a generator for one position of one stream.

    Args:
        seed: the run's seed, 0 <= seed < 2**63.
        purpose: name of the stream ("views", "order", ...). Streams of one seed are independent.
        counters: at most three non-negative integers below 2**64, such as (epoch, sample index, view).
    """
    if seed < 0 or len(counters) > 3:
        raise ValueError(f"seed must be >= 0 and counters at most three, got seed={seed}, counters={counters}")
    # The generator counts its own draws in the lowest word.
    words = [0, *counters, *(0 for _ in range(3 - len(counters)))]
    key = [seed, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(key=key, counter=words))


def permutation(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """Return the order of n samples in one epoch, shape (n,) int64."""
    return generator(seed, purpose, epoch).permutation(n)


def torch_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return a seed for `torch.Generator.manual_seed`, below 2**63."""
    return int(generator(seed, purpose, *counters).integers(2**63))


def uniforms(seed: int, purpose: str, epoch: int, indices: np.ndarray, view: int, n: int) -> np.ndarray:
    """Draw numbers for many samples at once. Each row is a function of (seed, purpose, epoch, its index, view) alone.

    Args:
        indices: (m,) numbers of the samples. They, `epoch` and `view` are below 2**32.

    Returns:
        (m, n) float64, uniform in [0, 1), multiples of 2**-32. The first numbers of a row are the same for every n.
    """
    blocks = -(-n // 4)
    counters = np.empty((4, len(indices), blocks), np.uint64)
    counters[0], counters[1] = np.arange(blocks), np.reshape(indices, (-1, 1))
    counters[2], counters[3] = epoch, view
    words = philox(counters.reshape(4, -1), _key(seed, purpose))
    return np.ascontiguousarray(words.T).reshape(len(indices), -1)[:, :n] * 2.0**-32


@functools.lru_cache
def _key(seed: int, purpose: str) -> tuple[int, int]:
    first, second = generator(seed, purpose).integers(2**32, size=2).tolist()
    return first, second


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Compute Philox4x32-10: four random words (4, m) for each column of `counters` (4, m), all uint64 below 2**32."""
    even, odd = counters[0::2], counters[1::2]
    keys = np.array(key, np.uint64)[:, None]
    for _ in range(10):
        products = even * _MULTIPLIERS
        even, odd = (products[::-1] >> np.uint64(32)) ^ odd ^ keys, products[::-1] & _WORD
        keys = (keys + _INCREMENTS) & _WORD
    return np.stack([even[0], odd[0], even[1], odd[1]])
