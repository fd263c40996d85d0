"""Spectra of checkpoints: tiny runs compared with NumPy, the command, values for records, and lines of a plot."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import transfer_cases
from matplotlib.figure import Figure
from PIL import Image

from intl_bench import cli
from intl_bench.core import files
from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator, permutation
from intl_bench.spectra import compare, measure
from intl_bench.spectra.measure import Spectra, measure_run
from intl_bench.spectra.values import curve, record_values
from pretrain import spectrum, states, train
from pretrain.checkpoint import Preprocessing
from pretrain.images.data import IMAGENET_NORMALIZATION, DataConfig, normalization, open_source
from pretrain.images.views import normalize
from pretrain.iternorm import iter_norm
from pretrain.projector import ProjectorConfig, build_projector
from pretrain.recipe import load_recipe
from pretrain.spectrum import compute_spectrum
from transfer import features
from transfer.convert import read

TINY = ["data.size=192", "batch_size=32", "epochs=1", "warmup_epochs=0", "projector.hidden=48", "projector.out=40"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the checkpoints of two runs of one recipe with different seeds."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trained"))
    try:
        return [train.run(load_recipe("demo", [*TINY, f"seed={seed}"])).resolve() for seed in (0, 1)]
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a ResNet-18 as torchvision's code would save it."""
    path = tmp_path_factory.mktemp("foreign") / "resnet18.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def outputs(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute features and embedding of the 48 test images in their own order, without `intl_bench.spectra`."""
    config = DataConfig(kind="shapes", name="shapes", size=192)
    pixels = torch.from_numpy(np.stack([open_source(config, "test").image(i) for i in range(48)]))
    images = normalize(pixels.permute(0, 3, 1, 2).float() / 255, *normalization(config))
    projector = build_projector(256, ProjectorConfig(hidden=48, out=40))
    state, _ = states.load(path)
    prefix = "projector."
    projector.load_state_dict({k.removeprefix(prefix): v for k, v in state["method"].items() if k.startswith(prefix)})
    with torch.no_grad():
        found = features.build_backbone_of(read(path)).eval()(images)
        return found, projector.eval()(found)


def numpy_eigenvalues(z: torch.Tensor) -> np.ndarray:
    return np.linalg.eigvalsh(np.cov(z.double().numpy(), rowvar=False))[::-1]


def test_measures_what_numpy_does(trained: list[Path]) -> None:
    measured = measure_run(trained[0])
    backbone, embedding = outputs(trained[0])
    order = torch.from_numpy(permutation(0, "spectrum", 0, 48))
    white = iter_norm(embedding[order[:32]])
    assert measured.label == "INTL (demo, seed 0, epoch 1)"
    assert measured.dataset == "shapes"
    assert list(measured.spectra) == ["features", "embedding", "transformed"]
    expected = {"features": (backbone, 47), "embedding": (embedding, 40), "transformed": (white, 31)}
    for name, (matrix, count) in expected.items():
        one = measured.spectra[name]
        assert (one.samples, one.dimension) == tuple(matrix.shape)
        values = numpy_eigenvalues(matrix)[:count]
        np.testing.assert_allclose(one.eigenvalues, values, rtol=1e-3, atol=1e-5 * values[0], err_msg=name)


def test_some_images_and_another_batch(trained: list[Path]) -> None:
    measured = measure_run(trained[0], images=20, batch=12)
    assert [one.samples for one in measured.spectra.values()] == [20, 20, 12]
    _, embedding = outputs(trained[0])
    chosen = permutation(0, "spectrum", 0, 48)[:20]
    values = numpy_eigenvalues(embedding[torch.from_numpy(chosen)])[:19]
    np.testing.assert_allclose(measured.spectra["embedding"].eigenvalues, values, rtol=1e-3, atol=1e-5 * values[0])


def test_the_same_twice(trained: list[Path]) -> None:
    first, second = (measure_run(trained[0]).spectra for _ in range(2))
    assert all(torch.equal(first[name].eigenvalues, second[name].eigenvalues) for name in first)


def test_a_method_without_a_transform() -> None:
    """The embedding of the method `supervised` has one logit for each class of the data set."""
    path = train.run(load_recipe("demo", [*TINY, "method={name: supervised}"]))
    measured = measure_run(path)
    assert measured.label.startswith("Supervised (")
    assert {name: one.dimension for name, one in measured.spectra.items()} == {"features": 256, "embedding": 10}


def test_a_momentum_target_does_not_matter() -> None:
    path = train.run(load_recipe("demo", [*TINY, "method.momentum_target=true"]))
    _, embedding = outputs(path)
    values = numpy_eigenvalues(embedding)
    found = measure_run(path).spectra["embedding"].eigenvalues
    np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-5 * values[0])


