"""Pictures in the page itself: detections and figures of ablations."""

import base64
import html
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from intl_bench.core import inputs
from intl_bench.core.errors import InputError
from intl_bench.core.terminal import visible
from intl_bench.records import ResultRecord

_WIDTH = 1440  # of a stored picture, in pixels
_LARGEST = 200 * 2**20  # bytes of a file
_KEEP = 400_000  # bytes up to which a PNG stays as it is


def picture_html(path: Path, *, name: str, caption: str) -> str:
    """Return a figure with a PNG file; if it cannot be read, a figure that says so.

    Args:
        name: what the picture shows, for readers who do not see it.
        caption: the text above it.
    """
    try:
        content, kind = _encode(inputs.read_bytes(path, largest=_LARGEST))
    except (InputError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = f"{path}: cannot be shown ({' '.join(str(error).split())[:200]})"
        return f'<p class="none">{html.escape(visible(reason))}</p>\n'
    data = base64.b64encode(content).decode()
    return (
        f"<figure><figcaption>{html.escape(visible(caption))}</figcaption>"
        f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(visible(name))}"/></figure>\n'
    )


def _encode(content: bytes) -> tuple[bytes, str]:
    """Return a PNG as it is, or as a smaller JPEG if it is large, and the kind of the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            if len(content) <= _KEEP:
                return content, "png"
            scaled = image.convert("RGB")
    scaled.thumbnail((_WIDTH, 20 * _WIDTH))
    stream = io.BytesIO()
    scaled.save(stream, format="JPEG", quality=85)
    return stream.getvalue(), "jpeg"


def detections_html(records: Sequence[ResultRecord]) -> str:
    """Return the pictures of worst detections that records name; an empty text if there is none."""
    parts = []
    absent: list[str] = []
    for record in records:
        path = record.details.get("picture")
        if not isinstance(path, str):
            continue
        if not Path(path).exists():
            absent.append(path)
            continue
        scores = ", ".join(
            f"{name} {record.metrics[key]:.1f}"
            for key, name in (("bbox/AP", "box AP"), ("segm/AP", "mask AP"))
            if key in record.metrics
        )
        about = f"{record.task} on {record.dataset}, {record.method}, transfer seed {record.transfer_seed}: {scores}"
        parts.append(
            picture_html(
                Path(path),
                name=f"Worst detections of {about}",
                caption=f"{about}. The test images with the lowest box AP. Left: annotated objects. Right: detections.",
            )
        )
    if absent:
        text = (
            f"Pictures that the records name and that are not here: {len(absent)}, such as {absent[0]}. Run the report "
            "where the detectors were trained, or score again with --visualize N."
        )
        parts.append(f'<p class="none">{html.escape(visible(text))}</p>\n')
    return "".join(parts)
