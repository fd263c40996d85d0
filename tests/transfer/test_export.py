"""`intl-bench export`: each library loads its file by the lines of the card, and the card says what is known."""

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layout_cases import prefixed, random_state

from intl_bench import evaluate, pretrain, tables
from intl_bench.cli import main
from intl_bench.core.errors import InputError
from intl_bench.export.bundle import export
from intl_bench.records import RecordStore
from pretrain.backbone import BackboneConfig, build_backbone
from pretrain.recipe import decides_the_same, load_recipe
from transfer.convert import read

IMPORTS = {"torchvision": "torchvision", "timm": "timm", "Detectron2": "detectron2", "intl-bench": "pretrain"}


def blocks(folder: Path) -> dict[str, str]:
    """Return {library: its lines} of the card."""
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    return dict(re.findall(r"\*\*([\w-]+)\*\*\n\n```python\n(.*?)```", card, flags=re.DOTALL))


@torch.inference_mode()
def features(model: torch.nn.Module) -> torch.Tensor:
    found = model.eval()(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return found["res5"].mean((2, 3)) if isinstance(found, dict) else found  # Detectron2 gives maps


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("resnet18", "imagenet"),
        ("resnet18", "cifar"),
        pytest.param("resnet50", "imagenet", marks=pytest.mark.slow),
    ],
)
def test_each_library_loads_its_file_by_the_lines_of_the_card(
    name: str, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state(name, stem=stem)
    intl = prefixed("module.backbone.", state) | {"module.projection.0.weight": torch.ones(2, 2)}
    torch.save({"state_dict": intl}, path := tmp_path / "a.pth.tar")
    out = tmp_path / "out"
    export(path, out, results=tmp_path)
    assert read(out / "model.safetensors").architecture == BackboneConfig(name=name, stem=stem)
    model = build_backbone(name, stem=stem)
    model.load_state_dict(state)
    right = features(model)
    found = blocks(out)
    assert list(found) == ["safetensors", "torchvision", "timm", *["Detectron2"] * (stem == "imagenet"), "intl-bench"]
    monkeypatch.chdir(out)
    for library, module in IMPORTS.items():
        if library in found and importlib.util.find_spec(module) is not None:
            values: dict[str, Any] = {}
            exec(found[library], values)
            assert (features(values["model"]) - right).abs().max() <= 1e-5 * right.abs().max(), library


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run and two records of it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        checkpoint = pretrain("demo", epochs=1, batch_size=32, data={"size": 160}, seed=3)
        evaluate(checkpoint, "knn")
        evaluate(checkpoint, "knn", distance="cosine")
    return folder


def test_the_card_of_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(run)
    assert main(["export", "runs/pretrain/demo/seed3", "--license", "CC-BY-4.0"]) == 0
    out = run / "exports" / "demo-seed3"
    assert "2 records of these weights" in capsys.readouterr().out
    card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    for text in (
        "license: CC-BY-4.0",
        "torchvision, timm and Detectron2 have no resnet10",
        "shapes: 160 images",
        "knn5",
    ):
        assert text in card
    assert card.startswith("---\n")
    assert "# resnet10_narrow, pre-trained with INTL on shapes, seed 3" in card
    assert str(run) not in "".join(path.read_text() for path in out.glob("*.[jym]*"))  # no path of this machine

    # What the folder holds is what the run made.
    done = read(out / "model.safetensors")
    trained = read(run / "runs/pretrain/demo/seed3/checkpoint.pt")
    assert done.pretraining() == trained.pretraining()
    assert done.weights_sha256 in card
    again = load_recipe(str(out / "recipe.yaml"))
    assert trained.recipe is not None
    assert decides_the_same(again, trained.recipe)
    table = tables(out, measured_only=True, format="csv")
    assert "INTL" in table
    assert table == tables(run / "results", measured_only=True, format="csv")
    assert subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=out, capture_output=True).returncode == 0
    listed = {line.split()[-1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert there == listed | {"MODEL_CARD.md", "SHA256SUMS"}

    # A second export needs --fresh and gives the same bytes.
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["export", "runs/pretrain/demo/seed3", "--license", "CC-BY-4.0"]) == 2
    assert "an export is there already; add --fresh" in capsys.readouterr().err
    assert main(["export", "runs/pretrain/demo/seed3", "--license", "CC-BY-4.0", "--fresh"]) == 0
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_commands_of_the_card_repeat_the_scores(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(run)
    export(Path("runs/pretrain/demo/seed3"), tmp_path / "out")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in re.findall(r"^    (intl-bench .*)$", card, flags=re.MULTILINE)]
    assert [words[0] for words in commands] == ["pretrain", "knn", "knn"]
    monkeypatch.chdir(tmp_path)
    assert [main(words) for words in commands] == [0, 0, 0]
    first, again = (
        {record.key: record.metrics for record in RecordStore(folder / "results" / "records").load()}
        for folder in (run, tmp_path)
    )
    assert len(first) == 2
    assert first == again


def test_the_commands_of_the_card_name_no_place_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {
        f"{split}_x": np.random.default_rng(seed).integers(0, 255, (40, 8, 8, 3), np.uint8)
        for seed, split in enumerate(("train", "test"))
    }
    labels = {f"{split}_y": np.arange(40) % 4 for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays, **labels)
    torch.save(random_state("resnet10_narrow"), path := tmp_path / "a.pt")
    evaluate(path, "knn", results=tmp_path / "results", data={"kind": "npz", "root": str(tmp_path / "mine.npz")})
    export(path, tmp_path / "out", results=tmp_path / "results")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (intl-bench .*)$", card, flags=re.MULTILINE)
    assert shlex.split(line)[:3] == ["intl-bench", "knn", "model.safetensors"]
    assert {"data.kind=npz", "data.name=mine", "data.root=PATH"} < set(shlex.split(line))
    assert "not one of intl-bench" in card
    assert str(tmp_path) not in card


def test_records_of_other_weights_are_never_touched(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    torch.save(random_state("resnet10_narrow"), other := tmp_path / "b.pt")
    before = sorted(path for path in (run / "results").rglob("*"))
    with pytest.raises(InputError, match=r"a record of other weights; give another folder than results"):
        export(other, Path("results"))
    assert before == sorted(path for path in (run / "results").rglob("*"))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}.*folder"):
        export(tmp_path)


def test_what_is_not_known_about_a_foreign_file_is_said(tmp_path: Path) -> None:
    state = random_state("resnet10_narrow", stem="cifar")
    torch.save({"backbone": {"state": state}, "head": {"|bar`": 1}}, path := tmp_path / "a.pt")
    done = export(path, tmp_path / "out", results=tmp_path)
    card = (done.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for text in (
        "data, recipe, seed: unknown",
        "has not named a license",
        "None was measured",
        "Beware: keys tell neither",
    ):
        assert text in card
    assert not list(done.folder.glob("*.pth"))
    assert json.loads((done.folder / "model.safetensors.json").read_text())["backbone"]["stem"] == "cifar"
