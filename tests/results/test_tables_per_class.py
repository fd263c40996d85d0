"""Detection tables with the AP of each class."""

import csv
import io
import json
import statistics

import pytest
from table_cases import COCO, LINEAR, NASTY, R50, make

from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import render, render_comparison

VALUES = {"INTL": (40.0, 42.0, 41.5), "MoCo v2": (38.0, 38.5, 39.5)}


def detected(classes: tuple[str, ...] = ("cat", "person"), dataset: str = "coco2017") -> list[ResultRecord]:
    """Return records of two methods with three pre-trainings each; the AP of class i is i below the first."""
    records = []
    for method, values in VALUES.items():
        for seed, value in enumerate(values):
            box = {name: value - place for place, name in enumerate(classes)}
            mask = dict.fromkeys(classes[1:], value - 10)
            metrics = {"bbox/AP": statistics.mean(box.values()), "bbox/AP50": 60.0, "segm/AP": value - 10}
            about = {"method": method, "pretrain_seed": seed, "backbone": "resnet50", "scale": "paper"}
            details = {"per_category": {"bbox": box, "segm": mask}}
            records.append(make("coco", dataset, metrics, {**COCO, **R50}, details=details, **about))
    return records


def lines(records: list[ResultRecord], **options: object) -> list[list[str]]:
    text = render(records, tables=["3"], per_class=True, **options)  # type: ignore[arg-type]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_line_for_each_class_with_mean_and_deviation_over_the_pretrainings() -> None:
    heading, _, *body = lines(detected())
    assert heading[0] == "Class"
    assert [name.split(",")[0] for name in heading[1:]] == ["INTL", "INTL", "MoCo v2", "MoCo v2"]
    assert [name.rpartition("] ")[2] for name in heading[1:]] == ["box AP", "mask AP"] * 2
    by_class = {row[0]: row[1:] for row in body}
    assert list(by_class) == ["all classes", "person", "cat"]  # COCO's order
    mean, std = statistics.mean(VALUES["INTL"]), statistics.stdev(VALUES["INTL"])
    assert by_class["cat"] == [f"**{mean:.1f} ± {std:.1f} (3)**", "–", "38.7 ± 0.76 (3)", "–"]
    assert by_class["person"][0] == f"**{mean - 1:.1f} ± {std:.1f} (3)**"
    assert by_class["all classes"][0] == f"**{mean - 0.5:.1f} ± {std:.1f} (3)**"


def test_csv_and_json_have_a_line_for_each_cell() -> None:
    rows = list(csv.DictReader(io.StringIO(render(detected(), tables=["3"], per_class=True, format="csv"))))
    (one,) = (row for row in rows if (row["method"], row["column"]) == ("INTL", "bbox/AP/person"))
    assert float(one["mean"]) == statistics.mean(VALUES["INTL"]) - 1
    assert (one["n"], one["spread"]) == ("3", "pre-training")
    assert {row["kind"] for row in rows} == {"measured"}
    (table,) = json.loads(render(detected(), tables=["3"], per_class=True, format="json"))
    assert table["table"] == "3-per-class"
    assert {cell["column"] for cell in table["cells"]} >= {"bbox/AP", "bbox/AP/cat", "segm/AP/person"}


@pytest.mark.parametrize("format", ["text", "markdown", "latex", "html"])
def test_every_format_shows_every_class_and_escapes_its_name(format: str) -> None:
    text = render(detected(("plain", *NASTY), "own"), per_class=True, format=format)
    assert text.count("plain") >= 1
    raw = {"html": "<script>alert", "markdown": "| <script>", "latex": "a_b", "text": "two\n\nlines"}[format]
    assert raw not in text
    assert "engine" in text  # the footnotes are below the turned table


def test_voc_has_the_metrics_that_its_records_hold() -> None:
    details = {"per_category": {"bbox": {"cat": 50.0}, "bbox/AP50": {"cat": 80.0}}}
    record = make("voc", "voc0712", {"bbox/AP": 50.0, "bbox/AP50": 80.0}, COCO, details=details)
    text = render([record], per_class=True)
    assert "| cat" in text
    assert "80.0 (1)" in text
    assert "box AP50" in text


def test_without_footnotes_the_columns_have_the_whole_label() -> None:
    assert "engine detectron2; measured, paper scale) box AP" in render(detected(), per_class=True, notes="none")


def test_a_comparison_has_the_difference_of_each_class() -> None:
    text = render_comparison(detected(), "INTL", "MoCo v2", tables=["3"], per_class=True, format="json")
    by_column = {one["column"]: one["difference"] for one in json.loads(text)}
    expected = statistics.mean(VALUES["INTL"]) - statistics.mean(VALUES["MoCo v2"])
    assert by_column["box AP person"] == pytest.approx(expected)


def test_the_usual_table_is_unchanged_by_classes() -> None:
    without = [
        make(
            "coco",
            "coco2017",
            r.metrics,
            r.protocol,
            method=r.method,
            pretrain_seed=r.pretrain_seed,
            backbone="resnet50",
            scale="paper",
        )
        for r in detected()
    ]
    assert render(detected(), tables=["3"]) == render(without, tables=["3"])


@pytest.mark.parametrize("tables", [["1"], ["3"], None])
def test_records_without_classes_are_refused(tables: list[str] | None) -> None:
    records = [make("linear", "imagenet", {"top1": 70.0}, LINEAR), make("coco", "coco", {"bbox/AP": 1.0}, COCO)]
    with pytest.raises(InputError, match=r"--per-class: no record of table .* holds the AP of its classes"):
        render(records, tables=tables, per_class=True)
