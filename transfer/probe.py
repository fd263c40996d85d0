"""A linear classifier on frozen features that fit in memory (the authors' `eval_sgd` of cifar/eval/evaluate.py)."""

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
    """The classifier after the last epoch, and the test scores of every epoch (`top1`, `top5`)."""

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
    device: torch.device | str = "cpu",
) -> Probe:
    """Adam on the cross-entropy; the learning rate falls exponentially from `lr` to `final_lr`, once an epoch.

    A batch holds at most all features; what an epoch has beyond whole batches waits for the next one.

    Args:
        features: (n, F), `labels` (n,) int64 below `classes`.
        test_features: (m, F), `test_labels` (m,); scored after every epoch.
        seed: of the initial weights (PyTorch's default for `nn.Linear`) and of the order.

    Raises:
        DivergedError: the weights are no longer finite.
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
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * (final_lr / lr) ** (epoch / epochs)
        order = send(torch.from_numpy(permutation(seed, "probe", epoch, len(features))), features.device)
        whole = order[: len(order) // batch_size * batch_size]
        for chosen, wanted in zip(whole.split(batch_size), labels[whole].split(batch_size), strict=True):
            # Sums of one row each: the same as `features[chosen]`, but a CPU reads ahead.
            batch = functional.embedding_bag(chosen, features, rows, mode="sum")
            # The gradient by hand, softmax minus one-hot, and classes first: for ten classes autograd's bookkeeping and
            # a softmax along the short side would take as long as the matrix products.
            error = torch.addmm(bias[:, None], weight, batch.T).softmax(0)
            error.scatter_add_(0, wanted[None], -one).div_(batch_size)
            torch.mm(error, batch, out=weight.grad)
            torch.sum(error, 1, out=bias.grad)
            optimizer.step()
        counts.append(correct(classifier(test_features), test_labels))
    if not torch.isfinite(weight).all():
        raise DivergedError(f"the classifier's weights are not finite after {epochs} epochs; lower lr={lr}")
    # Read only now: after every epoch a GPU would have to be waited for.
    history = [percentages(count, len(test_labels), classes) for count in torch.stack(counts).tolist()]
    return Probe(classifier=classifier, history=history)
