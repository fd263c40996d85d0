"""Output that shows characters instead of obeying them.

Names of methods, files and keys come from files that others wrote. A terminal obeys control characters in them, such as
ESC, and a text with bidirectional controls is shown in another order than it is stored. Such characters are written as
`\\u001b`, which is also JSON's form, so printed JSON keeps its meaning.
"""

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

# Control characters except line feed and tab; line separators; invisible and bidirectional controls; tags; surrogates,
# which stand for bytes of file names that are not UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_ESCAPE = "intl_bench.escape"


def visible(text: str) -> str:
    """Return `text` with hidden and control characters, except line feeds and tabs, as `\\u001b`."""
    return _HIDDEN.sub(lambda found: _escaped(found[0]), text)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what is written to stdout and stderr within the block.

    Characters that the encoding of a stream does not have, such as "–" in ASCII, are escaped too.
    """
    os.environ.setdefault("PYTHON_COLORS", "0")  # from Python 3.13 on, tracebacks and help have escape sequences
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Escaped(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def move_up(lines: int) -> None:
    """Move the cursor of a terminal up, and clear from there on, so that stdout writes over its last lines."""
    stream = getattr(sys.stdout, "_stream", sys.stdout)
    stream.write(f"\x1b[{lines}F\x1b[J")


class _Escaped:
    """A text stream that escapes what it writes; everything else is that of the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        # A progress bar begins with a carriage return and writes over itself.
        bar = len(text) - len(text.lstrip("\r")) if self._stream.isatty() else 0
        shown = text[:bar] + visible(text[bar:])
        if encoding := getattr(self._stream, "encoding", None):
            shown = shown.encode(encoding, _ESCAPE).decode(encoding)
        self._stream.write(shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def _escaped(text: str) -> str:
    """Return the escapes of all characters; one above U+FFFF becomes two, as in JSON."""
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escaped(error.object[error.start : error.end]), error.end


codecs.register_error(_ESCAPE, _escape_unencodable)
