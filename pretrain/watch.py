"""Spectra while training: of the last batch's features, embedding and transformed output."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from intl_bench.core import distributed
from pretrain import spectrum


@contextlib.contextmanager
def first_output(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the block the list receives what `module` returns first: in a step, the features behind the embedding that
    a method keeps."""
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not outputs:
            outputs.append(output.detach())

    hook = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


def spectra(method: Any, features: torch.Tensor, step: int) -> dict[str, float]:
    """`spectrum.summary` of the batch of all processes, on the first; nothing on the others. Warns of a collapse."""
    parts = {"features": features, "embedding": method.embedding}
    matrices = {name: distributed.gather(part) for name, part in parts.items()}
    if not distributed.is_main_process():
        return {}
    if hasattr(method, "transform"):
        # Watching must not end a run: what cannot be transformed has no numbers.
        with contextlib.suppress(ValueError, torch.linalg.LinAlgError), torch.no_grad():
            matrices["transformed"] = method.transform(matrices["embedding"].float())
    values = spectrum.summary(matrices)
    sentence = spectrum.collapse(values)
    if sentence:
        print(f"warning: step {step}: {sentence}", file=sys.stderr)
    return values
