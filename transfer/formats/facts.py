"""Facts that this project stores with a backbone: in the header of a safetensors file, or in NAME.json beside it."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    if "config" in content.metadata:
        found = _parse(content.metadata["config"], f"checkpoint {content.path}")
        return found if _has_backbone(found) else None
    beside, name = _beside(content.path), content.path.name
    if not beside.is_file():
        return None
    text = inputs.read_bytes(beside)
    found = _parse(text, str(beside))
    # Without its facts, the file would count as one of an unknown project, with other scores.
    if found is None or (seals.KEY.encode() in text and not seals.check(io.BytesIO(text))[1]):
        reason = "it is not valid JSON" if found is None else "its content does not match its SHA-256"
        raise DamagedError(
            f"{beside}: damaged: {reason}; convert the checkpoint again, or delete this file to read {name} as one of "
            "another project"
        )
    if not _has_backbone(found):
        return None  # a file of somebody else
    if found.get("sha256") != content.sha256:
        print(f"{beside}: it belongs to another file than {name}; it is not used", file=sys.stderr)
        return None
    return {key: value for key, value in found.items() if key not in ("sha256", seals.KEY)}


def _parse(text: str | bytes, where: str) -> Any:
    """Return the values of JSON; None for any other text."""
    try:
        return inputs.parse_json(text, where)
    except InputError:
        return None


def _has_backbone(values: Any) -> bool:
    """Return whether values tell the architecture of a backbone, as all facts of this project do."""
    try:
        BackboneConfig(**values["backbone"])
        return True
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
