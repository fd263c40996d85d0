"""The precision of a backbone's forward pass in an evaluation: float32 as published, or bf16 on request."""

import torch

DEFAULT = "fp32"
PRECISIONS = (DEFAULT, "bf16")


def check(precision: str) -> None:
    """Raises ValueError for what is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")


def unused(precision: str) -> set[str]:
    """For a configuration's `unused`: the default is not part of its identity, which is older than the choice."""
    return {"precision"} if precision == DEFAULT else set()


def stated(precision: str) -> str | None:
    """What a footnote says of it: nothing where it is the default."""
    return None if precision == DEFAULT else precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The block in which a backbone is run; weights stay float32, and what comes out is to be made float32 again."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
