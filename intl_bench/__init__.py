"""intl-bench: pre-training, transfer and benchmark suite for INTL (IterNorm with trace loss, ICLR 2024).

In Python:

    INTLLoss       the loss of two or more views, for a training script of your own
    pretrain       train a backbone by a recipe; the checkpoint
    evaluate       score a checkpoint of this or another project; the records
    tables         records beside the published values, as text

PyTorch is imported when one of the first three is used for the first time. docs/python.md has examples.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intl_bench.api import evaluate, pretrain
    from intl_bench.tables.call import tables
    from pretrain.methods.intl import INTLLoss

__all__ = ["INTLLoss", "__version__", "evaluate", "pretrain", "tables"]
__version__ = "0.1.0"

# name: its module. `tables` is the package of this name, which can be called (`intl_bench.tables.call`).
_MODULES = {"INTLLoss": "pretrain.methods.intl", "evaluate": "intl_bench.api", "pretrain": "intl_bench.api"}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` at its first use."""
    if name == "tables":
        return importlib.import_module("intl_bench.tables")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from intl_bench.core.packages import require_own_packages

    require_own_packages()
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
