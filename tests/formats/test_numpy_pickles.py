"""Arrays in pickles: those of NumPy are read as they are, and damaged ones cannot crash NumPy."""

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intl_bench.core.errors import InputError
from transfer.formats import safe_load

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other byte order": np.arange(3, dtype=">i4"),
    "one number": np.array(2.5),
    "scalar": np.float64(3.5),
    "no numbers": np.zeros((0, 4), np.int64),
    "half": np.ones(3, np.float16),
    "flags": np.array([True, False]),
    "text": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "objects": np.array([1, None, "x"], object),
}


def read(value: Any, path: Path, protocol: int | None) -> Any:
    """Read a value as a pickle, or as a PyTorch file (`protocol` None)."""
    if protocol is None:
        torch.save({"w": torch.zeros(1), "value": value}, path)
    else:
        path.write_bytes(pickle.dumps({"w": torch.zeros(1).numpy(), "value": value}, protocol=protocol))
    return safe_load.read(path).data["value"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, None])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read_as_numpy_has_written_them(name: str, protocol: int | None, tmp_path: Path) -> None:
    found, expected = read(ARRAYS[name], tmp_path / "x.pkl", protocol), ARRAYS[name]
    assert found.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")  # which NumPy may change
    np.testing.assert_array_equal(found, expected)


class Stored:
    """Pickles as an array with any state."""

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return (*np.zeros(0).__reduce__()[:2], self.state)


FLOAT = np.dtype("f4")
STATES = {
    "too few bytes": (1, (4,), FLOAT, False, bytes(8)),
    "too many bytes": (1, (1,), FLOAT, False, bytes(8)),
    "a negative size": (1, (-1,), FLOAT, False, bytes(4)),
    "a size that overflows": (1, (2**62, 4), FLOAT, False, bytes(4)),
    "a size that is no number": (1, ("a",), FLOAT, False, bytes(4)),
    "no shape": (1, None, FLOAT, False, bytes(4)),
    "33 dimensions": (1, (1,) * 33, FLOAT, False, bytes(4)),
    "no type": (1, (1,), None, False, bytes(4)),
    "a list instead of bytes": (1, (1,), FLOAT, False, [1]),
    "bytes instead of objects": (1, (1,), np.dtype(object), False, bytes(8)),
    "too few objects": (1, (2,), np.dtype(object), False, [1]),
    "four parts": (1, (1,), FLOAT, False),
    "no tuple": (),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("protocol", [2, None])
def test_a_state_that_does_not_fit_is_an_error(name: str, protocol: int | None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="array"):
        read(Stored(*STATES[name]), tmp_path / "x.pkl", protocol)


@pytest.mark.parametrize("kind", ["O,O", "f4,f4", "S-1", "x", "f" * 50, "V99999999999"])
def test_a_type_that_is_no_plain_one_is_an_error(kind: str) -> None:
    content = pickle.dumps(FLOAT, 2).replace(
        b"X\x02\x00\x00\x00f4", b"X" + len(kind).to_bytes(4, "little") + kind.encode()
    )
    with pytest.raises(pickle.UnpicklingError, match="an array of the type"):
        safe_load._Unpickler(io.BytesIO(content), encoding="latin1").load()


FUZZ = """
import pickle, random, sys
from pathlib import Path
import numpy as np
from intl_bench.core.errors import InputError
from transfer.formats import safe_load
PARTS = [b"", b"N", b"K\\x00", b"\\xff" * 4, b"f8", b"]", b"O"]
draw, path = random.Random(int(sys.argv[1])), Path("x.pkl")
for number in range(400):
    array = draw.choice([np.ones((2, 3), "f4"), np.array(["a"]), np.array([1, None], object), np.float64(1)])
    content = bytearray(pickle.dumps({"a": array}, protocol=draw.choice([2, 4, 5])))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(2, len(content))
        content[at : at + draw.choice([0, 1, 1, 4])] = draw.choice(PARTS)
    path.write_bytes(content)
    try:
        str(safe_load.read(path).data)
    except InputError:
        pass
"""


def test_damaged_arrays_do_not_crash_the_process(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "0"], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
