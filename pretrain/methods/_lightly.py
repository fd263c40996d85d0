"""The one door to lightly, whose losses and heads the baselines use."""

import importlib
import os
from typing import Any

from intl_bench.core.errors import InputError


def lightly(module: str) -> Any:
    """The module `lightly.MODULE`, such as "loss".

    Raises:
        InputError: lightly is not installed.
    """
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")  # else it asks a server for its latest version
    try:
        return importlib.import_module(f"lightly.{module}")
    except ModuleNotFoundError as error:
        if error.name != "lightly":
            raise
        raise InputError("this method needs lightly: pip install 'intl-bench[baselines]'") from None
