"""Few-shot classification by class means (Snell et al., 2017), as in few_shot.py of Ericsson et al. (2021)."""

import numpy as np
import torch

from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator


def members(labels: np.ndarray, *, ways: int, shots: int, queries: int) -> list[np.ndarray]:
    """Return the indices of the images of each class that has enough of them for an episode; see `accuracy`.

    Raises:
        InputError: there are fewer such classes than `ways`.
    """
    needed = shots + queries
    found = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = sorted(map(len, found))
    found = [some for some in found if len(some) >= needed]
    if len(found) < ways:
        hints = [f"ways={len(found)}"] if len(found) > 1 else []
        if len(sizes) >= ways and sizes[-ways] > 1:  # the images of the class that decides
            hints += [
                f"queries={sizes[-ways] - shots}" if shots < sizes[-ways] else f"shots={sizes[-ways] - 1} queries=1"
            ]
        raise InputError(
            f"few-shot episodes: classes with {needed} images (shots={shots} + queries={queries}): {len(found)}; "
            f"expected at least {ways} (ways=); set {', or '.join([*hints, 'episodes=0 to leave the episodes out'])}"
        )
    return found


def accuracy(
    features: torch.Tensor, labels: np.ndarray, *, episodes: int, ways: int, shots: int, queries: int, seed: int
) -> tuple[float, float]:
    """Classify the queries of random episodes by the nearest mean of the known images, in Euclidean distance.

    Args:
        features: (n, F).
        labels: (n,) int64.
        episodes: number of episodes.
        ways: classes of an episode, drawn from those with enough images.
        shots, queries: known images and queries of each class, drawn without repetition.
        seed: of the draws.

    Returns:
        the mean accuracy of the episodes in percent, and the half width of its 95% interval, 1.96 standard errors.

    Raises:
        InputError: too few classes have enough images.
    """
    found = members(labels, ways=ways, shots=shots, queries=queries)
    right = np.empty(episodes)
    truth = torch.arange(ways).repeat_interleave(queries)
    for episode in range(episodes):
        random = generator(seed, "episodes", episode)
        chosen = random.choice(len(found), ways, replace=False)
        rows = np.stack([random.choice(found[label], shots + queries, replace=False) for label in chosen])
        images = features[torch.from_numpy(rows)]  # (ways, needed, F)
        means, asked = images[:, :shots].mean(dim=1), images[:, shots:].flatten(0, 1)
        # |x|^2 is the same for all means of a query
        distances = means.square().sum(dim=1) - 2 * asked @ means.T
        right[episode] = 100 * float((distances.argmin(dim=1) == truth).double().mean())
    return float(right.mean()), float(1.96 * right.std() / episodes**0.5)
