"""The example in docs/add_a_layout.md works: checkpoints of the new layout are recognized and converted."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import Copy
from layout_cases import random_state, without_counters
from places import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path, "add_a_layout.md")


def documented_test(copy: Copy) -> Any:
    """Import the test file of the page, for its `write`."""
    spec = importlib.util.spec_from_file_location("test_paddle", copy.folder / "tests/formats/test_paddle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_documented_layout_works(copy: Copy) -> None:
    assert copy.added == ["transfer/formats/layouts.py", "tests/formats/test_paddle.py"]
    assert "3 passed" in copy.run("-m", "pytest", "tests/formats/test_paddle.py", "-p", "no:cacheprovider")
    state = random_state("resnet18")
    documented_test(copy).write(state, copy.folder / "resnet18.pdparams")
    printed = copy.run("-m", "intl_bench", "convert", "resnet18.pdparams", "resnet18.pth", "--to", "torchvision")
    assert "resnet18.pdparams: paddle, resnet18 (imagenet stem)" in printed
    assert "fc.bias, StructuredToParameterName@@" in printed or "StructuredToParameterName@@, fc.bias" in printed
    written = torch.load(copy.folder / "resnet18.pth", weights_only=True)
    assert all(torch.equal(written[key], value) for key, value in without_counters(state).items())


@pytest.mark.slow
def test_the_new_layout_does_not_take_the_files_of_others(copy: Copy) -> None:
    (copy.folder / "tests/formats/test_layouts.py").symlink_to(ROOT / "tests/formats/test_layouts.py")
    copy.run("-m", "pytest", "tests/formats/test_layouts.py", "-p", "no:cacheprovider", "-k", "recognized_by_its_keys")
