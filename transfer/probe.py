"""A linear classifier on frozen features that fit in memory (`eval_sgd` in the authors' cifar/eval/evaluate.py)."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from intl_bench.core.copies import send
from intl_bench.core.errors import DivergedError
from intl_bench.core.seeding import permutation, torch_seed
from transfer.scores import correct, percentages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """A trained classifier.

    Attributes:
        classifier: the classifier after the last epoch.
        history: the test scores after each epoch, or after `stop_epoch` alone: `top1` and, with more than five
            classes, `top5`.
    """

    classifier: nn.Linear
    history: list[dict[str, float]]


@torch.no_grad()
def train_probe(
    features: torch.Tensor,
    labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    classes: int,
    seed: int,
    epochs: int = 500,
    batch_size: int = 1000,
    lr: float = 1e-2,
    final_lr: float = 1e-6,
    weight_decay: float = 5e-6,
    stop_epoch: int | None = None,
    device: torch.device | str = "cpu",
) -> Probe:
    """Train a linear classifier with Adam on the cross-entropy.

    The learning rate falls exponentially from `lr` to `final_lr`; it changes once per epoch. Features that do not fill
    a batch at the end of an epoch are skipped in that epoch.

    Args:
        features: (n, F).
        labels: (n,) int64, from 0 to `classes` - 1.
        test_features: (m, F), scored after every epoch.
        test_labels: (m,) int64.
        classes: number of classes.
        seed: decides the initial weights (PyTorch's default for `nn.Linear`) and the order of the features.
        batch_size: at most n is used.
        stop_epoch: end after this epoch of the schedule and score the test features once. None trains all epochs and
            scores after each.

    Raises:
        DivergedError: the weights are not finite after the last epoch.
    """
    features, labels, test_features, test_labels = (
        tensor.to(device) for tensor in (features, labels, test_features, test_labels)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "probe init"))
        classifier = nn.Linear(features.shape[1], classes, dtype=features.dtype).to(device)
    weight, bias = classifier.weight, classifier.bias
    weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    batch_size = min(batch_size, len(features))
    rows = torch.arange(batch_size, device=features.device)
    one = features.new_full((1, batch_size), 1.0)
    counts = []
    for epoch in range(stop_epoch or epochs):
        optimizer.param_groups[0]["lr"] = lr * (final_lr / lr) ** (epoch / epochs)
        order = send(torch.from_numpy(permutation(seed, "probe", epoch, len(features))), features.device)
        whole = order[: len(order) // batch_size * batch_size]
        for chosen, targets in zip(whole.split(batch_size), labels[whole].split(batch_size), strict=True):
            # Bags of one row: the result equals `features[chosen]`, but this function prefetches the rows on a CPU.
            batch = functional.embedding_bag(chosen, features, rows, mode="sum")
            # The gradient, softmax minus one-hot, is computed without autograd, and the classes are the first axis. For
            # ten classes, autograd and a softmax along the short axis would take as long as the matrix products.
            error = torch.addmm(bias[:, None], weight, batch.T).softmax(0)
            error.scatter_add_(0, targets[None], -one).div_(batch_size)
            torch.mm(error, batch, out=weight.grad)
            torch.sum(error, 1, out=bias.grad)
            optimizer.step()
        if stop_epoch in (None, epoch + 1):
            counts.append(correct(classifier(test_features), test_labels))
    if not torch.isfinite(weight.sum() + bias.sum()):
        raise DivergedError(f"the weights of the classifier are not finite after {epochs} epochs; lower lr={lr}")
    # The scores are read here and not after each epoch, because each read waits for the GPU.
    history = [percentages(count, len(test_labels), classes) for count in torch.stack(counts).tolist()]
    return Probe(classifier=classifier, history=history)
