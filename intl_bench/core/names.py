"""Names that people choose: of runs and grids, which become folders; of methods and data sets, which tables show."""

import hashlib
import os
import unicodedata

_LONGEST_FOLDER = 200  # bytes; file systems allow 255, and suffixes such as .lock are added
_LONGEST_TITLE = 200  # characters


def require_folder_name(name: str, what: str) -> None:
    """Refuse a name that is not one folder, or that a shell or a terminal takes for something else.

    Args:
        what: the setting, for the message.

    Raises:
        ValueError: the message names the setting and the reason.
    """
    require_title(name, what)
    reason = ""
    if name in (".", "..") or "/" in name or "\\" in name:
        reason = "it is a path"
    elif name.startswith("-") or name != name.strip():
        reason = "it begins with - or a space, or ends with a space"
    elif len(os.fsencode(name)) > _LONGEST_FOLDER:
        reason = f"it has more than {_LONGEST_FOLDER} bytes"
    if reason:
        raise ValueError(f"{what}={name[:80]!r}: {reason}; expected the name of a folder")


def fit_folder_name(name: str) -> str:
    """Return a name of ASCII characters that a folder may have: if it is too long, its start and a digest of it."""
    if len(name) <= _LONGEST_FOLDER:
        return name
    return f"{name[: _LONGEST_FOLDER - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def require_title(name: str, what: str) -> None:
    """Refuse a name that is empty, too long, or holds characters that change how a terminal or a table shows it.

    Raises:
        ValueError: the message names the setting and the reason.
    """
    # Cc, Cf: control and formatting characters, such as escape sequences and changes of direction. Cs: not text.
    bad = [character for character in name if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    reason = "it is empty" if not name.strip() else f"it holds U+{ord(bad[0]):04X}" if bad else ""
    if len(name) > _LONGEST_TITLE:
        reason = f"it has more than {_LONGEST_TITLE} characters"
    if reason:
        raise ValueError(f"{what}={name[:80]!r}: {reason}; expected a name of printable characters")
