"""A SHA-256 inside the file that it protects, so that a file and its digest cannot be separated.

The file holds the text `intl_bench_sha256` and 64 hexadecimal digits. They are the SHA-256 of the whole file with zeros
in their place. The text is the comment of a zip archive (a file of `torch.save`), a field of the header of safetensors
or of a JSON object, or else the end of the file. Each of these formats ignores it.

The digest detects flipped bits, most of which `torch.load` and safetensors do not detect.
"""

import hashlib
import re
from typing import BinaryIO

KEY = "intl_bench_sha256"
UNSET = "0" * 64
_SEAL = re.compile(rb"intl_bench_sha256:([0-9a-f]{64})")
# Only a key can match: text in JSON has no quotation mark without a backslash, and no line break.
_HEADER_SEAL = re.compile(rb'(?<!\\)"intl_bench_sha256"\s*:\s*"([0-9a-f]{64})"')
_JSON_SEAL = re.compile(rb'\n  "intl_bench_sha256": "([0-9a-f]{64})"')
_TAIL = f"{KEY}:{UNSET}".encode()
LENGTH = len(_TAIL)  # of a seal at the end of a file
_HEAD = 2**24  # more than the longest header
# The record at the end of a zip archive has 22 bytes. The last 2 are the length of the comment.
_ZIP_END = b"PK\x05\x06"
_BLOCK = 2**20


def find(stream: BinaryIO) -> int | None:
    """Return the position of the 64 digits in a file; None if it has no seal."""
    size = stream.seek(0, 2)
    start = max(0, size - len(_TAIL))
    stream.seek(start)
    if found := _SEAL.fullmatch(stream.read()):
        return start + found.start(1)
    stream.seek(0)
    head = stream.read(8)
    pattern = _HEADER_SEAL
    if head[:1] == b"{":  # JSON, whose first level is indented by two spaces
        length, pattern = size, _JSON_SEAL
    elif (length := 8 + int.from_bytes(head, "little")) > size:  # not safetensors
        return None
    stream.seek(0)
    found = pattern.search(stream.read(min(length, _HEAD)))
    return None if found is None else found.start(1)


def seal(stream: BinaryIO) -> str:
    """Put the digest into a complete file, which is open for reading and writing; return the SHA-256 of the whole file.

    A file that holds `KEY` with `UNSET` keeps its length. Otherwise the end of the file is extended.
    """
    place = find(stream)
    if place is None:
        end = stream.seek(0, 2)
        if end >= 22:
            stream.seek(end - 22)
            if stream.read(22).startswith(_ZIP_END):
                stream.seek(end - 2)
                stream.write(len(_TAIL).to_bytes(2, "little"))
        stream.seek(end)
        stream.write(_TAIL)
        place = end + len(_TAIL) - len(UNSET)
    before = _hash_until(stream, place)
    digest = _hash_rest(before, UNSET, stream, place)
    stream.seek(place)
    stream.write(digest.encode())
    return _hash_rest(before, digest, stream, place)


def check(stream: BinaryIO) -> tuple[str, bool | None]:
    """Return the SHA-256 of a whole file, and whether its seal is right: None if the file has no seal."""
    place = find(stream)
    if place is None:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest(), None  # type: ignore[arg-type]  # files have `readinto`
    before = _hash_until(stream, place)
    stored = stream.read(len(UNSET)).decode()
    right = stored == _hash_rest(before, UNSET, stream, place)
    return _hash_rest(before, stored, stream, place), right


def _hash_until(stream: BinaryIO, place: int) -> "hashlib._Hash":
    """Hash the bytes of a file before `place`."""
    stream.seek(0)
    found = hashlib.sha256()
    while block := stream.read(min(place - stream.tell(), _BLOCK)):
        found.update(block)
    return found


def _hash_rest(before: "hashlib._Hash", digits: str, stream: BinaryIO, place: int) -> str:
    """Return the SHA-256 of a file with these digits at `place`, given the hash of what is before."""
    found = before.copy()
    found.update(digits.encode())
    stream.seek(place + len(UNSET))
    while block := stream.read(_BLOCK):
        found.update(block)
    return found.hexdigest()
