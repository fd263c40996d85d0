"""Tables of own data sets, tables limited to some data sets, tables without published rows, and short notes."""

import json
from typing import Any

import pytest
from table_cases import COCO, KNN, LINEAR, R18, make

from intl_bench import cli
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables import render


def mine() -> list[ResultRecord]:
    """Return records of two own data sets and of CIFAR-10. Some are of no table of the paper."""
    return [
        make("linear", "flowers", {"top1": 80.0, "top5": 95.0, "best_top1": 81.0}, {**LINEAR, **R18}),
        make("knn", "flowers", {"knn5": 70.0}, {**KNN, **R18}),
        make("knn", "flowers", {"knn20": 71.0}, {**KNN, "k": 20, **R18}),
        make("finetune", "flowers", {"top1": 60.0}, {**LINEAR, "train_percent": 10, **R18}),
        make("finetune", "flowers", {"top1": 50.0}, {**LINEAR, "train_percent": 1, **R18}),
        make("coco", "cells", {"bbox/AP": 41.0, "bbox/AP50": 60.0, "bbox/APs": 9.0}, COCO),
        make("linear", "cifar10", {"top1": 90.0}, {**LINEAR, **R18}),
        make("finetune", "cifar10", {"top1": 85.0}, {**LINEAR, "train_percent": 10, **R18}),
    ]


def content(records: list[ResultRecord], **options: Any) -> dict[str, dict[str, Any]]:
    """Return the built tables by name."""
    return {table["table"]: table for table in json.loads(render(records, format="json", **options))}


def columns(table: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["column"] for cell in table["cells"]))


def test_an_own_data_set_has_a_table_without_columns_of_dashes() -> None:
    tables = content(mine())
    assert list(tables) == ["1", "2", "3", "cells", "cifar10", "flowers"]
    assert columns(tables["flowers"]) == [
        *("linear/top1", "linear/top5", "knn/5", "knn/20", "finetune/1%/top1", "finetune/10%/top1"),
    ]
    assert columns(tables["cells"]) == ["coco/bbox/AP50", "coco/bbox/AP"]
    assert columns(tables["cifar10"]) == ["finetune/10%/top1"]  # the paper's Table 2 has the linear classifier
    for name in ("cells", "cifar10", "flowers"):
        assert all(cell["kind"] == "measured" for cell in tables[name]["cells"])
    assert not any("flowers" in column or "cells" in column for column in columns(tables["2"]))
    assert [cell["mean"] for cell in tables["flowers"]["cells"] if cell["column"] == "knn/20"] == [None, 71.0]


def test_every_record_with_a_score_is_in_exactly_one_default_table() -> None:
    everything = [
        *mine(),
        make("voc", "voc0712", {"bbox/AP": 50.0}, COCO),
        make("voc", "birds", {"bbox/AP": 51.0}, COCO),
    ]
    means = [
        cell["mean"] for table in content(everything).values() for cell in table["cells"] if cell["kind"] == "measured"
    ]
    shown = sorted(mean for mean in means if mean is not None)
    hidden = ("best_top1", "bbox/APs")
    assert shown == sorted(x for r in everything for name, x in r.metrics.items() if name not in hidden)


def test_a_task_of_a_user_has_columns_and_the_end_of_a_pre_training_has_none() -> None:
    own = make("centroid", "flowers", {"centroid_top1": 33.0}, R18)
    end = make("pretrain", "flowers", {"diverged": 0.0}, R18, evaluation={})
    tables = content([own, end])
    assert columns(tables["flowers"]) == ["centroid/centroid_top1"]


def test_data_sets_limit_tables_columns_and_rows() -> None:
    tables = content(mine(), datasets=["CIFAR-10"])
    assert list(tables) == ["2", "cifar10"]
    assert columns(tables["2"]) == ["cifar10/top1", "cifar10/5nn", "cifar10/top5"]
    assert {cell["label"] for cell in tables["2"]["cells"]} >= {"SimCLR", "INTL (ours)"}
    assert list(content(mine(), datasets=["flowers", "cells"])) == ["cells", "flowers"]
    assert list(content([], datasets=["imagenet"])) == ["1"]
    assert list(content([], datasets=["coco"])) == ["3"]
    assert list(content([], datasets=["voc"])) == ["VOC"]
    assert list(content([], datasets=["imagenet"], tables=["1", "2", "4"])) == ["1", "4"]


