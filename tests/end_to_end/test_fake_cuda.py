"""What a GPU would be asked for by every step of the project, known without one (see `fake_cuda`).

What has changed on purpose is committed anew with `python tests/support/fake_cuda_measure.py --write`.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from fake_cuda import ROOT
from fake_cuda_cases import CASES
from fake_cuda_measure import COMMITTED, KINDS, SEEN, committed_form
from places import SUPPORT

pytestmark = pytest.mark.slow  # all of them need `measured`
MEASURE = SUPPORT / "fake_cuda_measure.py"
# A step of these is launched without the host ever waiting, in every precision.
NEVER_WAIT = [
    *(f"pretrain {name}" for name in ("intl", "iternorm", "mocov2", "simsiam", "supervised")),
    *(name for name in CASES if name.startswith("INTL ")),
    *("crops", "augmentation", "linear step", "linear step bf16", "finetune step"),
]
# All versions of PyTorch that were tried make the same operations.
SLACK = 1.0 if torch.__version__.startswith(SEEN) else 1.05


@pytest.fixture(scope="session")
def measured() -> dict[str, Any]:
    """All that `fake_cuda_measure` prints, from a process of its own."""
    # A GPU that is there is left alone.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, MEASURE], env=environment, capture_output=True, text=True)
    if done.returncode < 0 and not torch.__version__.startswith(SEEN):
        pytest.skip(f"PyTorch {torch.__version__} does not bear the fake GPU: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    if "unsupported" in result:
        pytest.skip(f"no fake GPU here: {result['unsupported']}")
    return result


def case(measured: dict[str, Any], name: str) -> dict[str, Any]:
    result: dict[str, Any] = measured["cases"][name]
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert "error" not in result, result["error"]
    return result


def listed(counts: dict[str, int], most: int = 40) -> str:
    return "\n".join(f"{count:5d} {place}" for place, count in [*counts.items()][:most])


@pytest.mark.parametrize("name", KINDS)
def test_what_the_fake_counts(measured: dict[str, Any], name: str) -> None:
    operations, waits, _ = KINDS[name]
    assert measured["kinds"][name] == [operations, waits]


@pytest.mark.parametrize("name", CASES)
def test_runs_on_one_device_with_float32_gradients(measured: dict[str, Any], name: str) -> None:
    """A tensor of another device is an error where it meets the others."""
    assert case(measured, name)["wrong"] == []


@pytest.mark.parametrize("name", NEVER_WAIT)
def test_the_host_never_waits(measured: dict[str, Any], name: str) -> None:
    waits = case(measured, name)["waits"]
    assert not waits, f"\n{listed(waits)}"


def test_spectral_waits_for_the_eigenvalues_alone(measured: dict[str, Any]) -> None:
    """`torch.linalg.eigh` reads its own error code, in its CUDA kernel."""
    assert [place.split()[1] for place in case(measured, "pretrain spectral")["waits"]] == ["_linalg_eigh"]


@pytest.mark.parametrize("name", CASES)
def test_waits_and_operations_are_those_committed(measured: dict[str, Any], name: str) -> None:
    result, committed = case(measured, name), json.loads(COMMITTED.read_text())[name]
    now = committed_form(result)
    assert now["waits"] == committed["waits"], f"waits of {name}:\n{listed(result['waits'])}"
    most = committed["operations"] * SLACK
    assert now["operations"] <= most, f"operations of {name}:\n{listed(result['operations'])}"


def test_committed_are_these_cases_alone() -> None:
    assert list(json.loads(COMMITTED.read_text())) == list(CASES)


@pytest.mark.parametrize("name", ["INTL lars fp16", "pretrain barlow_twins"])
def test_lars_is_a_handful_of_launches(measured: dict[str, Any], name: str) -> None:
    """One launch scales each tensor; all else is done for all tensors at once."""
    result = case(measured, name)
    own = {place: count for place, count in result["operations"].items() if place.startswith("pretrain/optim.py")}
    assert 0 < sum(own.values()) <= result["trained"] + 40, f"\n{listed(own)}"
