"""The promise of `--dry-run`: within a block, `intl_bench.core.files` writes nothing."""

import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path

from intl_bench.core.errors import InputError

_active = contextvars.ContextVar("read_only", default=False)


@contextlib.contextmanager
def read_only() -> Iterator[None]:
    """Refuse every new or changed file within the block. A cache, whose errors do not matter, is then not written."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def require_writable(path: Path) -> None:
    """Refuse to write a file in a dry run.

    Raises:
        InputError: the call is within `read_only`.
    """
    if _active.get():
        raise InputError(f"cannot write {path}: a dry run writes nothing; leave out --dry-run")
