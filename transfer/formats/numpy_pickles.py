"""Stand-ins for what pickles ask of NumPy, which check the values first: NumPy trusts them, and can crash.

They take what NumPy itself writes. The fields of structured types are dropped; their bytes stay.
"""

import math
import pickle
import re
import sys
from typing import Any

import numpy as np

_KIND = re.compile(r"[<>|=]?[?biufcSUVOmM]\d{0,9}|[?bBhHiIlLqQefdgFDGSUVOmM]")


class DType:
    """Stands in for `numpy.dtype`: it holds the type, whose byte order comes with the state."""

    def __init__(self, text: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(text, str) or not _KIND.fullmatch(text):
            raise pickle.UnpicklingError(f"an array of the type {str(text)[:40]!r}; expected numbers, such as f4")
        try:
            self.type: np.dtype[Any] = np.dtype(text)
        except (TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"an array of the type {text!r}: {error}") from error

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


class Array(np.ndarray):
    """Stands in for `numpy.ndarray`: an empty array until its state is known."""

    def __new__(cls, *_: Any, **__: Any) -> "Array":
        raise pickle.UnpicklingError("an array without values; expected one that NumPy has written")

    def __setstate__(self, state: Any, /) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array with a damaged state; expected its shape, type and values")
        _, shape, dtype, is_fortran, content = state
        kind, content = _checked(shape, dtype, content)
        super().__setstate__((1, shape, kind, bool(is_fortran), content))  # type: ignore[arg-type]


def _checked(shape: Any, dtype: Any, content: Any) -> tuple[np.dtype[Any], bytes | list[Any]]:
    """Return the type and the values of an array if they belong together.

    Raises:
        pickle.UnpicklingError: they do not.
    """
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    sizes = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or not isinstance(dtype, DType):
        raise pickle.UnpicklingError(f"an array of the shape {str(shape)[:60]}; expected whole numbers")
    count, kind = math.prod(shape), dtype.type
    objects = kind.kind == "O"
    if not isinstance(content, list if objects else bytes | bytearray):
        raise pickle.UnpicklingError(f"an array with values of the type {type(content).__name__}; expected bytes")
    if len(content) != count * (1 if objects else kind.itemsize):
        raise pickle.UnpicklingError(
            f"an array of the shape {shape} and {len(content)} bytes; expected {count * kind.itemsize}"
        )
    if (
        kind.kind == "U"
        and not isinstance(content, list)
        and (np.frombuffer(content, f"{kind.byteorder}u4") > sys.maxunicode).any()
    ):
        raise pickle.UnpicklingError("an array of text with numbers that are no characters")
    return kind, content if objects else bytes(content)


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> Array:
    return np.ndarray.__new__(Array, (0,), np.uint8)


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    """Return an array of protocol 5, as `numpy.core.numeric._frombuffer` does."""
    kind, content = _checked(shape, dtype, content)
    if axis_order is not None or order not in ("C", "F") or isinstance(content, list):
        raise pickle.UnpicklingError(f"an array in the order {str(order)[:20]}; expected C or F")
    return np.frombuffer(content, kind).reshape(shape, order=order)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    kind, content = _checked((), dtype, content)
    return content[0] if isinstance(content, list) else np.frombuffer(content, kind)[0]


def _no_bytes(*arguments: Any) -> bytes:
    """Return the values of an array without values, which pickles of protocol 2 write as a call of `bytes`."""
    if arguments:
        raise pickle.UnpicklingError(f"a call of bytes({str(arguments)[1:40]}; expected bytes as they are")
    return b""


STAND_INS: dict[str, Any] = {
    **{
        f"numpy.{package}.{name}": function
        for package in ("core", "_core")
        for name, function in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
    "numpy.ndarray": Array,
    "numpy.dtype": DType,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
}