def test_measured_only_has_neither_published_rows_nor_empty_columns() -> None:
    text = render(mine(), measured_only=True)
    tables = content(mine(), measured_only=True)
    assert list(tables) == ["2", "cells", "cifar10", "flowers"]
    assert columns(tables["2"]) == ["cifar10/top1"]
    assert "SimCLR" not in text
    assert "arXiv" not in text


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {"measured_only": True}, "tables: nothing measured; expected records"),
        ([], {"datasets": ["cifar10"], "measured_only": True}, "tables: nothing measured on cifar10; expected records"),
        (
            mine(),
            {"datasets": ["flower"]},
            "data set 'flower': no record and no published value; did you mean flowers?",
        ),
        (
            mine(),
            {"datasets": ["x"]},
            "expected one of aircraft, caltech101, cars, cells, cifar10, cifar100, coco2017, dtd, flowers, ",
        ),
        (mine(), {"notes": "long"}, "notes 'long': no such notes; choose from full, short, none"),
    ],
)
def test_what_does_not_exist_is_an_error(records: list[ResultRecord], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        render(records, **options)
    assert message in str(error.value)


def test_notes_are_full_short_or_none() -> None:
    records = [make("linear", "cifar10", {"top1": 90.0 + s}, {**LINEAR, **R18}, transfer_seed=s) for s in (0, 1)]
    full, short, none = (content(records, tables=["2"], notes=notes)["2"] for notes in ("full", "short", "none"))
    assert "Evaluation: linear: epochs 100" in full["notes"][2]["text"]
    assert short["notes"] == [
        {"mark": "a", "text": "The authors evaluate CIFAR-100 with the mean and std of CIFAR-10."},
        {"mark": "1", "text": "Pre-training: batch size 256, epochs 1000. 1 pre-training seed, 2 transfer seeds."},
        {"mark": "", "text": "† over the transfer seeds of one pre-training."},
        {"mark": "", "text": "Measured cells: mean ± std (n) over n pre-trainings."},
    ]
    assert none["notes"] == []
    assert {cell["marks"] for cell in none["cells"]} == {""}
    assert none["caption"].endswith("†: over the transfer seeds of one pre-training.")  # a mark in a cell is explained
    assert "†" not in content(records[:1], tables=["2"], notes="none")["2"]["caption"]


def test_the_command_has_the_options(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    for record in mine():
        RecordStore(tmp_path / "records").append(record)
    words = ["tables", "--results", str(tmp_path), "--dataset", "flowers", "--measured-only", "--notes", "none"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**Table flowers.** Results on flowers that the paper's tables do not have."
    assert len([line for line in lines if line.startswith("| INTL")]) == 2  # 5-nn and 20-nn are two evaluations
    assert max(map(len, lines)) < 200


def test_a_tie_of_cells_with_different_digits_is_decided_by_the_digits_of_both() -> None:
    def pair(first: list[float], second: list[float]) -> list[bool]:
        records = [
            make("linear", "flowers", {"top1": value}, {**LINEAR, **R18}, method=method, pretrain_seed=seed)
            for method, values in (("A", first), ("B", second))
            for seed, value in enumerate(values)
        ]
        return [cell["bold"] for cell in content(records)["flowers"]["cells"]]

    assert pair([38.4, 42.4], [40.36, 40.38]) == [True, True]  # 40.4 ± 2.8 and 40.37 ± 0.01
    assert pair([38.4, 42.4], [40.33, 40.35]) == [True, False]  # 40.34 rounds to 40.3


def test_the_note_about_epochs_needs_a_top_1_of_a_classifier() -> None:
    def noted(name: str) -> bool:
        return any("last epoch" in note["text"] for note in content(mine())[name]["notes"])

    assert [noted(name) for name in ("flowers", "cifar10", "2", "cells")] == [True, True, True, False]
    (neighbors,) = content([make("knn", "cifar10", {"knn5": 70.0}, {**KNN, **R18})], tables=["2"]).values()
    assert not any("last epoch" in note["text"] for note in neighbors["notes"])
