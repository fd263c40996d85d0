"""`data.limit`: a part of the training images in which every class keeps its share."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_cases import make_folder

from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from pretrain.images import sample
from pretrain.images.data import ArraySource, DataConfig, FileSource, open_source
from pretrain.images.fingerprint import fingerprint
from pretrain.recipe import inherited_data, load_recipe

SHAPES = {"kind": "shapes", "size": 200}


def draw(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return sample.stratified(labels, count, seed=seed, purpose="test", setting="data.limit=x")


@given(st.data())
def test_every_class_keeps_its_share(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = data.draw(st.integers(len(sizes), len(labels)))
    chosen = draw(labels, count)
    assert len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    found, exact = np.bincount(labels[chosen], minlength=len(sizes)), count / len(labels) * np.array(sizes)
    assert (found >= 1).all()
    if (exact >= 1).all():
        assert (np.abs(found - exact) < 2).all()
    if count > len(sizes):
        assert set(draw(labels, count - 1).tolist()) < set(chosen.tolist())


def test_seeds_draw_different_images_and_no_class_is_favored() -> None:
    labels = np.repeat(np.arange(10), 50)
    assert (draw(labels, 20) == draw(labels, 20)).all()
    assert (draw(labels, 20) != draw(labels, 20, seed=1)).any()
    # Of 15 images five classes have two. The mean over 200 seeds is 1.5 for each class, with a deviation of 0.035.
    twice = np.mean([np.bincount(labels[draw(labels, 15, seed)]) for seed in range(200)], axis=0)
    assert np.abs(twice - 1.5).max() < 0.15
    often = np.bincount(np.concatenate([draw(labels, 100, seed) for seed in range(200)]), minlength=500)
    assert often.mean() == 40
    assert 15 < often.min() < often.max() < 65  # the deviation of a count is 5.7


def test_a_limit_holds_for_the_training_images_of_every_kind(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", classes=4, train=10, test=3)
    config = DataConfig(root=str(folder), limit=0.2)
    train, test = (open_source(config, split) for split in ("train", "test"))
    assert isinstance(train, FileSource)
    assert np.bincount(train.labels).tolist() == [2] * 4
    assert len(test) == 12
    assert {Path(train.file(i)).parent.name for i in range(8)} == set(train.class_names)
    whole, part = (open_source(DataConfig(**SHAPES, limit=limit), "train") for limit in (None, 50))
    assert isinstance(whole, ArraySource)
    assert isinstance(part, ArraySource)
    assert (len(whole), len(part)) == (200, 50)
    assert all((whole.images == image).all((1, 2, 3)).any() for image in part.images)


def test_a_limit_is_part_of_the_identity_and_the_default_is_not() -> None:
    assert "limit" not in repr(identity(DataConfig(**SHAPES)))
    assert identity(DataConfig(**SHAPES, limit_seed=3)) == identity(DataConfig(**SHAPES))
    parts = [DataConfig(**SHAPES, limit=limit, limit_seed=seed) for limit, seed in ((50, 0), (0.5, 0), (50, 1))]
    assert len({repr(identity(config)) for config in parts}) == 3
    assert len({fingerprint(open_source(config, "train")) for config in parts}) == 3
    assert load_recipe("cifar10_r18_intl").scale == "paper"
    assert load_recipe("cifar10_r18_intl", ["data.limit=0.1"]).scale == "reduced"
    assert load_recipe("demo", ["data.limit=1000"]).data.limit == 1000
    assert str(load_recipe("demo", ["data.limit=1000"]).data.limit) == "1000"
    assert load_recipe("demo", ["data.limit=0.1", "data.limit=null"]).data.limit is None


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("7", "data.limit=7: means 7 of the 200 images of 10 classes; expected at least 10, an image of each class,"),
        ("201", "data.limit=201: means 201 of the 200 images .* and at most 200$"),
        ("0.001", "data.limit=0.001: means 0 of the 200 images"),
        ("10.5", r"data\.limit=10\.5: expected a share below 1, or a whole number of images"),
        ("0", "data.limit"),
        ("-5", "data.limit"),
        ("some", "data.limit"),
    ],
)
def test_a_limit_that_cannot_be_met_is_refused(limit: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_source(load_recipe("demo", ["data.size=200", f"data.limit={limit}"]).data, "train")
    assert not re.search(r"\n", str(error.value))


def test_the_limit_of_a_pre_training_is_not_that_of_other_images() -> None:
    own = DataConfig(root="/a/photos", limit=0.1, limit_seed=3)
    assert inherited_data(own, ["root=/b/others"])["limit"] is None
    assert inherited_data(own, ["skip=x"])["limit"] == 0.1
    named = DataConfig(root="/a/imagenet", name="imagenet", limit=0.1)
    assert inherited_data(named, ["root=/b/imagenet"])["limit"] == 0.1  # the same images in another place
