"""`init=CHECKPOINT`: a new run that starts from existing weights, such as a finished run's, which it extends.

The weights are a part of the new run's identity (`Inputs.initial_weights`), so its results never count as those of a
run that starts at random.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from intl_bench.core import files
from intl_bench.core.errors import InputError
from pretrain import checkpoint
from pretrain.checkpoint import BRANCHES


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights to start from: a whole method's, or a backbone's under its prefix; `sha256` is their digest."""

    path: Path
    weights: dict[str, torch.Tensor]
    sha256: str


def read(path: Path) -> InitialWeights:
    """The weights in a checkpoint of `intl-bench pretrain`, or in a backbone's safetensors file.

    Raises:
        InputError: missing, damaged, or another kind of file.
    """
    if not path.is_file():
        raise InputError(f"init={path}: no such file")
    if path.suffix == ".safetensors":
        files.verify(path)
        try:
            weights = {f"{BRANCHES['online']}{name}": tensor for name, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise InputError(f"init={path}: not a readable safetensors file ({error})") from error
    else:
        try:
            state, _ = checkpoint.load(path)
            if "method" not in state:
                raise InputError(f"checkpoint {path}: not of `intl-bench pretrain` (it has no field `method`)")
            weights = state["method"]
        except InputError as error:
            raise InputError(
                f"init: {error}; anybody else's checkpoint is rewritten by `intl-bench convert CHECKPOINT "
                "OUT.safetensors --to safetensors`"
            ) from error
    return InitialWeights(path=path, weights=weights, sha256=checkpoint.weights_digest(weights))


def apply(initial: InitialWeights, method: Any) -> str:
    """Loads the weights into a new method: all of them if they are such a method's, else the backbone alone.

    A momentum network starts as a copy of the backbone, as in a run that starts at random.

    Returns:
        Which part was loaded, for the user.

    Raises:
        InputError: the backbone is of another architecture.
    """
    own = {name: tensor.shape for name, tensor in method.state_dict().items()}
    if {name: tensor.shape for name, tensor in initial.weights.items()} == own:
        method.load_state_dict(initial.weights)
        return f"all weights from {initial.path}"
    prefix = BRANCHES["online"]
    backbone = {
        name.removeprefix(prefix): tensor for name, tensor in initial.weights.items() if name.startswith(prefix)
    }
    target = getattr(method, "target", None)
    for network in [method.backbone] if target is None else [method.backbone, target[0]]:
        try:
            network.load_state_dict(backbone)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"init={initial.path}: its backbone is of another architecture: {reason}") from error
    return f"the backbone from {initial.path}; the rest starts at random"
