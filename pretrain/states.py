"""Training states: weights, optimizer and position of an unfinished or finished run, in one file.

A file has its digest inside, and `weights_only=True` can load it. The two states before the newest stay beside it. A
state with a number that is not finite is never written, because no run could continue from it.
"""

import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from intl_bench.core import config as configs
from intl_bench.core import files, inputs, planned, run_folders
from intl_bench.core.errors import DamagedError, DivergedError, InputError, ResourceError, from_os_error
from intl_bench.core.machine import free_bytes

# Format 1 had no fingerprint of the training images; 1 and 2 call the momentum encoder `target`; 1 to 3 have their
# digest in a file NAME.sha256.
FORMAT = 4
_WITH_EARLIER_NAMES = (1, 2)
_READABLE = (*_WITH_EARLIER_NAMES, 3, FORMAT)
_MOMENTUM_ENCODER = "momentum_encoder."
_EARLIER_MOMENTUM_ENCODER = "target."  # its prefix in earlier versions
_KEPT = 2
_FACTS = {"display", "config", "details", "inputs", "log", "identity", "history"}  # no tensors
# Types of the fields of `pretrain.train.Training.state`.
PRETRAINING = {
    **{"method": dict, "optimizer": dict, "scaler": dict, "config": dict, "details": dict},
    **{"step": int, "steps_per_epoch": int, "display": str},
}


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of a state with their names, such as `method.backbone.conv1.weight`."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from tensors(item, f"{name}.{key}" if name else str(key))


def not_finite(state: Any) -> str | None:
    """Return the name of a tensor of a state that holds NaN or infinity; None if all are finite."""
    for name, tensor in tensors(state):
        # The sum is much less work than the exact check. It may also overflow.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            return name
    return None


def require_finite(state: Any, *, where: str) -> None:
    """Refuse weights, statistics or an optimizer with NaN or infinity.

    Args:
        where: the step, for the message.

    Raises:
        DivergedError: a tensor is not finite; the message names it.
    """
    name = not_finite(state)
    if name is not None:
        raise DivergedError(f"diverged {where}: {name} is not finite; earlier states are kept; lower the learning rate")


def save(path: Path, state: dict[str, Any], keep: int = _KEPT) -> str:
    """Write a training state (only tensors and plain values) atomically and return the SHA-256 of the file.

    The `keep` states before stay as NAME.1.pt and NAME.2.pt.

    Raises:
        DivergedError: a tensor is not finite. The file is unchanged.
        ResourceError: the disk is full or fails. The file is unchanged.
    """
    step = state.get("step", state.get("iteration", "?"))
    require_finite(state, where=f"by step {step}; it is not saved in {path}")
    return files.write_digested(path, lambda stream: torch.save({"format": FORMAT, **state}, stream), keep=keep)


def needed_bytes(path: Path, one: int, more: int = 0) -> int:
    """Return the bytes that a run still needs for the states of `one` bytes each that it keeps, and one more.

    Args:
        more: number of states that it will write beside `path` and keep too.
    """
    there = [file.stat().st_size for age in range(_KEPT + 1) if (file := files.earlier(path, age)).exists()]
    return (_KEPT + 2 + more) * one - sum(there)


def require_space(path: Path, state: dict[str, Any], more: int = 0) -> None:
    """Refuse a run at its start if the disk has no room for the states that it will keep, and one more.

    Args:
        more: number of states that it will write beside `path` and keep too.

    Raises:
        ResourceError: the message tells the bytes that are needed and free.
    """
    one = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors(state))
    needed, free = needed_bytes(path, one, more), free_bytes(path.parent)
    if free < needed:
        raise ResourceError(
            f"{path.parent}: {planned.size(free)} are free; expected {planned.size(needed)} for {_KEPT + 2 + more} "
            f"states of {planned.size(one)}; free some space, or work in a folder of another disk"
        )


