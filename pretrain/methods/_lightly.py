"""Import of lightly, an optional package with the losses and heads of the baselines."""

import importlib
import os
from typing import Any

from intl_bench.core.errors import InputError


def lightly(module: str) -> Any:
    """Return the module `lightly.MODULE`, such as `lightly.loss` for "loss".

    Raises:
        InputError: lightly is not installed.
    """
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")  # otherwise lightly asks a server for its latest version
    try:
        return importlib.import_module(f"lightly.{module}")
    except ModuleNotFoundError as error:
        if error.name != "lightly":
            raise
        raise InputError(
            "this method needs the package lightly, which is not installed; run pip install lightly"
        ) from None
