"""The environment variables by which a launcher such as `torchrun` tells a process its place among others."""

import os

from intl_bench.core.errors import InputError
from intl_bench.core.ranges import Range

_NUMBERS = {
    "RANK": Range(0, 2**20),
    "LOCAL_RANK": Range(0, 2**20),
    "WORLD_SIZE": Range(1, 2**20),
    "MASTER_PORT": Range(1, 2**16 - 1),
}


def check() -> None:
    """Refuse an environment that describes no place among processes.

    Raises:
        InputError: the message names the variable.
    """
    remedy = "start the processes with torchrun or --processes, or unset the variable"
    for name, known in _NUMBERS.items():
        text = os.environ.get(name)
        if text is None:
            continue
        try:
            known.check(name, int(text[:20]))
        except ValueError as error:
            reason = f"{name}={text[:20]!r}: expected a whole number from {known.least} to {known.most}"
            raise InputError(f"environment: {reason}; {remedy}") from error
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank >= size:
        raise InputError(f"environment: RANK={rank}: expected less than WORLD_SIZE={size}; {remedy}")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if size > 1 and missing:
        raise InputError(f"environment: WORLD_SIZE={size}, but {missing[0]} is missing; {remedy}")
