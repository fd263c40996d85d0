"""The precision of the backbone's forward pass in an evaluation: float32 as in the paper, or optionally bfloat16."""

from typing import Annotated

import torch

from intl_bench.core.ranges import Choice

DEFAULT = "fp32"
PRECISIONS = (DEFAULT, "bf16")
Precision = Annotated[str, Choice(PRECISIONS)]


def unused(precision: str) -> set[str]:
    """Return {"precision"} for the default, for the method `unused` of a configuration.

    So the default is not part of the identity. Identities of older records have no precision.
    """
    return {"precision"} if precision == DEFAULT else set()


def stated(precision: str) -> str | None:
    """Return the precision for a footnote; None for the default, which footnotes do not mention."""
    return None if precision == DEFAULT else precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a backbone runs.

    The weights stay float32. The caller converts the outputs to float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
