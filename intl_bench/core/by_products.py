"""Files that explain a run and that it can do without: a fault in writing one is one warning."""

import sys
from collections.abc import Callable
from pathlib import Path

from intl_bench.core import files, inputs


class ByProducts:
    """The by-products in a folder. After the first failure of a file, it is not written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failed: set[str] = set()
        self._appended: set[str] = set()

    def write(self, name: str, make: Callable[[], bytes]) -> None:
        """Write the result of `make` as the file `name`."""
        self._try(name, lambda: files.write_by_product(self.folder / name, make()))

    def append(self, name: str, text: str) -> None:
        """Append a text to the file `name`."""
        self._try(name, lambda: self._append(name, text.encode(errors="backslashreplace")))

    def _append(self, name: str, content: bytes) -> None:
        path = self.folder / name
        if name not in self._appended and path.exists():
            inputs.require_regular(path, path.stat())  # a pipe would make the run wait for its reader
        self._appended.add(name)
        files.append_bytes(path, content)

    def _try(self, name: str, write: Callable[[], object]) -> None:
        if name in self._failed:
            return
        try:
            write()
        except Exception as error:
            self._failed.add(name)
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: {self.folder / name} is not written any more: {reason}", file=sys.stderr)
