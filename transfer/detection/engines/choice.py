"""Which engine a run uses. This module imports Detectron2 only to find out whether it can be imported."""

import dataclasses
import importlib
import importlib.util
import sys
import warnings

from intl_bench.core.distributed import is_main_process
from intl_bench.core.errors import InputError
from transfer.detection.config import DetectionConfig
from transfer.detection.engines import detectron2_settings

_ABSENT = "Detectron2 is not installed"


def resolve(config: DetectionConfig) -> DetectionConfig:
    """Replace the engine "auto": Detectron2 if it can be imported and can do what is asked, else the built-in engine.

    If Detectron2 is installed and not used, one line on stderr gives the reason. The settings alone decide; no
    annotation is read.

    Raises:
        InputError: engine=detectron2, and Detectron2 cannot be imported or cannot do what is asked.
    """
    if config.engine == "builtin":
        return config
    obstacle = find_obstacle(config)
    if config.engine == "detectron2":
        if obstacle:
            raise InputError(f"engine=detectron2: {obstacle}; use --engine builtin")
        return config
    if obstacle not in ("", _ABSENT) and is_main_process():
        print(f"engine: builtin, because {obstacle}", file=sys.stderr)
    return dataclasses.replace(config, engine="builtin" if obstacle else "detectron2")


def find_obstacle(config: DetectionConfig) -> str:
    """Describe why Detectron2 cannot do what the settings ask for; empty if it can."""
    if problem := find_import_problem():
        return problem
    if config.accumulate > 1:
        return f"Detectron2 has no gradient accumulation (accumulate={config.accumulate})"
    return detectron2_settings.find_missing_support(config.model)


def find_import_problem() -> str:
    """Describe why Detectron2 cannot be imported; empty if it can."""
    try:
        if importlib.util.find_spec("detectron2") is None:
            return _ABSENT
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module("transfer.detection.engines.detectron2")
    except Exception as error:  # a build for another PyTorch raises many kinds of errors
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        return f"Detectron2 is installed and cannot be imported ({reason})"
    return ""
