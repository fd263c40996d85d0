"""The files of a detection run that both engines write: the state to resume from, and the trained detector."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from intl_bench.core import distributed, files
from intl_bench.core.json_lines import JsonLines
from pretrain import states

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


def write_detector(folder: Path, model: nn.Module) -> None:
    """Write `detector.pth` with Detectron2's parameter names.

    Raises:
        DivergedError: a weight or a statistic is not finite.
    """
    weights = {"model": {key: value.cpu() for key, value in model.state_dict().items()}}
    states.require_finite(weights, where="in the trained detector")
    files.write_digested(folder / "detector.pth", lambda stream: torch.save(weights, stream))
