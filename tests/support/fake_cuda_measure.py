"""Measures the cases of `fake_cuda_cases` in a process of its own.

    python tests/support/fake_cuda_measure.py            # prints all numbers by place, as JSON
    python tests/support/fake_cuda_measure.py NAME ...   # of the cases alone whose names begin so, for people
    python tests/support/fake_cuda_measure.py --write    # writes tests/golden/device_counts.json

The file holds for each case its operations and its waits, by file, for lines move.
tests/end_to_end/test_fake_cuda.py compares.
"""

import importlib.util
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import places
import torch
import torchvision
from fake_cuda import CUDA, FakeCuda, Unsupported
from fake_cuda_cases import CASES

from intl_bench.core.copies import fetch, send
from intl_bench.core.errors import InputError

COMMITTED = places.GOLDEN / "device_counts.json"
# With these the fake has been seen to work, so that it is an error if it does not; elsewhere it is a reason to skip.
SEEN = ("2.11.", "2.14.", "2.15.")

Kind = Callable[[torch.Tensor], Any]


def _mixed(x: torch.Tensor) -> None:
    """Raises unless tensors of the CPU and of the GPU in one operation are an error."""
    try:
        x + torch.ones(4, 4)
    except RuntimeError:
        return
    raise AssertionError("the CPU's tensor met the GPU's")


def _half(x: torch.Tensor) -> None:
    """Raises unless autocast and autograd do what they do on a GPU."""
    weight = torch.nn.Parameter(x)
    with torch.autocast("cuda", torch.bfloat16):
        product = x @ weight
        entropy = product.softmax(1)
    assert (product.dtype, entropy.dtype) == (torch.bfloat16, torch.float32)
    entropy.square().sum().backward()
    assert weight.grad is not None
    assert (weight.grad.dtype, weight.grad.device) == (torch.float32, CUDA)


# What each costs on a GPU: operations, waits, and the code; the argument is (4, 4) float32, on it.
KINDS: dict[str, tuple[int, int, Kind]] = {
    "arithmetic": (2, 0, lambda x: x * 2 + x),
    "views": (0, 0, lambda x: x.T[1:].unflatten(1, (2, 2)).unbind()),
    "factory": (1, 0, lambda x: torch.zeros(3, device=CUDA)),
    "allocation": (0, 0, lambda x: torch.empty(3, device=CUDA)),
    "number on the CPU": (1, 0, lambda x: x * torch.tensor(2.0)),
    "send": (1, 0, lambda x: send(torch.ones(3), CUDA)),
    "send a part": (1, 0, lambda x: torch.ones(3).pin_memory()[1:].to(CUDA, non_blocking=True)),
    "fetch": (1, 0, lambda x: fetch(x)),
    "fetch and read": (1, 1, lambda x: fetch(x).read()),
    "to where it is": (0, 0, lambda x: x.to(CUDA)),
    "masked_fill": (2, 0, lambda x: x.masked_fill(x > 0, 1)),
    "number by a mask": (2, 0, lambda x: x.__setitem__(x > 0, 1.0)),
    "number for a row": (1, 0, lambda x: x.__setitem__(0, 1.0)),
    "repeat to a known size": (3, 0, lambda x: x.repeat_interleave(torch.arange(4, device=CUDA), 0, output_size=6)),
    "random": (1, 0, lambda x: torch.randperm(4, generator=torch.Generator(CUDA).manual_seed(0), device=CUDA)),
    "autocast and autograd": (15, 0, _half),
    "another device": (0, 0, _mixed),
    "lists": (2, 0, lambda x: torch._foreach_mul_([x] * 120, 2)),
    "lists by lists": (2, 0, lambda x: torch._foreach_add_([x] * 120, [x] * 120)),
    "lists by numbers": (5, 0, lambda x: torch._foreach_mul_(list(x), list(x[0] * 2))),
    "item": (0, 1, lambda x: x[0, 0].item()),
    "float": (0, 1, lambda x: float(x[0, 0])),
    "branch": (2, 1, lambda x: bool((x > 0).any())),
    "tolist": (1, 1, lambda x: x.tolist()),
    "cpu": (1, 1, lambda x: x.cpu()),
    "copy_ to the host": (1, 1, lambda x: torch.empty(4, 4).copy_(x)),
    "nonzero": (1, 1, lambda x: x.nonzero()),
    "where": (2, 1, lambda x: torch.where(x > 0)),
    "boolean index": (2, 1, lambda x: x[x > 0]),
    "assignment by a mask": (3, 1, lambda x: x.__setitem__(x > 0, x.flatten()[:7] * 2)),
    "the device's number by a mask": (2, 1, lambda x: x.__setitem__(x > 0, x[0, 0])),
    "masked_fill with the device's number": (2, 1, lambda x: x.masked_fill(x > 0, x[0, 0])),
    "number for an element": (1, 1, lambda x: x.__setitem__((0, 0), 1.0)),
    "masked_select": (2, 1, lambda x: x.masked_select(x > 0)),
    "unique": (1, 1, lambda x: x.unique()),
    "equal": (1, 1, lambda x: torch.equal(x, x)),
    "repeat_interleave": (3, 1, lambda x: x[:, 0].repeat_interleave(torch.arange(4, device=CUDA))),
    "pageable memory": (1, 1, lambda x: torch.ones(3).to(CUDA, non_blocking=True)),
    "blocking copy": (1, 1, lambda x: torch.ones(3).pin_memory().to(CUDA)),
    "copy_ to the device": (1, 1, lambda x: x.copy_(torch.ones(4, 4))),
    "values": (1, 1, lambda x: torch.tensor([1.0, 2.0], device=CUDA)),
    "new_tensor": (1, 1, lambda x: x.new_tensor([1.0, 2.0])),
    "list as index": (2, 1, lambda x: x[[0, 1]]),
    "index on the CPU": (1, 1, lambda x: x[torch.tensor([0, 1])]),
    "nms": (3, 1, lambda x: torchvision.ops.nms(x.abs().cumsum(1), x[:, 0], 0.5)),
    "cholesky": (3, 1, lambda x: torch.linalg.cholesky(torch.eye(4, device=CUDA))),
    "eigh": (1, 1, lambda x: torch.linalg.eigh(x)),
    "synchronize": (0, 1, lambda x: torch.cuda.synchronize()),
}


