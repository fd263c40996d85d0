"""Recognize the packages `pretrain` and `transfer` of intl-bench.

A wheel installs them at the top level, where another project can install a package of the same name: PyPI has a
`transfer`. Nothing is imported here, because the package of another project can do anything.
"""

import importlib.util
import re
from pathlib import Path

from intl_bench.core.errors import InputError

SITE = Path(__file__).resolve().parents[2]  # the folder of `intl_bench`: a checkout or site-packages
PACKAGES = ("pretrain", "transfer")
# A line of our `__init__.py`. The place alone does not tell: pip lets another project overwrite that file.
MARK = re.compile(r'^PROJECT = "intl-bench"$', re.MULTILINE)


def require_own_packages() -> None:
    """Check that `pretrain` and `transfer` are imported from the folder that `intl_bench` is imported from.

    Raises:
        InputError: one of them is missing or belongs to another project.
    """
    for name in PACKAGES:
        expected = SITE / name / "__init__.py"
        spec = importlib.util.find_spec(name)
        found = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        if found is None:
            what = "not found"
        elif Path(found).resolve() != expected or not MARK.search(_text(expected)):
            what = f"{found} belongs to another project"
        else:
            continue
        raise InputError(
            f"package {name}: {what}; expected {expected} of intl-bench; "
            "install intl-bench from source in a new virtual environment"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
