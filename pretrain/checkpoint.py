"""Checkpoints: weights, optimiser and position in one digested file that loads with `weights_only=True`."""

import dataclasses
import json
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from intl_bench.core import config as configs
from intl_bench.core import files
from intl_bench.core.errors import InputError, from_os_error

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A backbone as pre-training left it, and what is known about how it came to be.

    Attributes:
        path: the file.
        sha256: its digest.
        backbone: parameters and buffers under torchvision's names.
        config: the resolved pre-training configuration.
        method: the method's name in tables, such as "INTL".
        epoch: epochs completed.
        details: counts and times of the pre-training (`bad_images`, `seconds`, ...).
    """

    path: Path
    sha256: str
    backbone: dict[str, torch.Tensor]
    config: dict[str, Any]
    method: str
    epoch: int
    details: dict[str, Any]


def save(path: Path, state: dict[str, Any]) -> str:
    """Writes a training state (tensors and plain values only) atomically; returns its SHA-256.

    Raises:
        ResourceError: the disk is full; the checkpoint that was there stays.
    """
    return files.write_digested(path, lambda stream: torch.save({"format": FORMAT, **state}, stream))


class Writer:
    """Writes training states in the background, one at a time; at the end of the block all are written.

    `save` returns as soon as the state is copied, so that training may change it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[str] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """As the function `save`; what it raises, the next call of this class raises."""
        self.wait()
        self._writing = self._thread.submit(save, path, _copy(state))

    def wait(self) -> None:
        """Returns when the state is on the disk; raises what `save` raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _copy(state: Any) -> Any:
    """The same on the CPU, sharing no tensor with `state`."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    return [_copy(value) for value in state] if isinstance(state, list) else state


def load(path: Path) -> tuple[dict[str, Any], str]:
    """A training state as `save` wrote it, on the CPU, and its SHA-256.

    Raises:
        InputError: missing, damaged, would run code, or not one of ours.
    """
    if not path.is_file():
        raise InputError(
            f"checkpoint {path}: no such file; run `intl-bench pretrain` first, or name another checkpoint"
        )
    digest = files.verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise from_os_error(error, f"cannot read checkpoint {path}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path}: not loaded: it holds objects other than tensors, which could run code"
        ) from error
    except Exception as error:  # what a damaged or foreign file makes the reader raise is not limited to a few kinds
        raise InputError(f"checkpoint {path}: not a readable PyTorch file (truncated or another format)") from error
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"checkpoint {path}: not written by `intl-bench pretrain` (it has no field `format`)")
    if state["format"] != FORMAT:
        raise InputError(f"checkpoint {path}: format {state['format']}, this version reads {FORMAT}; update intl-bench")
    return state, digest


def load_own(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state at `path`, saved with an `identity`, of the run that has this one.

    Raises:
        InputError: as `load`, or it belongs to another run.
    """
    state, _ = load(path)
    changed = configs.differences(state["identity"], identity)
    if changed:
        raise InputError(f"{path} belongs to another run ({changed[0]}); add --fresh to start over")
    return state


def load_backbone_checkpoint(path: Path) -> Checkpoint:
    """The backbone of a training state, its projector and optimiser left aside; raises as `load`."""
    state, digest = load(path)
    prefix = "backbone."
    backbone = {key.removeprefix(prefix): value for key, value in state["method"].items() if key.startswith(prefix)}
    return Checkpoint(
        path=path,
        sha256=digest,
        backbone=backbone,
        config=state["config"],
        method=state["display"],
        epoch=state["step"] // state["steps_per_epoch"],
        details=state["details"],
    )


def export_backbone(path: Path, backbone: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Writes the backbone alone as safetensors, its configuration in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.items()}
    content = safetensors_bytes(tensors, metadata={"format": "pt", "config": json.dumps(config, sort_keys=True)})
    files.write_digested(path, lambda stream: stream.write(content))
