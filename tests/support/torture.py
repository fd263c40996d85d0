"""The extent of the tests of reliability: the short form of `make test`, or the long one of `make torture`.

Environment:
    INTL_BENCH_TORTURE=1: the long form.
    INTL_BENCH_TORTURE_SEED=N: the seed of all that is drawn; it is printed with each failure.
    INTL_BENCH_TORTURE_AT=K: only the fault at call K, to repeat a failure. `-k` chooses the test and the command.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LONG = os.environ.get("INTL_BENCH_TORTURE") == "1"
SEED = int(os.environ.get("INTL_BENCH_TORTURE_SEED", "0"))
AT = int(os.environ.get("INTL_BENCH_TORTURE_AT", "0"))


def draw(*what: object) -> np.random.Generator:
    """Return random numbers that depend on the seed and on what they are for."""
    return np.random.default_rng([SEED, *"/".join(map(str, what)).encode()])


def faulty(case: Path, **fault: Any) -> tuple[str, dict[str, Any]]:
    """Return the step of `ForkServer.start` that installs a fault below `case/work`."""
    return "faults:install", {"folder": str(case / "work"), "journal": str(case / "calls"), "fault": fault}


def kind(call: str) -> str:
    """Return a call with the random and the numbered parts of its path replaced."""
    call = re.sub(r"\.[^./]+(?:\.[^/]*)?\.tmp$", ".TEMPORARY", call)
    call = re.sub(r"grid-[^/]+", "CELL", call)
    return re.sub(r"events\.out\S*", "EVENTS", re.sub(r"[0-9a-f]{16,}", "DIGEST", call))


def numbers(
    calls: Sequence[str], short: int, *what: object, every: bool = True, last: bool = True, others: str = ""
) -> Iterator[int]:
    """Choose numbers of calls, from 1.

    Args:
        short: in the short form, the number of calls; they are of different kinds.
        what: what they are for.
        every: in the long form, whether all calls are chosen, or the first of each kind, and the last with `last`.
        others: a pattern of calls that are left out, because other commands make them too.
    """
    if AT:
        yield AT
        return
    own = {number: kind(call) for number, call in enumerate(calls, start=1) if not (others and re.search(others, call))}
    firsts = {name: number for number, name in reversed(own.items())}
    lasts = {name: number for number, name in own.items()}
    if not LONG:
        yield from sorted(draw(*what).permutation(sorted(firsts.values()))[:short].tolist())
    elif every:
        yield from own
    else:
        yield from sorted({*firsts.values(), *(lasts.values() if last else ())})


class Failures:
    """The failed cases of one test, which it reports together, each with what repeats it alone."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cases = 0

    def check(self, at: int, call: str, wrong: Sequence[str]) -> None:
        """Count a case and note what is wrong with it."""
        self.cases += 1
        if wrong:
            self.lines.append(f"  call {at} ({call}): {'; '.join(wrong)}")

    def report(self) -> None:
        """Fail if a case failed."""
        print(f"{self.cases} cases")
        assert self.cases
        assert not self.lines, (
            f"{len(self.lines)} of {self.cases} cases failed; repeat one with -k NAME, INTL_BENCH_TORTURE_SEED={SEED} "
            "and INTL_BENCH_TORTURE_AT=CALL:\n" + "\n".join(self.lines)
        )
