"""The files of a detection run that both engines write: the state to resume from, and the trained detector."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intl_bench.core import distributed, files
from intl_bench.core.json_lines import JsonLines
from pretrain import states
from transfer.detection.modeling.resnet import require_matching_weights

STATE = "state.pt"


def save_state(
    log: JsonLines,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
) -> None:
    """Write the state of a run after `iteration` steps beside its log; raises the errors of `pretrain.states.save`."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
    states.save(log.path.with_name(STATE), {"identity": identity, **state, "log": log.mark()})


def load_state(path: Path, identity: dict[str, Any], iterations: int) -> dict[str, Any] | None:
    """Read the newest intact state of a run with this identity, on all processes; None if there is none.

    Raises:
        InputError: see `pretrain.states.load_own`.
    """
    state = distributed.from_main(
        lambda: states.load_own(path, identity, {"model": dict}, position="iteration", most=iterations)
    )
    if state is not None and "trainer" in state:  # of the engine Detectron2 in earlier versions
        state["optimizer"] = state["trainer"].get("optimizer")
    return state


def write_detector(folder: Path, model: nn.Module, about: dict[str, Any] | None) -> None:
    """Write `detector.pth` with Detectron2's parameter names, which Detectron2 loads.

    Args:
        about: plain values, which are stored under "intl_bench"; see `transfer.detection.detectors.read`.

    Raises:
        DivergedError: a weight or a statistic is not finite.
    """
    weights = {key: value.cpu() for key, value in model.state_dict().items()}
    states.require_finite(weights, where="in the trained detector")
    content = {"model": weights, "intl_bench": about or {}}
    files.write_digested(folder / "detector.pth", lambda stream: torch.save(content, stream))


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load the weights of all layers into a detector of either engine.

    Raises:
        InputError: a weight is missing, unknown or of another shape.
    """
    require_matching_weights(
        weights, model.state_dict(), what="weights", remedy="set model.* and --engine as in the training"
    )
    model.load_state_dict(weights, strict=False)
