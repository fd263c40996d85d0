"""One setting for the size of the test images of a classification task."""

from typing import Any

_RESIZE, _CROP = 256, 224  # of the authors' evaluate.py


def resolve(config: Any) -> None:
    """Replace the setting `size` of a configuration, if it is given, by `crop` and `resize`.

    `crop` becomes `size`. `resize` is to `crop` as 256 to 224; a protocol that does not resize gets `size` for both, so
    the square is the largest one of the image.
    """
    if config.size is not None:
        resize = config.size if config.resize is None else round(config.size * _RESIZE / _CROP)
        for name, value in (("resize", resize), ("crop", config.size), ("size", None)):
            object.__setattr__(config, name, value)
