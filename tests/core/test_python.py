"""The names of `intl_bench` in Python: light, documented, and with errors that say what to write."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from places import ROOT

import intl_bench
from intl_bench.core.errors import InputError
from intl_bench.tables import render


def run(code: str, folder: Path) -> str:
    """Run code in a new process in `folder`; return what it printed."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    printed = run("\n".join(blocks), tmp_path)
    assert re.search(r"^\{'alignment': [\d.]+, 'trace': [\d.]+\}$", printed, flags=re.MULTILINE)
    assert "runs/pretrain/demo/seed0/checkpoint.pt\n" in printed
    assert printed.splitlines()[-1] == "config demo.yaml: unknown key 'epoch'; did you mean epochs?"
    assert "**Table shapes.**" in printed
    assert (tmp_path / "results/records/linear").is_dir()


def test_the_package_is_light_and_its_tables_can_be_called(tmp_path: Path) -> None:
    code = """
import sys, intl_bench
assert sorted(intl_bench.__all__) == [n for n in dir(intl_bench) if n in intl_bench.__all__]
assert not {"torch", "numpy", "pandas"} & set(sys.modules)
csv = intl_bench.tables([], tables=1, format="csv")
import intl_bench.tables as package
from intl_bench.tables import render
assert csv == render([], tables=["1"], format="csv") == package([], tables=["1"], format="csv")
assert "torch" not in sys.modules
"""
    run(code, tmp_path)


def test_every_name_is_documented() -> None:
    for name in set(intl_bench.__all__) - {"__version__"}:
        assert (getattr(intl_bench, name).__doc__ or "").strip(), name
        assert f"`{name}`" in (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    with pytest.raises(AttributeError, match="it has INTLLoss"):
        _ = intl_bench.intl_loss


Z = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
WRONG_LOSSES: dict[str, tuple[Callable[[], object], str]] = {
    "separate views": (
        lambda: intl_bench.INTLLoss()(*Z),
        r"^loss\(z1, z2\): found separate .* write loss\(\[z1, z2\]\)$",
    ),
    "one view": (lambda: intl_bench.INTLLoss()(Z[0]), r"^loss\(z1\): found separate views;"),
    "an iterator": (lambda: intl_bench.INTLLoss()(iter(Z)), "found list_iterator; expected a list"),
    "arrays": (lambda: intl_bench.INTLLoss()([z.numpy() for z in Z]), r"embeddings\[0\]: found ndarray"),
    "integers": (lambda: intl_bench.INTLLoss()([Z[0], Z[1].long()]), r"embeddings\[1\]: found a tensor of torch.int64"),
}


@pytest.mark.parametrize(("call", "message"), WRONG_LOSSES.values(), ids=WRONG_LOSSES)
def test_a_wrong_call_of_the_loss_says_what_to_write(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_stacked_views_are_views() -> None:
    loss = intl_bench.INTLLoss()
    assert torch.equal(loss(torch.stack(Z))["trace"], loss(Z)["trace"])


WRONG_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "recipe": (lambda: intl_bench.pretrain("dem"), "did you mean demo"),
    "setting": (
        lambda: intl_bench.pretrain("demo", data={"siez": 1}),
        "unknown key 'data.siez'; did you mean data.size",
    ),
    "value": (lambda: intl_bench.pretrain("demo", epochs=object()), "found object; expected a number"),
    "task": (lambda: intl_bench.evaluate("a.pt", "kn"), "did you mean 'knn'"),
    "order": (lambda: intl_bench.evaluate("knn", "a.pt"), "the checkpoint comes first: evaluate"),
    "seeds": (lambda: intl_bench.evaluate("a.pt", "knn", seeds=0), "--seeds 0: expected a count"),
    "folder": (lambda: intl_bench.tables("missing"), "no such folder"),
    "table": (lambda: intl_bench.tables([], tables=9), "no such table; choose from 1, 2"),
}


@pytest.mark.parametrize(("call", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_a_wrong_call_names_the_mistake(
    call: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").touch()
    with pytest.raises(InputError, match=message):
        call()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_settings_are_those_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from intl_bench import api
    from pretrain.recipe import Recipe, load_recipe

    given: list[Recipe] = []
    monkeypatch.setattr(api.train, "run", lambda recipe, fresh: given.append(recipe) or recipe.checkpoint)
    views = [{"size": 32}, {"size": 24, "blur_p": 0.5}]
    skip = ("*/a b.jpg", "x")
    data = {"kind": "imagefolder", "root": Path("my images"), "skip": skip, "mean": None}
    api.pretrain("cifar10_r18_intl", base_lr=1e-3, channels_last=False, views=views, data=data, name="0123")
    words = ["base_lr=0.001", "channels_last=false", "views=[{size: 32}, {size: 24, blur_p: 0.5}]", "name=0123"]
    words += ["data.kind=imagefolder", "data.root=my images", 'data.skip=["*/a b.jpg", "x"]', "data.mean=null"]
    assert given == [load_recipe("cifar10_r18_intl", words)]
    assert given[0].data.skip == skip
    assert given[0].name == "0123"


def test_tables_take_a_folder(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    assert intl_bench.tables(tmp_path, tables="voc") == render([], tables=["voc"])