def test_side_by_side(trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["spectrum", *map(str, trained), "--out", "some/plot.png", "--images", "40"]) == 0
    out, err = capsys.readouterr()
    assert err == "plot: some/plot.png\n"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| INTL")]
    assert [row[0] for row in rows] == [f"INTL (demo, seed {seed}, epoch 1)" for seed in (0, 1) for _ in range(3)]
    assert [row[1] for row in rows] == ["features", "embedding", "transformed"] * 2
    assert [row[2] for row in rows[:3]] == ["40 x 256", "40 x 40", "32 x 40"]
    numbers = measure_run(trained[1], images=40).spectra["embedding"].numbers()
    assert rows[4][3] == f"{numbers['rank']:.1f} of 40"
    assert rows[4][4:7] == [
        f"{numbers['alpha']:.2f}",
        f"{numbers['condition']:.3g}",
        f"{numbers['inverse_condition']:.2g}",
    ]
    assert rows[4][-1] == spectrum.kind(numbers, 40)
    assert "RankMe is below 10% of the largest possible" in out
    picture = Image.open("some/plot.png")
    assert picture.format == "PNG"
    assert min(picture.size) > 400


def test_formats(trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["spectrum", str(trained[0]), "--format", "csv"]) == 0
    table = capsys.readouterr().out
    Path("table.csv").write_text(table)
    frame = pd.read_csv("table.csv")
    assert list(frame["of"]) == ["features", "embedding", "transformed"]
    expected = measure_run(trained[0]).spectra["embedding"].numbers()
    for name, value in expected.items():
        assert frame[name][1] == pytest.approx(value, rel=1e-9), name

    assert cli.main(["spectrum", str(trained[0]), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[1]["alpha"] == pytest.approx(expected["alpha"])
    assert rows[1]["curve"]["count"] == len(rows[1]["curve"]["eigenvalues"]) == 40


def test_checkpoints_of_others_have_features(
    trained: list[Path], foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line names the data set, which is then used for all checkpoints."""
    words = ["data.kind=shapes", "data.size=96", str(foreign), str(trained[0])]
    assert cli.main(["spectrum", *words, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["of"], row["samples"], row["dimension"]) for row in rows] == [
        ("features", 24, 512),
        ("features", 24, 256),
        ("embedding", 24, 40),
        ("transformed", 24, 40),
    ]
    assert rows[0]["checkpoint"] == "torchvision names (resnet18.pth)"
    config = DataConfig(kind="shapes", size=96)
    pixels = torch.from_numpy(np.stack([open_source(config, "test").image(i) for i in range(24)]))
    model = torchvision.models.resnet18()
    model.load_state_dict(torch.load(foreign))
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        theirs = model.eval()(normalize(pixels.permute(0, 3, 1, 2).float() / 255, *IMAGENET_NORMALIZATION))
    assert rows[0]["trace"] == pytest.approx(numpy_eigenvalues(theirs).sum(), rel=1e-4)


def test_an_exported_backbone_has_the_features_of_its_run(trained: list[Path]) -> None:
    exported = measure.measure_checkpoint(trained[0].with_name("backbone.safetensors"))
    assert list(exported.spectra) == ["features"]
    own = measure.measure_checkpoint(trained[0])
    torch.testing.assert_close(exported.spectra["features"].eigenvalues, own.spectra["features"].eigenvalues)


def test_photos_are_resized_and_cropped_to_the_size_of_the_views(
    trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of 32: shorter side 37, the middle 32 x 32."""
    root = transfer_cases.make_folder(tmp_path / "photos", classes=2, test=3, side=50)
    seen: list[tuple[int, int | None, int | None]] = []
    real = measure.evaluation_batches

    def noted(source, *, resize, crop, **others):  # type: ignore[no-untyped-def]
        seen.append((len(source), resize, crop))
        return real(source, resize=resize, crop=crop, **others)

    monkeypatch.setattr(measure, "evaluation_batches", noted)
    measured = measure_run(trained[0], overrides=["data.kind=imagefolder", f"data.root={root}"])
    assert seen == [(6, 37, 32)]
    assert measured.dataset == "photos"
    assert measured.spectra["features"].samples == 6


def test_another_kind_of_data_keeps_only_the_normalization() -> None:
    """Mean and standard deviation of pixels are those of the checkpoint."""
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    stored = DataConfig(kind="npz", name="cifar10", root="a.npz", mean=mean, std=std)
    same = measure.data_config(stored, None, ["data.kind=npz", "data.root=b.npz"])
    assert (same.name, same.root, same.mean) == ("cifar10", "b.npz", mean)
    other = measure.data_config(stored, None, ["data.kind=shapes"])
    assert (other.name, other.root, other.mean, other.std) == (None, "", mean, std)
    foreign = measure.data_config(None, Preprocessing(mean=mean, std=std), ["data.kind=shapes", "data.std=[1,1,1]"])
    assert (foreign.mean, foreign.std) == (mean, (1.0, 1.0, 1.0))


def make(name: str = "embedding", m: int = 400, d: int = 300, decay: float = 1.0) -> Spectra:
    z = torch.from_numpy(generator(0, "test_spectra").standard_normal((m, d)))
    one = compute_spectrum(z * torch.arange(1, d + 1, dtype=torch.float64) ** -decay)
    return Spectra(path=Path("a.pt"), label="A", dataset="shapes", spectra={name: one})


def diverged() -> Spectra:
    return Spectra(
        path=Path("b.pt"),
        label="B",
        dataset="shapes",
        spectra={
            "embedding": compute_spectrum(torch.full((8, 4), 2.0)),
            "transformed": compute_spectrum(torch.full((8, 4), math.nan)),
        },
    )


def test_records_hold_percentages_and_a_curve() -> None:
    measured = make()
    one = measured.spectra["embedding"]
    metrics, details = record_values(measured)
    assert metrics == {
        "embedding/rank": pytest.approx(100 * one.numbers()["rank"] / 300),
        "embedding/inverse_condition": pytest.approx(one.numbers()["inverse_condition"]),
        "embedding/log10_condition": pytest.approx(math.log10(one.numbers()["condition"])),
        "embedding/std": pytest.approx(one.std),
    }
    kept = json.loads(json.dumps(details, allow_nan=False))["spectra"]["embedding"]
    assert kept["collapse"] == "none"
    assert kept["numbers"]["alpha"] == pytest.approx(one.numbers()["alpha"])
    assert (kept["samples"], kept["dimension"], kept["count"]) == (400, 300, 300)
    ranks = kept["ranks"]
    assert len(ranks) == len(set(ranks)) == len(kept["eigenvalues"]) <= 256
    assert ranks[:30] == list(range(1, 31))
    assert ranks[-1] == 300
    assert kept["eigenvalues"] == one.eigenvalues[torch.tensor(ranks) - 1].tolist()


def test_a_full_rank_is_a_hundred_percent() -> None:
    identity = torch.eye(64, dtype=torch.float64)
    z = torch.cat([identity, -identity])
    measured = Spectra(path=Path("a.pt"), label="A", dataset="shapes", spectra={"embedding": compute_spectrum(z)})
    assert measured.spectra["embedding"].numbers()["rank"] > 64
    metrics, _ = record_values(measured)
    assert metrics["embedding/rank"] == 100
    assert metrics["embedding/inverse_condition"] == pytest.approx(1)


def test_records_of_spectra_that_are_not_finite() -> None:
    metrics, details = record_values(diverged())
    assert metrics.keys() == {"embedding/rank", "embedding/std", "embedding/inverse_condition"}
    assert metrics["embedding/inverse_condition"] == metrics["embedding/std"] == 0
    kept = json.loads(json.dumps(details, allow_nan=False))["spectra"]
    assert kept["embedding"]["collapse"] == "complete"
    assert kept["transformed"]["collapse"] == "undefined"
    assert kept["transformed"]["eigenvalues"] == kept["transformed"]["ranks"] == []
    assert kept["transformed"]["numbers"]["rank"] is None
    assert "| B            | transformed" in compare.table([diverged()], "markdown")
    assert compare.draw([make(), diverged()]).startswith(b"\x89PNG")


def test_the_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = compare.table([make(), diverged()], "text")
    assert max(map(len, text.splitlines())) <= 80
    assert "|" not in text
    assert len([line for line in text.splitlines() if line.startswith("- ")]) == 3  # all notes
    assert text.endswith("of their mean.\n")


def test_lines_of_a_plot() -> None:
    axes = Figure().subplots()
    steep = make(decay=7.0)
    curves = {
        "steep": curve(steep.spectra["embedding"]),
        "diverged": curve(diverged().spectra["transformed"]),
    }
    lines = compare.plot(axes, curves)
    assert [line.get_label() for line in lines] == ["steep", "diverged (not finite)"]
    values = steep.spectra["embedding"].eigenvalues.numpy()
    ranks, drawn = lines[0].get_data()
    expected = values[np.array(ranks) - 1] / values.mean()
    floor = 1e-10 * expected[0]
    np.testing.assert_allclose(drawn, np.maximum(expected, floor))
    assert (expected < floor).any()
    assert [text.get_text() for text in axes.texts] == [f"at {floor:.0e}: this value or less"]
    assert axes.get_yscale() == axes.get_xscale() == "log"

    axes = Figure().subplots()
    (line,) = compare.plot(axes, {"flat": curve(make(decay=0).spectra["embedding"])}, relative=False)
    assert line.get_ydata()[0] == pytest.approx(float(make(decay=0).spectra["embedding"].eigenvalues[0]))
    assert not axes.texts


def test_equal_labels_get_their_paths(trained: list[Path]) -> None:
    copy = Path("copy.pt")
    copy.write_bytes(trained[0].read_bytes())
    labels = list(compare.labeled([measure_run(path) for path in (trained[0], copy, trained[1])]))
    assert labels == [
        f"INTL (demo, seed 0, epoch 1) {trained[0]}",
        "INTL (demo, seed 0, epoch 1) copy.pt",
        "INTL (demo, seed 1, epoch 1)",
    ]


def damaged(path: Path, change: str) -> str:
    """Write a damaged copy of a checkpoint; return its path."""
    state, _ = states.load(path)
    weights = state["method"]
    if change == "no projector":
        state["method"] = {key: value for key, value in weights.items() if not key.startswith("projector.")}
    elif change == "narrower":
        state["config"]["projector"]["out"] = 20
    elif change == "nan":
        weights["projector.6.bias"][3] = math.nan
    elif change == "overflow":
        weights["projector.6.bias"][:] = 3e38
        weights["projector.0.weight"][:] = 3e38
    elif change == "unknown key":
        state["config"]["epoch"] = 3
    files.write_digested(Path("damaged.pt"), lambda stream: torch.save(state, stream))
    return "damaged.pt"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no projector", "it has no projector"),
        ("narrower", "size mismatch for projector.6.weight"),
        ("nan", "projector.6.bias is not finite: the weights are damaged or diverged"),
        ("overflow", "its embedding has values that are not finite"),
        ("unknown key", "unknown key 'epoch'"),
    ],
)
def test_damaged_checkpoints(trained: list[Path], capsys: pytest.CaptureFixture[str], change: str, reason: str) -> None:
    assert_refused(["spectrum", damaged(trained[0], change)], f"damaged.pt.*{reason}", capsys)


def assert_refused(words: list[str], pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a command ends with exit code 2, one line on stderr and no plot."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("intl-bench: ")]
    assert len(lines) == 1
    assert re.search(pattern, lines[0]), lines[0]
    assert not list(Path().rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["missing.pt"], "checkpoint missing.pt: no such file"),
        ([], "no CHECKPOINT; expected at least one"),
        (["OURS", "--images", "1"], "images=1: too few for a spectrum; expected at least 2"),
        (["OURS", "--images", "0"], "images=0: too few for a spectrum; expected at least 2"),
        (["OURS", "data.kind=cifar10", "data.root=nowhere"], "nowhere.*the Python files of cifar10 are missing"),
        (["OURS", "data.kind=npz"], "data.root is not set"),
        (["OURS", "epochs=3"], "override epochs=3: expected data.key=value"),
        (["OURS", "data.sise=64"], "unknown key 'sise'; did you mean size"),
        (["OURS", "--out", "plot.jpg"], "--out plot.jpg: not a PNG file; expected a name that ends in .png"),
        (["OURS", "--format", "latex"], "--format latex: unknown format; choose from text, markdown, csv, json"),
        (["THEIRS"], "data.root is not set"),
        (["THEIRS", "--from", "simclr"], "simclr"),
    ],
)
def test_refusals(
    trained: list[Path], foreign: Path, capsys: pytest.CaptureFixture[str], words: list[str], pattern: str
) -> None:
    named = {"OURS": str(trained[0]), "THEIRS": str(foreign)}
    assert_refused(["spectrum", *(named.get(word, word) for word in words)], pattern, capsys)


def test_the_state_of_a_task_is_not_a_checkpoint(tmp_path: Path) -> None:
    states.save(tmp_path / "state.pt", {"identity": {}, "epoch": 3})
    with pytest.raises(
        InputError, match=r"not a checkpoint of a pre-training run; expected a file such as runs/pretrain"
    ):
        measure_run(tmp_path / "state.pt")


def test_foreign_weights_that_are_not_finite(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(foreign)
    state["layer4.1.bn2.bias"][0] = math.nan
    torch.save(state, "nan.pth")
    assert_refused(
        ["spectrum", "nan.pth", "data.kind=shapes", "data.size=96"],
        "layer4.1.bn2.bias has values that are not finite",
        capsys,
    )


def test_a_batch_that_cannot_be_transformed(trained: list[Path]) -> None:
    with pytest.raises(InputError, match=r"its method cannot transform an embedding of 1 x 40: expected an embedding"):
        measure_run(trained[0], batch=1)
