"""Tables: golden files for every format, aggregation, ranking, records that are never mixed, and escaping.

`INTL_BENCH_UPDATE_GOLDEN=1 pytest tests/results/test_tables.py` writes the golden files. Read the difference before you
keep it.
"""

import csv
import html.parser
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import places
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import COCO, COCO_1X, KNN, LINEAR, NASTY, R18, R50, cells, make, nasty, shown, synthetic

from intl_bench import published
from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import TABLES, render
from intl_bench.tables.cells import cell_text, summarize

GOLDEN = places.GOLDEN / "tables"
SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv", "json": "json", "html": "html"}
PUBLISHED = ("1", "2", "3", "4")


@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize("name", ["published", "measured"])
def test_golden(name: str, format: str) -> None:
    records = synthetic() if name == "measured" else []
    tables = ("3",) if format in ("csv", "json", "html") else PUBLISHED  # these say much about each cell: one table
    text = render(records, tables=tables, format=format)
    if format == "html":  # without the style and the code, which are files of their own
        text = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    path = GOLDEN / f"{name}.{SUFFIXES[format]}"
    if os.environ.get("INTL_BENCH_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_published_values_are_those_of_the_transcribed_tables() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "reference" / "published"
    if not folder.is_dir():
        pytest.skip(f"the transcribed tables are not at {folder}")

    def values(rows: list[list[str]]) -> list[list[str]]:
        return [[cell.replace("–", "") for cell in row] for row in rows]

    def transcribed(name: str, columns: slice) -> list[list[str]]:
        with (folder / name).open(encoding="utf-8", newline="") as stream:
            return values([row[columns] for row in csv.reader(stream)][1:])

    def ours(name: str) -> list[list[str]]:
        return values([list(row.cells.values()) for row in published.load(name).rows])

    assert ours("table1") == transcribed("table1_imagenet.csv", slice(2, None))
    assert ours("table2") == transcribed("table2_small.csv", slice(1, None))
    assert ours("table3") == transcribed("table3_coco.csv", slice(1, 7))
    assert ours("table4") == transcribed("table4_batch_size.csv", slice(1, None))


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(published.__file__).parent.glob("*.json")))
def test_published_footnotes_and_protocols_refer_to_existing_rows(name: str) -> None:
    about = json.loads((Path(published.__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    methods = {row.method for row in published.load(name).rows}
    assert methods.issuperset(about["rows"])
    assert all(methods.issuperset(note.get("rows", ())) for note in about["notes"])


@pytest.mark.parametrize("number", TABLES)
def test_published_columns_are_the_columns_of_the_table(number: str) -> None:
    table = TABLES[number]
    keys = [column.key for column in table.columns([])]
    for name in {table.published, *table.schedules.values()} - {None}:
        assert all(list(row.cells) == keys for row in published.load(str(name)).rows)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_summary_is_mean_and_sample_deviation_in_any_order(values: list[float]) -> None:
    assert summarize(values) == (statistics.mean(values), statistics.stdev(values))
    shuffled = random.Random(0).sample(values, len(values))
    assert summarize(shuffled) == summarize(values)
    assert cell_text(shuffled, 1) == cell_text(values, 1)


@pytest.mark.parametrize(
    ("values", "decimals", "text"),
    [
        ([61.1, 61.2, 61.3], 1, "61.2 ± 0.10 (3)"),  # deviations -0.1, 0, 0.1: sqrt(0.02 / 2)
        ([41.0, 41.3], 1, "41.2 ± 0.21 (2)"),  # 41.15 rounds up; 0.3 / sqrt(2) = 0.2121
        ([61.2], 1, "61.2 (1)"),
        ([92.105], 2, "92.11 (1)"),  # the nearest binary number lies below the half
        ([50.0, 50.0], 2, "50.00 ± 0.00 (2)"),
        ([40.0, 49.9], 2, "45.0 ± 7.0 (2)"),  # 9.9 / sqrt(2) = 7.0004: no digit of the mean below the spread's
        ([30.0, 49.8], 2, "40 ± 14 (2)"),
        ([50.0, 51.41], 2, "50.7 ± 1.0 (2)"),  # 0.997 rounds to 1.0, which has two digits
        ([50.0, 50.002], 1, "50.0 ± 0.00 (2)"),
    ],
)
def test_cell_text(values: list[float], decimals: int, text: str) -> None:
    assert cell_text(values, decimals) == text


@settings(deadline=None, max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(rng: random.Random) -> None:
    records = synthetic()
    rng.shuffle(records)
    assert render(records, tables=PUBLISHED, format="markdown") == (GOLDEN / "measured.md").read_text(encoding="utf-8")


def test_records_with_different_protocols_or_scales_have_different_rows() -> None:
    base = {"schedule": "2x", "lr": 0.02, "pretrain_epochs": 200}
    records = [
        make("coco", "coco", {"bbox/AP": 40.0}, base),
        make("coco", "coco", {"bbox/AP": 41.0}, base, transfer_seed=1),
        make("coco", "coco", {"bbox/AP": 30.0}, {**base, "schedule": "1x"}),
        make("coco", "coco", {"bbox/AP": 31.0}, {**base, "pretrain_epochs": 800}),
        make("coco", "coco", {"bbox/AP": 32.0}, base, scale="demo"),
        make("coco", "coco", {"bbox/AP": 33.0}, base, backbone="resnet50"),
    ]
    assert sorted(cell["cell"] for cell in cells(records, "3")) == [
        "30.0 (1)",
        "31.0 (1)",
        "32.0 (1)",
        "33.0 (1)",
        "40.5 ± 0.71 (2†)",
    ]
    labels = {cell["label"] for cell in cells(records, "3")}
    assert "INTL (ResNet-18, schedule 1x; measured, reduced scale)" in labels
    assert "INTL (ResNet-18, schedule 2x, pre-training epochs 800; measured, reduced scale)" in labels
    assert len(labels) == 5


def test_tasks_and_data_sets_with_different_pre_trainings_share_a_row() -> None:
    other = {"pretrain_epochs": 400, "pretrain_dataset": "imagenet100"}
    records = [
        make("linear", "cifar10", {"top1": 90.0}, {**LINEAR, **R18}),
        make("knn", "cifar10", {"knn5": 80.0}, {**KNN, **R18}),
        make("linear", "imagenet100", {"top1": 70.0}, {**LINEAR, **other}),
    ]
    row = [(0, "cifar10/5nn", "80.00 (1)"), (0, "cifar10/top1", "90.00 (1)"), (0, "imagenet100/top1", "70.00 (1)")]
    assert shown(records, "2") == row
    # A second number of epochs for one of the tasks gives a second row. The first row still holds both tasks.
    second = make("linear", "cifar10", {"top1": 91.0}, {**LINEAR, **R18, "epochs": 500})
    assert shown([*records, second], "2") == [*row, (1, "cifar10/top1", "91.00 (1)")]


def test_one_data_set_never_mixes_two_pre_trainings_in_a_row() -> None:
    multi_crop = {**R50, "pretrain_views": "multi-crop"}
    records = [
        make("linear", "imagenet", {"top1": 76.6}, {**LINEAR, **multi_crop}),
        make("finetune", "imagenet", {"top1": 55.0}, {**LINEAR, **R50, "train_percent": 1}),
    ]
    assert {row for row, _, _ in shown(records, "1")} == {0, 1}


def test_the_newest_of_two_records_with_the_same_seeds_counts() -> None:
    older = make("coco", "coco", {"bbox/AP": 40.0}, COCO)
    newer = make("coco", "coco", {"bbox/AP": 42.0}, COCO, created="2024-06-01T00:00:00Z")
    assert shown([newer, older], "3") == [(0, "bbox/AP", "42.0 (1)")]
    assert "1 record, 1 older record of the same seeds left out." in render([older, newer])


def bold(records: list[ResultRecord], table: str = "3") -> set[tuple[str, str]]:
    return {(cell["method"], cell["column"]) for cell in cells(records, table) if cell["bold"]}


def test_bold_ranks_printed_means_of_one_protocol_only() -> None:
    records = [
        make("coco", "coco", {"bbox/AP": 41.0, "segm/AP": 34.96}, COCO),
        make("coco", "coco", {"bbox/AP": 42.0, "segm/AP": 35.04}, COCO, method="B"),
        make("coco", "coco", {"bbox/AP": 1.0, "bbox/AP50": 2.0}, COCO, method="C"),
        make("coco", "coco", {"bbox/AP": 99.0}, COCO_1X, method="another protocol"),
        make("coco", "coco", {"bbox/AP": 99.0}, COCO, method="another scale", scale="paper"),
        make("coco", "coco2017", {"bbox/AP": 99.0}, COCO, method="another data set"),
    ]
    # 34.96 and 35.04 both print as 35.0. AP50 has a single value, which is never bold.
    assert bold(records) == {("B", "bbox/AP"), ("INTL", "segm/AP"), ("B", "segm/AP")}


def test_measured_rows_do_not_change_published_bold() -> None:
    def printed(records: list[ResultRecord]) -> set[tuple[str, str]]:
        (content,) = json.loads(render(records, tables=("2",), format="json"))
        found = [cell for cell in content["cells"] if cell["kind"] == "published" and cell["bold"]]
        return {(cell["method"], cell["column"]) for cell in found}

    assert ("MoCo V2", "cifar10/top1") in printed([])
    assert printed([make("linear", "cifar10", {"top1": 99.0}, LINEAR)]) == printed([])


def test_footnote_states_scale_protocols_and_seeds() -> None:
    text = render(synthetic(), tables=("3",))
    assert (
        "Measured at paper scale. Pre-training: batch size 256, epochs 800, views 2x224. "
        "Evaluation: coco: batch size 16, engine detectron2, iterations 180000, lr 0.02, schedule 2x. "
        "1 pre-training seed, 3 transfer seeds, 3 records." in text
    )
    assert "3 pre-training seeds, 1 transfer seed, 3 records." in text


def test_csv_has_one_line_per_cell() -> None:
    lines = list(csv.DictReader(io.StringIO(render(synthetic(), tables=("3",), format="csv"))))
    rows = {line["row"] for line in lines}
    assert len(lines) == 6 * len(rows)
    line = next(line for line in lines if line["cell"] == "61.2 ± 0.10 (3†)")
    assert (float(line["mean"]), round(float(line["std"]), 12), line["n"]) == (61.2, 0.1, "1")
    assert (line["transfer_seeds"], line["spread"]) == ("3", "transfer")
    assert json.loads(line["protocol"])["evaluation"]["schedule"] == "2x"
    single = next(line for line in lines if line["cell"] == "59.0 (1)")
    assert (single["std"], single["n"], single["scale"]) == ("", "1", "paper")
    assert (single["transfer_seeds"], single["spread"]) == ("1", "")
    repeated = next(line for line in lines if line["cell"] == "61.0 ± 1.0 (3)")
    assert (repeated["n"], repeated["transfer_seeds"], repeated["spread"]) == ("3", "1", "pre-training")


def test_html_is_escaped_and_well_nested() -> None:
    text = render(nasty(), format="html")
    empty = render([], format="html")
    assert text.count("</script>") == empty.count("</script>") == 2  # the details and the code of the page
    seen: list[str] = []
    words: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            seen.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert seen.pop() == tag

        def handle_data(self, data: str) -> None:
            if "script" not in seen:
                words.append(data)

    Reader().feed(text)
    assert seen == []
    assert "<script>alert(1)</script>" in "".join(words)


def test_names_do_not_add_columns_in_markdown() -> None:
    for chosen, columns in (({"tables": ("3",)}, 6), *(({"datasets": (name,)}, 1) for name in NASTY)):
        lines = render(nasty(), **chosen).splitlines()
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
        assert bars == {columns + 2}
        assert all(line == "" or line[0] in "|-*" for line in lines)
    assert "<script>" not in render(nasty()).replace(r"\<script>", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tables": ("5",)}, "table '5': no such table; choose from 1, 2, 3, 4, voc"),
        ({"format": "word"}, "format 'word': no such format; choose from text, markdown, latex, bibtex, csv, json"),
    ],
)
def test_unknown_table_or_format(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render([], **arguments)


def test_tables_never_import_torch() -> None:
    code = "import sys; from intl_bench.tables import render; render([], tables=('1', '4'), format='html')\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
