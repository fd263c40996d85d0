"""Schedules as pure functions of the position in the run (the authors' `main.py`)."""

import math


def warmup_cosine(step: int, *, total: int, warmup: int, base: float, final_ratio: float = 0.001) -> float:
    """Learning rate at `step` (0-based): linear warm-up to `base`, then cosine to `final_ratio` x `base`.

    As the authors count, step `warmup - 1` is the first at the full rate and the last step reaches the end exactly.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    q = 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup)))
    return base * q + base * final_ratio * (1 - q)


def cosine_momentum(progress: float, base: float) -> float:
    """Momentum of a moving average: from `base` at progress 0 along a cosine to 1 at progress 1 (BYOL, Section 3.2)."""
    return 1 - 0.5 * (1 + math.cos(math.pi * progress)) * (1 - base)
