"""Products of centered embeddings, samples by samples: all that channel whitening and its loss need to know of them.

With X_a the embedding of view a, each sample centered over its d features: the Gram matrices X_a X_a^T and the cross
products X_a X_0^T. An embedding (m, d) is far larger than its products (m, m), so none of its size is kept for the
gradient or held beside it: columns are centered a few at a time, and once more for the gradient.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from intl_bench.core.distributed import exchange, total, world_size

# Columns centered at a time: on a CPU they stay in its cache, on a GPU a product should be worth its launch.
_COLUMNS, _CPU_COLUMNS = 4096, 1024
# Rows of a Gram matrix computed at a time, up to the diagonal: the rest follows by symmetry. A GPU loses by it.
_CPU_ROWS = 64


def gram_products(views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """X_a X_a^T of all views, (views, m, m), and X_a X_0^T of all but the first, (views - 1, m, m).

    Over all processes, in float32 or better, with gradients as those of `core.distributed.stack`.

    Args:
        views: embeddings (m_local, d) of this process, of one shape everywhere.
    """
    if world_size() == 1:
        gram, cross = _Products.apply(True, *views)
        return gram, cross
    # Each process takes some columns of all samples instead of all columns of some: its share of the work, too.
    x = torch.stack(tuple(views))
    x = x if x.dtype == torch.float64 else x.float()
    columns = exchange(x - x.mean(dim=2, keepdim=True))
    products = total(torch.cat(_Products.apply(False, *columns)))
    return products[: len(views)], products[len(views) :]


class _Products(torch.autograd.Function):
    """Of embeddings, centered on the way, or of columns of centered ones."""

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
        # View a has the gradient (G + G^T) X_a + C_a X_0; view 0 gathers the C_a^T X_a of all. As the rows of X sum
        # to zero so do those of the gradient, and centring needs no gradient of its own. What the rounding of large
        # means left in X, harmless to the products, would show here.
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
    """Column slices of the embeddings and their centered values (views, m, columns), in one buffer used again."""
    m, d = views[0].shape
    width = min(_CPU_COLUMNS if means.device.type == "cpu" else _COLUMNS, d)
    buffer = means.new_empty(len(views), m, width)
    for start in range(0, d, width):
        columns = slice(start, min(start + width, d))
        x = buffer[:, :, : columns.stop - start]
        for z, mean, row in zip(views, means, x, strict=True):
            torch.sub(z[:, columns], mean, out=row)
        yield columns, x
