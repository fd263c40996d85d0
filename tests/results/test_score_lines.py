"""Scores as text for a terminal."""

from intl_bench.score_lines import describe

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def test_the_twelve_numbers_of_detection_fit_80_columns_in_the_order_of_coco() -> None:
    metrics = {f"{kind}/{name}": number + 10.005 for kind in ("bbox", "segm") for number, name in enumerate(NAMES)}
    del metrics["segm/APl"]  # there is no large object
    first, *lines = describe("coco INTL figures seed 2", dict(sorted(metrics.items())), "17 s").splitlines()
    assert first == "coco INTL figures seed 2 (17 s)"
    assert max(map(len, lines)) < 80
    heading, box, mask = map(str.split, lines)
    assert heading == NAMES
    assert box == ["box", *(f"{number + 10.005:.2f}" for number in range(12))]
    assert mask[6] == "–"
    assert mask[7] == box[7]


def test_other_scores_are_one_line() -> None:
    assert describe("linear INTL cifar10 seed 0", {"top5": 99.5, "top1": 90.125}, "3 s") == (
        "linear INTL cifar10 seed 0: top1 90.12, top5 99.50 (3 s)"
    )
