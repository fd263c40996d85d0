"""R5: a value that is not finite ends a training with exit 3, leaves no record, and spoils no state."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import reliability_commands as commands
import torch
import torture
from fork_server import ForkServer
from poison import PLACES
from torch import nn

from intl_bench.core.errors import DivergedError
from pretrain.finite import Features

pytestmark = pytest.mark.slow  # the children take most of the time; `make check` leaves them out

# command: number of its optimizer steps, and whether forward passes for statistics follow
_STEPS = {
    "pretrain": (4, False),
    "linear": (4, False),
    "linear-features": (6, False),
    "finetune": (4, False),
    "coco": (4, True),
    "coco-detectron2": (4, True),
}
_SHORT = {"pretrain": 3}  # number of cases in the short form; of other commands 2


def cases(command: str) -> Iterator[tuple[str, int, str, bool]]:
    """Return all cases of a command: place, step, value, and whether a signal follows."""
    for place in PLACES:
        steps, statistics = _STEPS[command]
        if command == "linear-features" and place in ("buffer", "input", "loss", "test input"):
            continue  # a linear layer on finite features; see `test_features_that_are_not_finite`
        if command == "linear" and place == "buffer":
            continue  # a frozen backbone
        if command == "pretrain" and place == "test input":
            continue  # nothing is tested
        if command == "linear-features" and place == "momentum":
            steps -= 1  # nothing uses or saves that of the last step
        last = 1 if place == "test input" else steps + (statistics and place in ("buffer", "input"))
        for step in range(1, last + 1):
            for value in ("nan", "inf"):
                for stop in (False, True):
                    if (value == "inf" and stop) or (command == "coco-detectron2" and (value == "inf" or stop)):
                        continue  # a case of Detectron2 takes seven seconds, and the engines share the checks
                    yield place, step, value, stop


@pytest.mark.parametrize("command", _STEPS)
def test_a_value_is_not_finite(
    command: str,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    new_case: Callable[[object], Path],
) -> None:
    """Put NaN or infinity into one tensor in one step; then run again without it."""
    expected, _ = undisturbed(command)
    failures, every = torture.Failures(), list(cases(command))
    labels = ["{} step {} {} {}".format(*one[:3], "SIGTERM" if one[3] else "") for one in every]
    for at in torture.numbers(labels, _SHORT.get(command, 2), "poison", command):
        place, step, value, stop = every[at - 1]
        case = new_case(at)
        work = case / "work"
        poison = "poison:install", {"place": place, "step": step, "value": value, "stop": stop}
        ended = server.run(case, commands.COMMANDS[command], setup=[poison])
        stopped = stop and ended.code == 75  # before the value was noticed; the saved state must be good all the same
        wrong = [] if ended.code == 3 or stopped else [f"exit {ended.code}: {ended.stderr[-200:]!r}"]
        line = next((line for line in ended.lines if line.startswith("intl-bench: ")), "")
        named = re.search(r"\b(step|epochs?|iteration|test|detecting|statistics)\b", line)
        wrong += [] if named or (command == "linear-features" and stopped) else [f"no step is named: {line}"]
        wrong += [f"record {name}" for name in commands.records(work)]
        again = server.run(case, commands.COMMANDS[command], name="again-")
        if again.code:
            wrong.append(f"exit {again.code} of the next start: {again.stderr[-200:]!r}")
        elif not any(text.startswith("record") for text in wrong):
            wrong += commands.changed(expected, commands.results(work), command)
        failures.check(at, labels[at - 1], wrong)
    failures.report()


@pytest.mark.parametrize("command", ["knn", "linear-features"])
def test_features_that_are_not_finite(
    command: str, server: ForkServer, undisturbed: Callable[[str], object], new_case: Callable[[object], Path]
) -> None:
    """A feature that is not finite is an error of the checkpoint or the images: no record, no cache."""
    undisturbed(command)
    case = new_case(command)
    poison = "poison:install", {"place": "test input", "step": 1, "value": "nan", "stop": False}
    ended = server.run(case, commands.COMMANDS[command], setup=[poison])
    assert ended.code in (2, 3), ended.stderr
    assert commands.records(case / "work") == {}
    assert not [name for name in commands.made(case / "work") if name.endswith(".npy")]


@pytest.mark.parametrize("named", [False, True])
def test_features_of_one_test_image_are_enough(named: bool) -> None:
    """A detector finds nothing where features are not finite, which must not count as a result."""

    class Trunk(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor] | dict[str, torch.Tensor]:
            return {"res4": x} if named else [x]

    for values, raises in (([1.0, math.inf, 2.0], True), ([1.0, 2.0], False)):
        trunk = Trunk()
        features = Features(trunk, torch.device("cpu"))
        for value in values:
            trunk(torch.tensor([0.0, value]))
        with pytest.raises(DivergedError, match="a test image has features") if raises else contextlib.nullcontext():
            features.require_finite("a test image")
        trunk(torch.tensor([math.nan]))  # notes are no longer taken
