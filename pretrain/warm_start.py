"""`init=CHECKPOINT`: a new run that starts from existing weights, for example to extend a finished run.

The weights are a part of the identity of the new run (`Inputs.initial_weights`), so its results are never mixed with
those of a run with a random start.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from intl_bench.core import files
from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest
from intl_bench.core.inputs import shorten
from intl_bench.core.run_folders import checkpoint_in
from pretrain import checkpoint, states
from pretrain.checkpoint import BRANCHES
from pretrain.methods import Method
from pretrain.recipe import Recipe

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights to start from: those of a whole method, or of a backbone with its prefix in `BRANCHES`.

    Attributes:
        path: the file.
        weights: the tensors by name.
        sha256: `pretrain.checkpoint.weights_digest` of the weights.
        extends: see `pretrain.recipe.Inputs`.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    sha256: str
    extends: str | None = None


def read(path: Path, method: Method, seed: int) -> InitialWeights:
    """Read initial weights from a checkpoint of `intl-bench pretrain` or from a safetensors file of a backbone.

    Args:
        path: the file.
        method: the new method. If all weights fit it, all are returned; otherwise only those of the backbone.
        seed: seed of the new run.

    Raises:
        InputError: the file is missing, is damaged, or is of another kind.
    """
    prefix, extends = BRANCHES["online"], None
    if not path.is_file():
        raise InputError(f"init={path}: no such file; name a checkpoint or a safetensors file of a backbone")
    if path.suffix == ".safetensors":
        files.verify(path)
        try:
            weights = {f"{prefix}{name}": tensor for name, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise InputError(f"init={path}: not a readable safetensors file ({error})") from error
        for name, tensor in weights.items():
            if name.endswith("num_batches_tracked"):
                continue
            if tensor.dtype not in _DTYPES or not torch.isfinite(tensor.to(torch.float32)).all():
                raise InputError(
                    f"init={path}: {shorten(name)} has {tensor.dtype} or values that are not finite; expected finite "
                    "floating-point numbers; use another file"
                )
    else:
        try:
            state, sha256 = states.load(path)
            if "method" not in state:
                raise InputError(f"checkpoint {path}: not written by `intl-bench pretrain` (it has no field `method`)")
        except InputError as error:
            raise InputError(
                f"init: {error}; convert a checkpoint of another project with `intl-bench convert CHECKPOINT "
                "OUT.safetensors --to safetensors`"
            ) from error
        weights, origin = state["method"], checkpoint.online(path, sha256, state)
        if origin.seed == seed:
            extends = digest(origin.pretraining())
    if _shapes(weights) != _shapes(method.state_dict()):
        weights = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return InitialWeights(path=path, weights=weights, sha256=checkpoint.weights_digest(weights), extends=extends)


def find(recipe: Recipe, method: Method, state: Mapping[str, Any] | None) -> InitialWeights | None:
    """Read the weights of the recipe's `init`. A resumed run needs only their digest if the file is gone.

    Args:
        method: the new method.
        state: the training state that the run resumes from, or None.

    Raises:
        InputError: see `read` and `checkpoint_in`; or the file is one of the run's own.
    """
    if recipe.init is None:
        return None
    path = checkpoint_in(Path(os.path.expanduser(recipe.init)))
    if path.resolve().is_relative_to(recipe.folder.resolve()):
        raise InputError(f"init={path}: lies in the folder of this run; give the new run another name with name=...")
    before = {} if state is None else state.get("inputs", {})
    known = before.get("initial_weights")
    if known and state is not None and state["config"].get("init") == recipe.init and not path.exists():
        return InitialWeights(path=path, weights={}, sha256=known, extends=before.get("extends"))
    return read(path, method, recipe.seed)


def apply(initial: InitialWeights, method: Method) -> str:
    """Load initial weights into a new method. A backbone alone is also loaded into the momentum encoder.

    Returns:
        A sentence for the user about the loaded part.

    Raises:
        InputError: the backbone has another architecture.
    """
    if _shapes(initial.weights) == _shapes(method.state_dict()):
        method.load_state_dict(initial.weights)
        return f"all weights from {initial.path}"
    prefix = BRANCHES["online"]
    backbone = {name.removeprefix(prefix): tensor for name, tensor in initial.weights.items()}
    average = method.momentum_encoder
    for network in [method.backbone] if average is None else [method.backbone, average[0]]:
        try:
            network.load_state_dict(backbone)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"init={initial.path}: its backbone has another architecture: {reason}") from error
    return f"the backbone from {initial.path}; the rest starts at random"


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}
