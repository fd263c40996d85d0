"""Scores as text for a terminal: a few on one line, those of detection as a table that fits 80 columns."""

from collections.abc import Mapping

_KINDS = {"bbox": "box", "segm": "mask"}
_ORDER = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # COCO's


def describe(what: str, metrics: Mapping[str, float], note: str) -> str:
    """Return the scores of one run.

    Args:
        what: the run, such as "linear INTL cifar10 seed 0".
        metrics: scores by their names. Those of detection are KIND/NAME, such as "bbox/AP50".
        note: what else there is to say, such as the time.
    """
    if not any("/" in name for name in metrics):
        values = ", ".join(f"{name} {value:.2f}" for name, value in sorted(metrics.items()))
        return f"{what}: {values} ({note})"
    kinds = dict.fromkeys(name.split("/")[0] for name in metrics)
    names = [name for name in _ORDER if any(f"{kind}/{name}" in metrics for kind in kinds)]
    lines = ["".join(f"{cell:>6}" for cell in ("", *names))]
    for kind in kinds:
        scores = [metrics.get(f"{kind}/{name}") for name in names]
        cells = ["–" if score is None else f"{score:.2f}" for score in scores]
        lines.append("".join(f"{cell:>6}" for cell in (_KINDS.get(kind, kind), *cells)))
    return "\n".join([f"{what} ({note})", *lines])
