"""`init=CHECKPOINT`: a new run that starts from existing weights, such as a finished run's, which it extends.

The weights are a part of the new run's identity (`Inputs.initial_weights`), so its results never count as those of a
run that starts at random.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from intl_bench.core import files
from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest
from pretrain import checkpoint
from pretrain.checkpoint import BRANCHES


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights to start from, a whole method's or a backbone's under its prefix.

    Attributes:
        sha256: their digest.
        extends: see `Inputs`.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    sha256: str
    extends: str | None = None


def read(path: Path, method: Any, seed: int) -> InitialWeights:
    """What a new method can start from in a checkpoint of `intl-bench pretrain` or a backbone's safetensors file.

    Args:
        method: takes all weights if they are such a method's, else the backbone alone.
        seed: of the new run.

    Raises:
        InputError: missing, damaged, or another kind of file.
    """
    prefix, extends = BRANCHES["online"], None
    if not path.is_file():
        raise InputError(f"init={path}: no such file")
    if path.suffix == ".safetensors":
        files.verify(path)
        try:
            weights = {f"{prefix}{name}": tensor for name, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise InputError(f"init={path}: not a readable safetensors file ({error})") from error
    else:
        try:
            state, sha256 = checkpoint.load(path)
            if "method" not in state:
                raise InputError(f"checkpoint {path}: not of `intl-bench pretrain` (it has no field `method`)")
        except InputError as error:
            raise InputError(
                f"init: {error}; anybody else's checkpoint is rewritten by `intl-bench convert CHECKPOINT "
                "OUT.safetensors --to safetensors`"
            ) from error
        weights, origin = state["method"], checkpoint.online(path, sha256, state)
        if origin.seed == seed:
            extends = digest(origin.pretraining())
    if _shapes(weights) != _shapes(method.state_dict()):
        weights = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return InitialWeights(path=path, weights=weights, sha256=checkpoint.weights_digest(weights), extends=extends)


def apply(initial: InitialWeights, method: Any) -> str:
    """Loads the weights into a new method; a momentum network starts as a copy of a backbone that comes alone.

    Returns:
        Which part was loaded, for the user.

    Raises:
        InputError: the backbone is of another architecture.
    """
    if _shapes(initial.weights) == _shapes(method.state_dict()):
        method.load_state_dict(initial.weights)
        return f"all weights from {initial.path}"
    prefix = BRANCHES["online"]
    backbone = {name.removeprefix(prefix): tensor for name, tensor in initial.weights.items()}
    target = getattr(method, "target", None)
    for network in [method.backbone] if target is None else [method.backbone, target[0]]:
        try:
            network.load_state_dict(backbone)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"init={initial.path}: its backbone is of another architecture: {reason}") from error
    return f"the backbone from {initial.path}; the rest starts at random"


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}