def kinds(fake: FakeCuda) -> dict[str, list[int]]:
    """Operations and waits of `KINDS`."""
    counted = {}
    for name, (_, _, code) in KINDS.items():
        x = torch.arange(-8.0, 8.0).view(4, 4).to(CUDA)
        fake.counts.clear()
        code(x)
        counted[name] = [fake.counts.operations.total(), fake.counts.waits.total()]
    return counted


def measure(fake: FakeCuda, name: str) -> dict[str, Any]:
    """One case's operations and waits by place, how many parameters are trained, and which of them have no float32
    gradient; or why it failed."""
    fake.counts.clear()
    try:
        trained = CASES[name](fake)
    except Exception as error:
        if isinstance(error, InputError) and importlib.util.find_spec("lightly") is None:
            return {"skipped": str(error)}
        return {"error": traceback.format_exc()}
    parameters = () if trained is None else trained.named_parameters()
    gradients = {name: value.grad for name, value in parameters if value.requires_grad}
    return {
        "operations": dict(fake.counts.operations.most_common()),
        "waits": dict(fake.counts.waits.most_common()),
        "trained": len(gradients),
        "wrong": [name for name, gradient in gradients.items() if gradient is None or gradient.dtype != torch.float32],
    }


def committed_form(measured: dict[str, Any]) -> dict[str, Any]:
    """A case as the committed file has it: operations in all, and waits by file."""
    waits = Counter[str]()
    for place, count in measured["waits"].items():
        waits[place.split(":")[0]] += count
    return {"operations": sum(measured["operations"].values()), "waits": dict(sorted(waits.items()))}


def measure_all(beginnings: list[str]) -> dict[str, Any]:
    """`KINDS` and the cases whose names begin so; or why nothing can be measured here."""
    names = [name for name in CASES if name.startswith(tuple(beginnings) or "")]
    try:
        with FakeCuda.installed() as fake:
            counted = kinds(fake)
            return {"kinds": counted, "cases": {name: measure(fake, name) for name in names}}
    except Exception as error:
        if isinstance(error, Unsupported) or not torch.__version__.startswith(SEEN):
            return {"unsupported": f"PyTorch {torch.__version__}: {error}"}
        raise


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # features are kept in the working directory
        measured = measure_all([name for name in arguments if name != "--write"])
    if "--write" not in arguments:
        print(json.dumps(measured, indent=1))
        return
    wrong = {name: case for name, case in measured["cases"].items() if "operations" not in case}
    if wrong:
        sys.exit("\n".join(f"{name}: {case}" for name, case in wrong.items()))
    numbers = {name: committed_form(case) for name, case in measured["cases"].items()}
    COMMITTED.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