class Writer:
    """Writer of training states in the background, one at a time. At the end of the `with` block all are written.

    `save` returns as soon as the state is copied. The training may then change the state.
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

    def save(self, path: Path, state: dict[str, Any], keep: int = _KEPT) -> None:
        """Start the function `save`; the next call of a method raises its error."""
        self.wait()
        self._writing = self._thread.submit(save, path, _copy(state), keep)

    def wait(self) -> None:
        """Wait until the state is on the disk; raise the error of `save`, if any."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _copy(state: Any) -> Any:
    """Return a copy on the CPU that shares no tensor with `state`."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    return [_copy(value) for value in state] if isinstance(state, list) else state


def load(path: Path) -> tuple[dict[str, Any], str]:
    """Read a training state that `save` wrote.

    Returns:
        The state on the CPU with current names (see `current_names`), and the SHA-256 of the file.

    Raises:
        InputError: the file is missing, contains code, or is not a training state of this project.
        DamagedError: the file is damaged, or a field is missing or impossible.
    """
    if not path.is_file():
        raise run_folders.missing(path)
    digest = files.verify(path)
    try:
        with inputs.open_file(path) as stream:
            inputs.check_torch_file(stream)
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        known = from_os_error(error, f"cannot read checkpoint {path}")
        if isinstance(known, ResourceError):
            raise known from error
        raise DamagedError(f"{known}; the file is damaged") from error  # for example a position before its start
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path}: not loaded: it holds objects other than tensors, which could run code"
        ) from error
    except Exception as error:  # a damaged or foreign file can cause many kinds of errors
        raise DamagedError(f"checkpoint {path}: not a readable PyTorch file (truncated or another format)") from error
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"checkpoint {path}: not written by `intl-bench pretrain` (it has no field `format`)")
    check(path, state)
    return current_names(state), digest


def check(path: Path, state: Mapping[str, Any]) -> None:
    """Check the format of a training state, and the fields of a pre-training.

    Raises:
        InputError: this version cannot read the format.
        DamagedError: the digest or a field is missing, or a field is impossible.
    """
    if type(state["format"]) is not int or state["format"] not in _READABLE:
        found, expected = str(state["format"])[:20], " or ".join(map(str, _READABLE))
        raise InputError(f"checkpoint {path}: found format {found}; expected {expected}; update intl-bench")
    if state["format"] == FORMAT and not files.has_digest(path):
        raise DamagedError(f"checkpoint {path}: its SHA-256 is missing; restore the file from a copy")
    _require_plain(path, state)
    if "method" in state:
        require_fields(path, state, PRETRAINING)
        _require_position(path, state)


def _require_plain(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse a state whose facts cannot be written into records, or whose mark of the log is impossible."""
    for name in _FACTS & state.keys():
        try:
            # Names of files may hold bytes that are not text.
            facts = {**state[name], "bad_files": []} if name == "details" else state[name]
            inputs.parse_json(files.json_text(facts).encode(), name)
        except (ValueError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DamagedError(f"checkpoint {path}: {name} holds more than plain values: {reason}") from error
    log, read = state.get("log"), state.get("inputs", {})
    if log is not None and not (isinstance(log, dict) and [*map(type, map(log.get, ("bytes", "crc32")))] == [int, int]):
        raise DamagedError(f"checkpoint {path}: log is {inputs.shorten(log)}; expected numbers of bytes and crc32")
    if not isinstance(read, dict) or not all(isinstance(value, str | None) for value in read.values()):
        raise DamagedError(f"checkpoint {path}: inputs is {inputs.shorten(read)}; expected digests by name")
    if "display" in state and not str(state["display"]).strip():
        raise DamagedError(f"checkpoint {path}: display is empty; expected the name of a method")


def require_fields(path: Path, state: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    """Refuse a training state with missing fields, fields of another type, or tensors without ordinary memory.

    Raises:
        DamagedError: the message names the field.
    """
    for name, kind in expected.items():
        found = state.get(name)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise DamagedError(
                f"checkpoint {path}: {name} is {'missing' if name not in state else type(found).__name__}; expected "
                f"{kind.__name__}; the file is damaged or of another program"
            )
    for name, tensor in tensors(state):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise DamagedError(f"checkpoint {path}: {name} is not a dense tensor; expected ordinary numbers")


def _require_position(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse the state of a pre-training whose position or details are impossible."""
    details, epochs, steps = state["details"], state["config"].get("epochs"), state["steps_per_epoch"]
    total = epochs * steps if isinstance(epochs, int) else 0
    for name, value, least, most in (
        ("step", state["step"], 0, total),
        ("steps_per_epoch", steps, 1, 1e18),
        ("details.seconds", details.get("seconds"), 0, 1e12),
        ("details.gpu_seconds", details.get("gpu_seconds") or 0, 0, 1e18),
        ("details.gpu_joules", details.get("gpu_joules") or 0, 0, 1e18),
    ):
        if not isinstance(value, int | float) or not least <= value <= most:
            raise DamagedError(
                f"checkpoint {path}: {name} is {str(value)[:20]}; expected a number from {least} to {most}"
            )
    bad = details.get("bad_files")
    if not isinstance(bad, list) or not all(isinstance(name, str) for name in bad):
        raise DamagedError(f"checkpoint {path}: details.bad_files is {str(bad)[:20]}; expected a list of file names")


def current_names(state: Any) -> Any:
    """Return a training state with current names: earlier versions called the momentum encoder `target`.

    Any other content is returned unchanged.
    """
    ours = isinstance(state, dict) and "steps_per_epoch" in state and isinstance(state.get("format"), int)
    weights = state.get("method") if ours and state["format"] in _WITH_EARLIER_NAMES else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        return state
    return {**state, "method": _renamed(weights, _EARLIER_MOMENTUM_ENCODER, _MOMENTUM_ENCODER)}


def earlier_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under the names of earlier versions, by which digests of weights are computed."""
    return _renamed(weights, _MOMENTUM_ENCODER, _EARLIER_MOMENTUM_ENCODER)


def _renamed(weights: Mapping[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    """Replace the prefix `old` of names by `new`."""
    return {re.sub(f"^{re.escape(old)}", new, name): tensor for name, tensor in weights.items()}


def load_newest(path: Path) -> dict[str, Any] | None:
    """Read the newest state of a run that is intact; None if there is no state.

    A damaged state is reported and renamed to NAME.damaged, and the state before it is used. Call this in one process.

    Raises:
        InputError: the newest state cannot be used for another reason (see `load`).
        DamagedError: all states are damaged.
    """
    damaged: dict[Path, DamagedError] = {}
    for age in range(_KEPT + 1):
        file = files.earlier(path, age)
        if not file.exists():
            continue
        try:
            state, _ = load(file)
            if name := not_finite(state):
                raise DamagedError(f"{file}: {name} is not finite")
        except DamagedError as error:
            damaged[file] = error
            continue
        if age:
            reasons = "; ".join(map(str, damaged.values())) or f"{path} is missing"
            print(f"{reasons}; continuing from the state before, {file}", file=sys.stderr)
        for bad in damaged:  # else the next states would move it to the place of a good one
            files.set_aside(bad)
        return state
    if damaged:
        first = next(iter(damaged.values()))
        raise DamagedError(f"{first}; no earlier state is intact; add --fresh to start over")
    return None


def load_own(
    path: Path, identity: dict[str, Any], fields: Mapping[str, type], *, position: str, most: int
) -> dict[str, Any] | None:
    """Read the newest intact state of a task that was saved with its `identity`; None if there is no state.

    Args:
        fields: types of the fields of the state.
        position: name of the field with the number of completed steps, which is an integer up to `most`.

    Raises:
        InputError: see `load_newest`; or the state belongs to another run.
    """
    state = load_newest(path)
    if state is None:
        return None
    require_fields(path, state, {"identity": dict, position: int, **fields})
    changed = configs.differences(state["identity"], identity)
    if changed:
        raise InputError(f"{path} belongs to another run ({changed[0]}); add --fresh to start over")
    if not 0 <= state[position] <= most:
        raise DamagedError(f"{path}: {position} is {state[position]}; expected 0 to {most}; add --fresh to start over")
    return state


def restore_weights(module: torch.nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Load the weights of a state into a module.

    Raises:
        InputError: names or shapes differ.
    """
    try:
        for name, own in module.state_dict().items():
            if name in weights and weights[name].dtype != own.dtype:
                raise TypeError(f"{name} has {weights[name].dtype}, expected {own.dtype}")
        module.load_state_dict(weights)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"{path}: its weights have another architecture: {reason}; add --fresh to start over"
        raise InputError(message) from error


def restore_optimizer(optimizer: torch.optim.Optimizer, stored: Any, path: Path) -> None:
    """Copy the numbers of a stored optimizer into a new one. The settings of the new one stay.

    The memory is that of the new optimizer, because fused kernels trust its shapes and strides.

    Args:
        stored: a state dictionary of an optimizer with the same parameters.

    Raises:
        InputError: a number is missing, or has another shape or type.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values = stored.get("state") if isinstance(stored, dict) else None
    if not isinstance(values, dict) or not values.keys() <= set(range(len(parameters))):
        raise InputError(f"{path}: its optimizer has other parameters; add --fresh to start over")
    for number, parameter in enumerate(parameters):
        found, new = values.get(number, {}), optimizer.state.get(parameter)
        # PyTorch's SGD makes its momentum in its first step. A momentum of zero has the same effect.
        own = new or ({"momentum_buffer": torch.zeros_like(parameter)} if values else {})
        if (found or new) and _shapes(found) != _shapes(own):
            raise InputError(
                f"{path}: the state of parameter {number} of its optimizer is {_shapes(found)}; expected "
                f"{_shapes(own)}; add --fresh to start over"
            )
        for name in found:
            own[name].detach().copy_(found[name])
        if own:
            optimizer.state[parameter] = own


def _shapes(values: Any) -> dict[Any, Any]:
    """Return the shapes and types of the tensors of a parameter's optimizer state."""
    items = values.items() if isinstance(values, dict) else ()
    return {name: (tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else type(v) for name, v in items}
