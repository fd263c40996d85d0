"""`data show`: the picture of labeled images has the views of the run, to the bit."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transfer_cases import make_folder

from intl_bench.cli import main
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.images.views import augment
from pretrain.pictures import draw_views
from pretrain.recipe import load_recipe


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_picture_has_the_views_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(Path("photos"), classes=3, train=4, test=2, side=40)
    assert main(["data", "show", "photos", "--recipe", "own_images", "size=16", "seed=3"]) == 0
    printed = capsys.readouterr().out
    assert printed == (
        "picture: runs/show/photos.png; from the top: the images; epoch 1, view 1; epoch 1, view 2; "
        "epoch 2, view 1; epoch 2, view 2\n"
    )
    with Image.open("runs/show/photos.png") as image:
        shown = np.asarray(image)
    recipe = load_recipe("own_images", ["data.root=photos", "size=16", "seed=3", "batch_size=12"])
    source, mean, std = open_source(recipe.data, "train"), recipe.data.mean, recipe.data.std
    assert mean is not None
    assert std is not None
    height = (len(shown) - 4) // 5
    batch = next(training_batches(source, recipe.views, seed=3, batch_size=12, last_step=1))
    made = [augment(some, rows, mean, std) for some, rows in zip(batch.crops, batch.parameters, strict=True)]
    with Image.open(io.BytesIO(draw_views(made, mean, std))) as image:
        assert np.array_equal(shown[height : 3 * height], np.asarray(image)[: 2 * height])
    assert main(["data", "show", "photos", "--recipe", "own_images", "size=16", "--out", "other.png"]) == 0
    assert Path("other.png").read_bytes() != Path("runs/show/photos.png").read_bytes()


def test_generated_images_and_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "--recipe", "demo", "--out", "demo.png"]) == 0
    assert Path("demo.png").is_file()
    for words, message in (
        (["nowhere"], "nowhere: no such file or folder"),
        ([], "set data.root=PATH"),
        (["--recipe", "nothing"], "config nothing: no such file"),
    ):
        capsys.readouterr()
        assert main(["data", "show", *words]) == 2
        assert message in capsys.readouterr().err
