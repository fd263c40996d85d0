"""The tables of the transfer to many data sets: columns, the metric of each data set, averages, comparisons."""

import json
from typing import Any

import pytest
from table_cases import R50, cells, make, shown

from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import render, render_comparison

METRICS = {"pets": "mean_per_class", "voc07": "mAP"}


def record(dataset: str, value: float, **changes: Any) -> ResultRecord:
    """A result on a data set, whose score in the table is `value`."""
    metric = METRICS.get(dataset, "top1")
    scores = (
        {"mAP": value} if metric == "mAP" else {"top1": 1.0, "mean_per_class": 2.0, metric: value, "few_shot": 70.0}
    )
    return make("transfer", dataset, scores, {"metric": metric, **R50}, backbone="resnet50", **changes)


def test_each_data_set_shows_its_metric_and_the_average_is_of_all() -> None:
    records = [record("pets", 80.0), record("voc07", 70.0), record("cifar10", 91.0), record("my_cells", 60.0)]
    assert shown(records, "transfer") == [
        (0, "average", "75.3 (1)"),
        (0, "cifar10", "91.0 (1)"),
        (0, "my_cells", "60.0 (1)"),
        (0, "pets", "80.0 (1)"),
        (0, "voc07", "70.0 (1)"),
    ]
    assert shown(records, "few-shot") == [
        (0, "average", "70.0 (1)"),
        *((0, name, "70.0 (1)") for name in ("cifar10", "my_cells", "pets")),
    ]


def test_the_average_is_over_what_all_rows_have_and_over_pretrainings() -> None:
    weights = [{"pretrain_seed": seed, "weights_sha256": f"{seed:064x}"} for seed in range(2)]
    records = [record("pets", 80.0 + seed, **weights[seed]) for seed in range(2)]
    records += [record("dtd", 60.0 + seed, **weights[seed]) for seed in range(2)]
    records += [record("cars", 30.0, **weights[0])]
    other = [record(name, 50.0, method="BYOL") for name in ("pets", "dtd")]
    found = {(row, column): text for row, column, text in shown([*records, *other], "transfer")}
    assert found[1, "average"] == "70.5 ± 0.71 (2)"  # of (80 + 60) / 2 and (81 + 61) / 2
    assert found[0, "average"] == "50.0 (1)"
    note = "Average: of DTD, Pets, which all measured rows have."
    assert note in render([*records, *other], tables=["transfer"], format="markdown")
    apart = [record("dtd", 50.0, method="BYOL"), record("pets", 80.0)]
    assert not [cell for cell in cells(apart, "transfer") if cell["column"] == "average"]


@pytest.mark.parametrize(
    ("setting", "transfer", "episodes"),
    [("ways", True, False), ("decays", False, True), ("tolerance", False, True), ("resize", False, False)],
)
def test_a_row_of_mixed_settings_has_no_average(setting: str, transfer: bool, episodes: bool) -> None:
    """The average of a table requires equal settings of what its scores depend on; other rows keep theirs."""

    def settings(**own: Any) -> dict[str, Any]:
        return {"settings": {"metric": "top1", "data": {"kind": "dtd"}, setting: 5, **own}}

    mixed = [record("pets", 80.0, evaluation=settings()), record("dtd", 60.0, evaluation=settings(**{setting: 10}))]
    # The metric and the kind of the data belong to the data set; Aircraft has no val_share.
    other = settings(metric="mean_per_class", data={"kind": "pets"}, val_share=0.2)
    whole = [record("pets", 80.0, method="BYOL", evaluation=other)]
    whole += [record("dtd", 60.0, method="BYOL", evaluation=settings())]
    for table, averaged in (("transfer", transfer), ("few-shot", episodes)):
        rows = [row for row, column, _ in shown([*mixed, *whole], table) if column == "average"]
        assert rows == ([0, 1] if averaged else [0])  # BYOL is the first row
        text = render([*mixed, *whole], tables=[table], format="markdown")
        assert (f"Row 2 has none: its data sets differ in {setting}." in text) == (not averaged)


def test_averages_are_ranked_only_if_all_protocols_agree() -> None:
    def bold(**changes: Any) -> list[bool]:
        rows = [record(name, 70.0) for name in ("pets", "dtd")]
        rows += [record(name, 60.0, method="BYOL", **changes) for name in ("pets", "dtd")]
        return [cell["bold"] for cell in cells(rows, "transfer") if cell["column"] == "average"]

    assert sum(bold()) == 1
    evaluation = {"settings": {"metric": "mean_per_class", "decays": 3}, "data": {"train": "x", "test": "y"}}
    assert sum(bold(evaluation=evaluation)) == 0


def test_the_average_can_be_compared() -> None:
    rows = [record(name, value) for name, value in (("pets", 80.0), ("dtd", 60.0))]
    rows += [record(name, value, method="BYOL") for name, value in (("pets", 70.0), ("dtd", 56.0))]
    text = render_comparison(rows, "INTL", "BYOL", tables=["transfer"], format="json")
    (found,) = [line for line in json.loads(text) if line["column"] == "Average"]
    assert found["difference"] == pytest.approx(7)


def test_the_table_is_printed_if_something_was_measured() -> None:
    assert "Transfer to many data sets" in render([record("pets", 80.0)])
    assert "Transfer to many data sets" not in render([])
    assert "94.07" in render([], tables=["transfer"])
    with pytest.raises(InputError, match="nothing measured for these tables"):
        render([record("voc07", 70.0)], tables=["few-shot"])  # it has no published rows either


def test_a_further_score_of_one_data_set_leaves_the_row_of_the_others_whole() -> None:
    def of(dataset: str, value: float, created: str = "2026-01-01T00:00:00+00:00", **settings: Any) -> ResultRecord:
        own = {"metric": "top1", "decays": 45, "ways": 5, **settings}
        evaluation = {"settings": own, "data": {"train": dataset, "test": dataset}}
        scores, protocol = {"top1": value, "mean_per_class": value}, {"metric": own["metric"], **R50}
        about: dict[str, Any] = {"evaluation": evaluation, "backbone": "resnet50", "created": created}
        return make("transfer", dataset, scores, protocol, **about)

    records = [of("pets", 80.0, metric="mean_per_class"), of("dtd", 60.0), of("cars", 40.0, ways=3)]
    further: list[tuple[str, dict[str, Any]]] = [
        ("pets", {"metric": "top1"}),
        ("dtd", {"metric": "mean_per_class"}),
        ("dtd", {"decays": 10, "ways": 3}),
        ("cars", {"ways": 5}),
        ("cars", {"decays": 100}),
    ]
    for dataset, settings in further:
        found = shown([of(dataset, 81.0, "2026-02-01T00:00:00+00:00", **settings), *records], "transfer")
        row = next(row for row, _, text in found if text == "60.0 (1)")
        assert [one[1:] for one in found if one[0] == row] == [
            ("cars", "40.0 (1)"),
            ("dtd", "60.0 (1)"),
            ("pets", "80.0 (1)"),
        ]
        assert [one[1:] for one in found if one[0] != row] == [(dataset, "81.0 (1)")]


def test_a_folder_with_another_metric_than_the_caption_says_has_it_in_its_title() -> None:
    rows = [record("birds", 60.0), record("pets", 50.0)]
    protocol = {"metric": "mean_per_class", **R50}
    rows.append(make("transfer", "fish", {"mean_per_class": 7.0}, protocol, backbone="resnet50"))
    text = render(rows, tables=["transfer"], format="markdown")
    assert "fish (mean per class)" in text
    assert "birds (mean" not in text
    assert "Pets (mean" not in text
