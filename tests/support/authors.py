"""Golden numbers of the authors' code (github.com/winci-ai/INTL), and the inputs they were computed from.

The numbers in golden/intl_authors.json were obtained by running the authors' modules on these inputs; none of their
code is here. Every input is uniform noise of a counter-based generator, rounded to float32, so that it is the same in
every PyTorch version and on every machine.
"""

import json

import places
import torch
from torch import nn

from intl_bench.core.seeding import generator

GOLDEN = json.loads((places.GOLDEN / "intl_authors.json").read_text(encoding="utf-8"))

# Embeddings: name -> axis, samples, features, views, momentum target, iterations
LOSSES = {
    "channel_2_views": ("channel", 32, 64, 2, False, 4),
    "channel_6_views_momentum": ("channel", 32, 64, 6, True, 4),
    "channel_2_views_7_iterations": ("channel", 32, 64, 2, False, 7),
    "batch_2_views": ("batch", 64, 16, 2, False, 4),
    "batch_6_views_momentum": ("batch", 64, 16, 6, True, 4),
    "batch_2_views_1_iteration": ("batch", 64, 16, 2, False, 1),
}
# The schedules' run: 7 epochs of 13 steps, 2 of them warm-up.
EPOCHS, STEPS_PER_EPOCH, WARMUP_EPOCHS, BASE_LR, BASE_MOMENTUM = 7, 13, 2, 0.4, 0.996
# The tiny trained network: steps, warm-up steps, learning rate, weight decay, base momentum of the target.
TINY_STEPS, TINY_WARMUP, TINY_LR, TINY_DECAY, TINY_MOMENTUM = 10, 2, 0.5, 0.01, 0.9


def noise(purpose: str, *shape: int) -> torch.Tensor:
    """Uniform numbers in [-1, 1), rounded to float32."""
    return torch.from_numpy(generator(0, purpose).random(shape) * 2 - 1).float()


def embeddings(purpose: str, views: int, m: int, d: int) -> list[torch.Tensor]:
    """Views of one batch, (m, d) float32: common part and noise, the features mixed, off center and of unequal size."""
    scale = 30 ** -torch.linspace(0, 1, d, dtype=torch.float64)
    mixing = noise(f"{purpose}/mixing", d, d).double() + torch.eye(d)
    common, offset = noise(f"{purpose}/common", m, d).double(), noise(f"{purpose}/offset", d)
    own = [noise(f"{purpose}/view{view}", m, d).double() for view in range(views)]
    # Rounded after everything else: the order of summation in the product cannot show.
    return [(((common + 0.5 * part) * scale) @ mixing + offset).float() for part in own]


@torch.no_grad()
def fill(module: nn.Module, purpose: str) -> nn.Module:
    """Sets every parameter and buffer to noise of the size that a trained network's would have."""
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
