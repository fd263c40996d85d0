"""Golden numbers of the authors' code (github.com/winci-ai/INTL), and the inputs from which they were computed.

The numbers in golden/intl_authors.json are results of the authors' modules on these inputs. This file contains no code
of the authors. Every input is uniform noise of a counter-based generator, rounded to float32, so it is equal in every
version of PyTorch and on every machine.
"""

import json

import places
import torch
from torch import nn

from intl_bench.core.seeding import generator

GOLDEN = json.loads((places.GOLDEN / "intl_authors.json").read_text(encoding="utf-8"))

# Cases of the loss by name: axis, samples, features, views, momentum target, iterations.
LOSSES = {
    "channel_2_views": ("channel", 32, 64, 2, False, 4),
    "channel_6_views_momentum": ("channel", 32, 64, 6, True, 4),
    "channel_2_views_7_iterations": ("channel", 32, 64, 2, False, 7),
    "batch_2_views": ("batch", 64, 16, 2, False, 4),
    "batch_6_views_momentum": ("batch", 64, 16, 6, True, 4),
    "batch_2_views_1_iteration": ("batch", 64, 16, 2, False, 1),
}
# The run of the schedules: 7 epochs of 13 steps, with 2 epochs of warm-up.
EPOCHS, STEPS_PER_EPOCH, WARMUP_EPOCHS, BASE_LR, BASE_MOMENTUM = 7, 13, 2, 0.4, 0.996
# The tiny trained network: steps, warm-up steps, learning rate, weight decay, base momentum.
TINY_STEPS, TINY_WARMUP, TINY_LR, TINY_DECAY, TINY_MOMENTUM = 10, 2, 0.5, 0.01, 0.9


def noise(purpose: str, *shape: int) -> torch.Tensor:
    """Return uniform random numbers in [-1, 1), rounded to float32."""
    return torch.from_numpy(generator(0, purpose).random(shape) * 2 - 1).float()


def embeddings(purpose: str, views: int, m: int, d: int) -> list[torch.Tensor]:
    """Return embeddings of the views of one batch, (m, d) float32 each.

    They have a common part and noise. The features are correlated, not centered, and have different scales.
    """
    scale = 30 ** -torch.linspace(0, 1, d, dtype=torch.float64)
    mixing = noise(f"{purpose}/mixing", d, d).double() + torch.eye(d)
    common, offset = noise(f"{purpose}/common", m, d).double(), noise(f"{purpose}/offset", d)
    own = [noise(f"{purpose}/view{view}", m, d).double() for view in range(views)]
    # Rounding is last, so the order of summation in the product has no effect.
    return [(((common + 0.5 * part) * scale) @ mixing + offset).float() for part in own]


@torch.no_grad()
def fill(module: nn.Module, purpose: str) -> nn.Module:
    """Set every parameter and buffer to noise with the scale of a trained network; return the module."""
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
            continue
        values = noise(f"{purpose}/{name}", *tensor.shape)
        if tensor.ndim > 1:
            values *= (6 / tensor[0].numel()) ** 0.5
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            values = 1 + 0.2 * values
        else:
            values *= 0.1
        tensor.copy_(values)
    return module
