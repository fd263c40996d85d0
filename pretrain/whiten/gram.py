"""Gram matrices of centered embeddings: the only quantities that channel whitening and its loss need.

X_a is the embedding of view a, with each sample centered over its d features. The products are the Gram matrices
X_a X_a^T and the cross products X_a X_0^T. An embedding (m, d) is far larger than a product (m, m). To save memory, no
centered copy of an embedding is made: a few columns are centered at a time, and again in the backward pass.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from intl_bench.core.distributed import exchange, total, world_size

# Columns centered at a time. On a CPU they fit its cache; on a GPU each product needs enough work for a kernel launch.
_COLUMNS, _CPU_COLUMNS = 4096, 1024
# Rows of a Gram matrix computed at a time, up to the diagonal; symmetry gives the rest. On a GPU this is slower.
_CPU_ROWS = 64


def gram_products(views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute X_a X_a^T of all views, (views, m, m), and X_a X_0^T of all views but the first, (views - 1, m, m).

    The products are over the samples of all processes, in float32 or float64. The gradients follow the convention of
    `core.distributed.stack`.

    Args:
        views: embeddings (m_local, d) of this process; all views and processes have the same shape.
    """
    if world_size() == 1:
        gram, cross = _Products.apply(True, *views)
        return gram, cross
    # To divide the work, each process gets some columns of all samples instead of all columns of some samples.
    x = torch.stack(tuple(views))
    x = x if x.dtype == torch.float64 else x.float()
    columns = exchange(x - x.mean(dim=2, keepdim=True))
    products = total(torch.cat(_Products.apply(False, *columns)))
    return products[: len(views)], products[len(views) :]


class _Products(torch.autograd.Function):
    """Products of embeddings (centering=True), or of columns of centered embeddings (centering=False)."""

    @staticmethod
    def forward(ctx: Any, centering: bool, *views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.float64 if any(z.dtype == torch.float64 for z in views) else torch.float32
        m = len(views[0])
        means = views[0].new_zeros((len(views), m, 1), dtype=dtype)
        if centering:
            torch.stack([z.mean(dim=1, keepdim=True, dtype=dtype) for z in views], out=means)
        left = torch.zeros_like(means)
        rows = _CPU_ROWS if means.device.type == "cpu" else m
        gram = means.new_zeros(len(views), m, m)
        cross = means.new_zeros((len(views) - 1) * m, m)
        for _, x in _centered(views, means):
            if centering:
                left += x.sum(dim=2, keepdim=True)
            cross.addmm_(x[1:].flatten(0, 1), x[0].T)
            for end in range(rows, m + rows, rows):
                block = slice(end - rows, min(end, m))
                gram[:, block, : block.stop].baddbmm_(x[:, block], x[:, : block.stop].mT)
        ctx.save_for_backward(*views, means, left / views[0].shape[1])
        return gram.tril() + gram.tril(-1).mT, cross.view(-1, m, m)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (*views, means, left), (gram, cross) = ctx.saved_tensors, gradients
        # View a has the gradient (G + G^T) X_a + C_a X_0; view 0 also gets the sum of all C_a^T X_a. The rows of X sum
        # to zero, and so do the rows of the gradient; therefore centering needs no gradient of its own. Rounding of
        # large means leaves a remainder in X. It does not matter in the products but does here, and is subtracted.
        own = gram + gram.mT
        first = torch.cat([own[:1], cross.mT]).transpose(0, 1).flatten(1)
        needed = zip(views, ctx.needs_input_grad[1:], strict=True)
        outputs = [torch.empty_like(z) if need else None for z, need in needed]
        for columns, x in _centered(views, means):
            x -= left
            for a, output in enumerate(outputs):
                if output is None:
                    continue
                target = output[:, columns] if output.dtype == x.dtype else x.new_empty(x.shape[1:])
                if a == 0:
                    torch.mm(first, x.flatten(0, 1), out=target)
                else:
                    torch.mm(own[a], x[a], out=target).addmm_(cross[a - 1], x[0])
                if target.dtype != output.dtype:
                    output[:, columns] = target
        return None, *outputs


def _centered(views: Sequence[torch.Tensor], means: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of columns and their centered values (views, m, columns), in a buffer that is reused."""
    m, d = views[0].shape
    width = min(_CPU_COLUMNS if means.device.type == "cpu" else _COLUMNS, d)
    buffer = means.new_empty(len(views), m, width)
    for start in range(0, d, width):
        columns = slice(start, min(start + width, d))
        x = buffer[:, :, : columns.stop - start]
        for z, mean, row in zip(views, means, x, strict=True):
            torch.sub(z[:, columns], mean, out=row)
        yield columns, x
