"""Facts that this project stores with a backbone: in the header of a safetensors file, or in NAME.json beside it."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from intl_bench.core import files, inputs, seals
from intl_bench.core.errors import DamagedError, InputError
from pretrain.backbone import BackboneConfig
from transfer.formats.safe_load import Content


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def write(path: Path, sha256: str, facts: Mapping[str, Any]) -> None:
    """Write the facts of the file `path`, which has this SHA-256, beside it."""
    values = {**facts, "sha256": sha256, seals.KEY: seals.UNSET}
    files.write_bytes(_beside(path), files.sealed_json(values))


def read(content: Content) -> dict[str, Any] | None:
    """Return the facts that this project stored with a backbone; None if there are none.

    Facts that belong to another file, because this one was replaced, are left out with one warning.

    Raises:
        DamagedError: the facts have changed since they were written.
    """
    beside = _beside(content.path)
    if "config" in content.metadata:
        found = _parse(content.metadata["config"], f"checkpoint {content.path}")
    elif beside.is_file():
        text = inputs.read_bytes(beside)
        found = _parse(text, str(beside))
        if seals.KEY.encode() in text and (found is None or not seals.check(io.BytesIO(text))[1]):
            raise DamagedError(
                f"{beside}: damaged: its content does not match its SHA-256; convert the checkpoint again, or delete "
                f"this file to read {content.path.name} without its facts"
            )
        if found is not None and found.pop("sha256", None) != content.sha256:
            print(f"{beside}: it belongs to another file than {content.path.name}; it is not used", file=sys.stderr)
            return None
        if found is not None:
            found.pop(seals.KEY, None)
    else:
        return None
    return found


def _parse(text: str | bytes, where: str) -> dict[str, Any] | None:
    """Return JSON with the architecture of a backbone; None for any other text."""
    try:
        found = inputs.parse_json(text, where)
        BackboneConfig(**found["backbone"])
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return cast(dict[str, Any], found)
