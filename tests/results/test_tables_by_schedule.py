"""Detection tables of one schedule: published rows and their sources, selection of measured rows, and ranking."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import places
import pytest
from table_cases import COCO, COCO_1X, make, synthetic

from intl_bench import published
from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import render

# name of the published rows: the task and the start of the schedule in the collection that they were copied from
COLLECTED = {
    "table3_1x": ("coco_maskrcnn_r50_c4", "1x_90k"),
    "table3_2x": ("coco_maskrcnn_r50_c4", "2x_180k"),
    "fpn_1x": ("coco_maskrcnn_r50_fpn", "1x_90k"),
    "fpn_2x": ("coco_maskrcnn_r50_fpn", "2x_180k"),
    "voc_24k": ("voc0712_fasterrcnn_r50_c4", "24k"),
}
# Read from the DetCo paper's Tables 4 and 13 (images in its repository) and SoCo's README: AP, AP50, AP75; box, mask.
ADDED = {
    "fpn_1x": {
        "DetCo (200": "39.5 60.3 43.1 35.9 56.9 38.6",
        "DetCo+AA": "40.1 61.0 43.9 36.4 58.0 38.9",
        "InsDis (200 epochs; as in DetCo)": "37.4 57.6 40.6 34.1 54.6 36.4",
        "PIRL (200 epochs; as in DetCo)": "37.5 57.6 41.0 34.0 54.6 36.2",
        "SwAV (200 epochs; as in DetCo)": "38.5 60.4 41.4 35.4 57.0 37.7",
        "MoCo v2 (200 epochs; as in DetCo)": "38.9 59.4 42.4 35.5 56.5 38.1",
        "SoCo (100": "42.3 62.5 46.5 37.6 59.1 40.5",
        "SoCo (400": "43.0 63.3 47.1 38.2 60.2 41.0",
        "SoCo*": "43.2 63.5 47.4 38.4 60.2 41.4",
    },
    "fpn_2x": {
        "DetCo (200": "41.5 62.1 45.6 37.6 59.2 40.5",
        "DetCo+AA": "41.5 62.5 45.6 37.7 59.5 40.5",
        "MoCo v2 (200 epochs; as in DetCo)": "40.9 61.5 44.7 37.0 58.7 39.8",
    },
}
ENGINES = {"engine": "builtin", "evaluator": "pycocotools"}


def content(records: list[ResultRecord], **options: Any) -> dict[str, Any]:
    (table,) = json.loads(render(records, format="json", **options))
    return table


def measured(records: list[ResultRecord], **options: Any) -> list[dict[str, Any]]:
    cells = content(records, **options)["cells"]
    return [cell for cell in cells if cell["kind"] == "measured" and cell["mean"] is not None]


@pytest.mark.parametrize("schedule", ["1x", "2x", "24k"])
def test_golden(schedule: str) -> None:
    text = render(synthetic(), schedule=schedule)
    path = places.GOLDEN / "tables" / f"schedule_{schedule}.md"
    if os.environ.get("INTL_BENCH_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("schedule", ["1x", "2x"])
def test_golden_of_a_pyramid(schedule: str) -> None:
    text = render([], tables=("fpn",), schedule=schedule)
    path = places.GOLDEN / "tables" / f"schedule_fpn_{schedule}.md"
    if os.environ.get("INTL_BENCH_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COLLECTED)
def test_published_values_are_exactly_those_of_the_collection(name: str) -> None:
    """Each collected value is in a row of its method with a footnote. There are no other values.

    Different values of several sources are all kept.
    """
    collection = Path(__file__).resolve().parents[3] / "shared" / "reference" / "published_by_protocol.csv"
    if not collection.is_file():
        pytest.skip(f"the collected values are not at {collection}")
    task, schedule = COLLECTED[name]
    with collection.open(encoding="utf-8", newline="") as stream:
        lines = [line for line in csv.DictReader(stream) if line["task"] == task and line["verified"] == "yes"]
    lines = [line for line in lines if line["schedule"].startswith(schedule) and "at batch" not in line["schedule"]]
    lines = [line for line in lines if "user repro" not in line["method"]]  # reports in issues are not published
    rows = published.load(name).rows
    columns = [f"{kind}/{metric}" for kind in ("bbox", "segm") for metric in ("AP", "AP50", "AP75")]
    added = ADDED.get(name, {}).items()
    lines += [
        {"method": method, "metric": column.replace("/", "_"), "value": value}
        for method, values in added
        for column, value in zip(columns, values.split(), strict=True)
    ]
    for line in lines:
        column = line["metric"].replace("_", "/") if "_" in line["metric"] else f"bbox/{line['metric']}"
        method = line["method"] if line["method"] in dict(added) else line["method"].split(" (")[0]
        same = [
            row for row in rows if row.method.startswith(method) and row.cells[column].split("±")[0] == line["value"]
        ]
        assert same, f"{line['method']}: {column} {line['value']}"
        assert all(row.marks for row in same)
    collected = {(line["metric"].removeprefix("bbox_").replace("_", "/"), line["value"]) for line in lines}
    for row in rows:
        printed = {(column.removeprefix("bbox/"), text.split("±")[0]) for column, text in row.cells.items()}
        assert {pair for pair in printed if pair[1] != "–"} <= collected


@pytest.mark.parametrize("name", COLLECTED)
def test_a_published_row_has_sources_a_schedule_and_a_unique_name(name: str) -> None:
    rows = published.load(name).rows
    assert len({row.method for row in rows}) == len(rows)
    assert {row.protocol["schedule"] for row in rows} == {name.split("_")[1]}
    assert not any("several" in row.source for row in rows)
    assert all(len(row.source.split("; ")) <= len(row.marks) for row in rows)


def test_a_pyramid_has_a_table_of_its_own() -> None:
    """Its rows are never in the table of R50-C4, and rows with different heads are never ranked together."""
    fpn = {**COCO_1X, "detector": "fpn", "box_head": "2fc"}
    records = [
        make("coco", "coco2017", {"bbox/AP": 39.0}, COCO_1X),
        *(make("coco", "coco2017", {"bbox/AP": ap}, fpn, method=f"method {ap}") for ap in (40.0, 41.0)),
        make("coco", "coco2017", {"bbox/AP": 42.0}, {**fpn, "box_head": "4conv1fc"}, method="method 42"),
    ]
    assert [cell["cell"] for cell in measured(records, tables=("3",))] == ["39.0 (1)"]
    cells = measured(records, tables=("fpn",))
    assert {cell["cell"]: cell["bold"] for cell in cells} == {"40.0 (1)": False, "41.0 (1)": True, "42.0 (1)": False}
    assert all("box head " in cell["label"] for cell in cells)
    assert [table["table"] for table in json.loads(render(records, format="json"))] == ["1", "2", "3", "FPN"]
    shown = [table["table"] for table in json.loads(render(records, format="json", schedule="1x"))]
    assert shown == ["3-1x", "FPN-1x"]
    assert measured(records, tables=("fpn",), schedule="2x") == []


def test_only_rows_of_the_schedule_are_shown() -> None:
    other = {**COCO, "schedule": "300 iterations of 2"}
    records = [
        make("coco", "coco2017", {"bbox/AP": 41.0}, COCO),
        make("coco", "coco2017", {"bbox/AP": 39.0}, COCO_1X),
        make("coco", "coco2017", {"bbox/AP": 9.0}, other, scale="demo"),
        make("voc", "voc0712", {"bbox/AP": 57.0}, {**COCO, "schedule": "24k"}),
    ]
    assert [cell["cell"] for cell in measured(records, schedule="2x")] == ["41.0 (1)"]
    assert [cell["cell"] for cell in measured(records, schedule="1x", tables=("3",))] == ["39.0 (1)"]
    assert [cell["cell"] for cell in measured(records, schedule="24k")] == ["57.0 (1)"]
    assert {cell["cell"] for cell in measured(records, tables=("3",))} == {"41.0 (1)", "39.0 (1)", "9.0 (1)"}
    assert {content(records, schedule=name)["table"] for name in ("1x", "2x", "24k")} == {"3-1x", "3-2x", "VOC-24k"}


def test_labels_of_measured_rows_show_schedule_and_engine() -> None:
    records = [make("coco", "coco2017", {"bbox/AP": 41.0}, {**COCO, **ENGINES}, scale="paper")]
    label = "INTL (ResNet-18, schedule 2x, engine builtin; measured, paper scale)"
    assert {cell["label"] for cell in measured(records, tables=("3",))} == {label}
    assert {cell["label"] for cell in measured(records, schedule="2x")} == {label}
    assert "evaluator pycocotools" in render(records, schedule="2x")


def test_schedules_and_engines_are_never_ranked_together() -> None:
    def ranked(*protocols: dict[str, Any]) -> list[bool]:
        records = [
            make("coco", "coco2017", {"bbox/AP": 40.0 + i}, protocol, method=f"method {i}")
            for i, protocol in enumerate(protocols)
        ]
        return [cell["bold"] for cell in measured(records, tables=("3",))]

    assert ranked(COCO, COCO) == [False, True]
    assert ranked(COCO, COCO_1X) == [False, False]
    assert ranked(COCO, {**COCO, **ENGINES}) == [False, False]


def test_a_published_row_is_never_bold_in_a_table_of_one_schedule() -> None:
    records = [make("coco", "coco2017", {"bbox/AP": ap}, COCO, method=f"method {ap}") for ap in (10.0, 11.0)]
    bold = {(cell["kind"], cell["cell"]) for cell in content(records, schedule="2x")["cells"] if cell["bold"]}
    assert bold == {("measured", "11.0 (1)")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "3x"}, "schedule '3x': no such schedule; choose from 1x, 24k, 2x"),
        ({"schedule": "2x", "tables": ("3", "1")}, "table '1' has no 2x schedule; choose from 3"),
        ({"schedule": "24k", "tables": ("3",)}, "table '3' has no 24k schedule; choose from voc"),
    ],
)
def test_an_impossible_schedule_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render([], **arguments)


@pytest.mark.parametrize("format", ["latex", "csv", "html"])
def test_other_formats_also_have_the_published_rows(format: str) -> None:
    text = render([], schedule="1x", format=format)
    assert "SimSiam optimal" in text
    assert ("\\cite{chen2021simsiam}" if format == "latex" else "arXiv:2011.10566") in text
