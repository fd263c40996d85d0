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
    "voc_24k": ("voc0712_fasterrcnn_r50_c4", "24k"),
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
    for line in lines:
        column = line["metric"].replace("_", "/") if "_" in line["metric"] else f"bbox/{line['metric']}"
        method = line["method"].split(" (")[0]
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
