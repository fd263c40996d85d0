"""Read JSON and XML of others in the encoding that it declares."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import orjson

from intl_bench.core import inputs
from intl_bench.core.errors import InputError

_LARGEST = 2**35  # bytes; the largest known files have 5 GB
_WIDE = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}  # the first character of XML without a byte order mark
_DECLARATION = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")


def load_json(path: Path, what: str) -> tuple[Any, str]:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32.

    Args:
        what: name of the file in messages, such as "the annotations".

    Returns:
        The value, and the SHA-256 of the bytes of the file.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    content = inputs.read_bytes(path, f"{what} {path}", largest=_LARGEST)
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:  # Python's parser accepts NaN, so a later check can name the entry with the NaN
        try:
            text = content.decode(json.detect_encoding(content))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not valid JSON: {' '.join(str(error).split())}; save it as UTF-8") from error
        value = inputs.parse_json(text, str(path), any_number=True)
    return value, hashlib.sha256(content).hexdigest()


def decode_xml(content: bytes) -> str:
    """Decode XML by its byte order mark, else as its declaration says; without both it is UTF-8.

    A declaration that is wrong, because the bytes are UTF-8, does not matter: some programs declare UTF-16 for UTF-8.

    Raises:
        ValueError: the bytes are not of this encoding, or the encoding is unknown. The message says which one it is.
    """
    declared = _DECLARATION.match(content)
    encoding = (
        inputs.find_marked_encoding(content)
        or _WIDE.get(content[:2])
        or (declared[1].decode() if declared else "utf-8")
    )
    try:
        return content.decode(encoding)
    except (LookupError, ValueError) as error:
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"not {encoding.upper().removesuffix('-SIG')} text") from error
