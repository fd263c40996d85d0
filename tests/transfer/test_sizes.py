"""`size=` of the classification tasks: one setting instead of `resize` and `crop`."""

import pytest
from transfer_cases import packaged

from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity


@pytest.mark.parametrize("task", ["linear", "knn", "finetune"])
def test_one_size_sets_resize_and_crop(task: str) -> None:
    assert packaged(task, "imagefolder", overrides=["size=224"]) == packaged(task, "imagefolder")
    small = packaged(task, "imagefolder", overrides=["size=64"])
    assert (small.resize, small.crop, small.size) == (73, 64, None)
    assert identity(small) == identity(packaged(task, "imagefolder", overrides=["resize=73", "crop=64"]))
    assert "size" not in {key for key in identity(small) if key != "data"}


def test_without_a_resize_the_square_is_the_largest_of_the_image() -> None:
    for task in ("linear", "knn"):
        config = packaged(task, "default", overrides=["size=64"])
        assert (config.resize, config.crop) == (64, 64)
        assert packaged(task, "default").crop is None
        with pytest.raises(InputError, match="size=0"):
            packaged(task, "default", overrides=["size=0"])
