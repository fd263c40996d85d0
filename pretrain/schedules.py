"""Schedules as pure functions of the position in a run (the authors' `main.py`)."""

import math


def warmup_cosine(step: int, *, total: int, warmup: int, base: float, final_ratio: float = 0.001) -> float:
    """Return the learning rate at `step`: linear warm-up to `base`, then a cosine to `final_ratio` x `base`.

    As in the authors' code, step `warmup - 1` is the first step with rate `base`, and the last step has exactly the
    final rate.

    Args:
        step: number of the step, from 0.
        total: number of steps of the run.
        warmup: number of warm-up steps.
        base: learning rate after the warm-up.
        final_ratio: final learning rate relative to `base`.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    q = 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup)))
    return base * q + base * final_ratio * (1 - q)


def cosine_momentum(progress: float, base: float) -> float:
    """Return the momentum of a moving average: a cosine from `base` at progress 0 to 1 at progress 1.

    Source: BYOL, Section 3.2.
    """
    return 1 - 0.5 * (1 + math.cos(math.pi * progress)) * (1 - base)
