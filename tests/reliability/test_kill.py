"""R1: a run that is killed at any moment loses nothing, and the same command ends with the same results."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import reliability_commands as commands
import torture
from fork_server import Ended, ForkServer

pytestmark = pytest.mark.slow  # the children take most of the time; `make check` leaves them out

_SHORT = {"pretrain": 4, "coco": 3}  # number of kills in the short form; of the other commands 2
_RANDOM = 4  # runs that are killed at random times until they end


def wrong_after(ended: Ended, work: Path, expected: dict[str, str], before: dict[str, str], command: str) -> list[str]:
    """Return what is wrong after the run that followed a kill; `before` holds the records at the kill."""
    wrong = [] if ended.code == 0 else [f"exit {ended.code} of the next start: {ended.stderr[-300:]!r}"]
    if ended.code == 0:
        wrong += commands.changed(expected, commands.results(work), command)
    now = commands.records(work)
    wrong += [f"the record {name} was lost or changed" for name, text in before.items() if now.get(name) != text]
    wrong += [f"{name} is left" for name in commands.temporaries(work)]
    return wrong


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_killed_at_every_boundary(
    command: str,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    new_case: Callable[[object], Path],
) -> None:
    """Kill the run before each call that changes a file, or in the middle of a write."""
    expected, calls = undisturbed(command)
    failures = torture.Failures()
    chosen = {"every": command in commands.EVERY, "last": command not in commands.SLOW}
    others = commands.OTHERS.get(command, "")
    for at in torture.numbers(calls, _SHORT.get(command, 2), "kill", command, **chosen, others=others):
        case = new_case(at)
        work = case / "work"
        child = server.start(case, commands.COMMANDS[command], setup=[torture.faulty(case, at=at)])
        child.wait()
        killed = child.kill()  # the other processes of the run
        before = commands.records(work)
        again = server.run(case, commands.COMMANDS[command], name="again-")
        wrong = wrong_after(again, work, expected, before, command)
        failures.check(at, torture.kind(killed.calls[-1]) if killed.calls else "none", wrong)
    failures.report()


@pytest.mark.parametrize("command", commands.COMMANDS)
@pytest.mark.long
def test_killed_at_random_times(
    command: str,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    new_case: Callable[[object], Path],
) -> None:
    """Kill a run at random times, start it again and kill it again, until it ends by itself."""
    expected, _ = undisturbed(command)
    failures = torture.Failures()
    for number in range(1, _RANDOM + 1):
        if torture.AT not in (0, number):
            continue
        case, draw = new_case(number), torture.draw("random", command, number)
        work, kills, lost = case / "work", 0, dict[str, str]()
        while True:
            child = server.start(case, commands.COMMANDS[command], name=f"{kills}-")
            try:
                ended = child.wait_briefly(draw.uniform(0.02, 0.4 + 0.2 * kills))
            except TimeoutError:
                ended = child.kill()
                kills += ended.code == -signal.SIGKILL
                lost |= commands.records(work)
                continue
            break
        failures.check(number, f"{kills} kills", wrong_after(ended, work, expected, lost, command))
        print(f"{command} {number}: {kills} kills")
    failures.report()
