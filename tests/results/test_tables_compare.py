"""`tables --compare`: Student's t against closed forms, pairing by seeds, what is not comparable, and names of rows."""

import csv
import io
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from table_cases import COCO, KNN, LINEAR, R18, RANDOM, make, with_settings

from intl_bench import cli
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables import render_comparison
from intl_bench.tables.intervals import paired, t_quantile, welch


@pytest.mark.parametrize(
    ("df", "expected"),
    [
        (1, math.tan(math.pi * 0.475)),  # Cauchy
        (2, 0.95 * math.sqrt(2 / (1 - 0.95**2))),  # the closed form of two degrees of freedom
        (4, 2.7764451052),
        (10, 2.2281388520),
        (30, 2.0422724563),
        (1e6, statistics.NormalDist().inv_cdf(0.975)),
    ],
)
def test_quantiles_of_student_s_t(df: float, expected: float) -> None:
    assert t_quantile(df) == pytest.approx(expected, rel=1e-5)


def test_quantiles_between_whole_degrees_of_freedom_are_between_theirs() -> None:
    assert t_quantile(1) > t_quantile(1.5) > t_quantile(2) > t_quantile(2.5) > t_quantile(3)


def test_intervals_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3)
    found = paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.3026527 / math.sqrt(3))
    # Variances 1 and 4 of three values each: Welch's df is (1/3 + 4/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 2.941
    found = welch([1.0, 2.0, 3.0], [10.0, 12.0, 14.0])
    assert found.mean == -10
    assert found.df == pytest.approx(25 / 8.5)
    assert found.half == pytest.approx(t_quantile(25 / 8.5) * math.sqrt(5 / 3))
    assert welch([1.0, 1.0], [2.0, 2.0]) == (-1.0, 0.0, 2.0)
    assert paired([1.0], [2.0])[1:] == welch([1.0], [2.0, 3.0])[1:] == (None, None)


def rows(values: dict[str, dict[int | None, list[float]]], **more: Any) -> list[ResultRecord]:
    """Return records of CIFAR-10 given as {method: {pre-training seed: [value for each transfer seed]}}."""
    return [
        make(
            "linear",
            "cifar10",
            {"top1": top1},
            {**LINEAR, **R18},
            method=name,
            pretrain_seed=seed,
            transfer_seed=t,
            **more,
        )
        for name, by_seed in values.items()
        for seed, some in by_seed.items()
        for t, top1 in enumerate(some)
    ]


def one(records: list[ResultRecord], **options: Any) -> dict[str, Any]:
    (found,) = json.loads(render_comparison(records, "A", "B", format="json", **options))
    return found


def test_shared_seeds_are_paired_and_others_are_two_samples() -> None:
    both = one(rows({"A": {0: [61.0], 1: [72.0], 2: [83.0]}, "B": {0: [60.0], 1: [70.0], 2: [80.0]}}))
    assert (both["way"], both["difference"], both["df"], both["verdict"]) == (
        "paired",
        2.0,
        2.0,
        "no difference to be seen at n = 3",
    )
    assert (both["low"], both["high"]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    other = one(rows({"A": {3: [61.0], 4: [72.0], 5: [83.0]}, "B": {0: [60.0], 1: [70.0], 2: [80.0]}}))
    assert (other["way"], other["difference"]) == ("Welch", 2.0)
    assert other["high"] - other["low"] > 30
    some = one(rows({"A": {0: [61.0], 1: [72.0], 9: [83.0]}, "B": {0: [60.0], 1: [70.0], 2: [80.0]}}))
    assert some["way"] == "Welch"  # seeds 9 and 2 have no partner
    fewer = one(rows({"A": {0: [61.0], 1: [72.0]}, "B": {0: [60.0], 1: [70.0], 2: [80.0]}}))
    assert (fewer["way"], fewer["n_a"], fewer["n_b"], fewer["difference"]) == ("paired", 2, 2, 1.5)
    unknown = one(rows({"A": {None: [61.0], 1: [72.0]}, "B": {None: [60.0], 1: [70.0]}}))
    assert unknown["way"] == "Welch"


def test_the_verdict_names_the_higher_row() -> None:
    high, low = {0: [70.0], 1: [70.4], 2: [70.2]}, {0: [60.0], 1: [60.3], 2: [60.1]}
    assert one(rows({"A": high, "B": low}))["verdict"] == "A is higher"
    assert one(rows({"A": low, "B": high}))["verdict"] == "B is higher"
    assert one(rows({"A": high, "B": high}))["verdict"] == "equal"


def test_a_small_n_is_named() -> None:
    single = one(rows({"A": {0: [70.0]}, "B": {0: [60.0], 1: [61.0]}}))
    assert single["verdict"] == "n is too small to tell: 1 and 2, expected at least 2 of each"
    assert (single["low"], single["high"], single["difference"]) == (None, None, 9.5)
    text = render_comparison(rows({"A": {0: [70.0]}, "B": {0: [60.0], 1: [61.0]}}), "A", "B")
    assert re.search(r"\|\s+9\.50 \|\s+unknown \|", text)


def test_transfer_seeds_are_averaged_and_of_single_pre_trainings_they_are_all_there_is() -> None:
    nested = one(rows({"A": {0: [70.0, 72.0], 1: [73.0, 73.0]}, "B": {0: [60.0, 60.0], 1: [61.0, 63.0]}}))
    assert (nested["over"], nested["n_a"], nested["difference"], nested["df"]) == ("pre-training", 2, 11.0, 1.0)
    records = rows({"A": {0: [70.0, 70.2, 70.1]}, "B": {0: [60.0, 60.1, 60.2]}})
    single = one(records)
    assert (single["over"], single["n_a"], single["verdict"]) == ("transfer", 3, "A is higher†")
    assert "It says nothing about other pre-trainings of the two." in render_comparison(records, "A", "B")


def test_unlike_evaluations_are_not_compared() -> None:
    records = [
        *rows({"A": {0: [70.0], 1: [71.0]}}),
        *(
            make("linear", "cifar10", {"top1": 60.0 + s}, {**LINEAR, **R18, "lr": 0.4}, method="B", pretrain_seed=s)
            for s in (0, 1)
        ),
    ]
    found = one(records)
    assert (found["verdict"], found["low"]) == ("not comparable: lr 0.2 / 0.4", None)


def test_a_random_initialization_is_compared_with_the_numbers_that_a_checkpoint_brings() -> None:
    def record(method: str, mean: Any, config: list[float], seed: int, **more: Any) -> ResultRecord:
        base = make("knn", "cifar10", {"knn5": 50.0 + seed}, {**KNN, **R18}, method=method, pretrain_seed=seed, **more)
        evaluation = with_settings(base.evaluation, {"settings.data": {"mean": mean}})
        own = {"evaluation": evaluation, "config": {"data": {"mean": config}}}
        return make(
            "knn", "cifar10", {"knn5": 50.0 + seed}, {**KNN, **R18}, method=method, pretrain_seed=seed, **more, **own
        )

    def verdict(mean: list[float]) -> str:
        trained = [record("A", "checkpoint", [0.5, 0.5], seed) for seed in (0, 1)]
        random = [record("B", mean, mean, seed, pretraining=RANDOM) for seed in (0, 1)]
        return str(one([*trained, *random])["verdict"])

    assert verdict([0.5, 0.5]) == "equal"
    assert verdict([0.4, 0.5]) == "not comparable: data.mean 0.5 0.5 / 0.4 0.5"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ("Zed", "B"),
            {},
            "no measured row is named 'Zed'; expected a method (A, B), words of a label, or TABLE:ROW, such as 2:1",
        ),
        (("aa", "A"), {}, "no measured row is named 'aa'"),
        (("ResNet", "B"), {}, "'ResNet' is the name of 2 rows of table 2; expected one row: write --compare 2:1 B (A)"),
        (("1", "2"), {}, "1 is a row of 2 tables; expected TABLE:ROW, such as 2:1 or cells:1"),
        (("A", "B"), {"format": "html"}, "format 'html'; expected text, markdown, csv, json"),
        (
            ("A", "a"),
            {"datasets": ["cifar10"]},
            "'A' and 'a' are both row 1 of table 2; expected two measured rows, such",
        ),
        (("cells:1", "A"), {}, "'cells:1' and 'A' are both row 1 of table cells"),
        (("", "B"), {}, "no measured row is named ''"),
        (("A", "B"), {"datasets": ["cells"]}, "no measured row is named 'B'"),
    ],
)
def test_a_row_that_is_not_there_is_an_error(names: tuple[str, str], options: dict[str, Any], message: str) -> None:
    records = [*rows({"A": {0: [1.0]}, "B": {0: [1.0]}}), make("coco", "cells", {"bbox/AP": 1.0}, COCO, method="A")]
    with pytest.raises(InputError) as error:
        render_comparison(records, *names, **options)
    assert message in str(error.value)


def test_the_command_compares_rows_by_name_and_by_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for record in rows({"A": {0: [70.0], 1: [70.1]}, "B": {0: [60.0], 1: [60.1]}}):
        RecordStore(tmp_path / "records").append(record)
    words = ["tables", "--results", str(tmp_path)]
    assert cli.main([*words, "--compare", "b", "a"]) == 0
    by_name = capsys.readouterr().out
    assert "B is higher" in by_name
    assert cli.main([*words, "--table", "2", "--compare", "2", "1"]) == 0
    assert capsys.readouterr().out == by_name
    assert cli.main([*words, "--compare", "A", "B", "--format", "csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (round(float(line["difference"]), 9), line["way"], line["verdict"]) == (10.0, "paired", "A is higher")


def test_parts_of_words_are_no_names() -> None:
    """An article or a letter is in most labels: `--compare A B` compared a row with itself."""
    records = rows({"INTL": {0: [1.0]}, "Barlow Twins": {0: [2.0]}})
    for words in (("a", "b"), ("Res", "INTL"), ("NTL", "Barlow")):
        with pytest.raises(InputError, match=f"no measured row is named '{words[0]}'"):
            render_comparison(records, *words)
    (found,) = json.loads(render_comparison(records, "barlow", "INTL", format="json"))
    assert found["difference"] == 1.0


def test_every_choice_that_an_error_gives_is_a_command_that_works() -> None:
    records = [
        make(
            "linear",
            "cifar10",
            {"top1": 50.0 + seed},
            {**LINEAR, **R18, "epochs": epochs},
            method=m,
            pretrain_seed=seed,
        )
        for m in ("INTL", "Random init")
        for epochs in (50, 100)
        for seed in (0, 1)
    ]
    with pytest.raises(InputError) as error:
        render_comparison(records, "INTL", "Random init")
    choices = re.findall(r"--compare (\S+) (\S+) \((.*?)\)", str(error.value))
    assert choices == [("2:1", "2:3", "epochs 50"), ("2:2", "2:4", "epochs 100")]  # the partner has the same evaluation
    for first, second, words in choices:
        (found,) = json.loads(render_comparison(records, first, second, format="json"))
        assert (found["verdict"], words in found["row_a"]) == ("equal", True)


def test_rows_without_a_common_column_are_no_choice() -> None:
    records = [
        *rows({"A": {0: [1.0]}, "B": {0: [2.0]}}),
        make("knn", "cifar10", {"knn5": 3.0}, {**KNN, "k": 9}, method="B"),
    ]
    assert one(records)["difference"] == -1.0


def test_a_way_is_named_only_where_there_is_an_interval() -> None:
    assert one(rows({"A": {0: [70.0]}, "B": {0: [60.0], 1: [61.0]}}))["way"] == ""
    unlike = make("linear", "cifar10", {"top1": 60.0}, {**LINEAR, **R18, "lr": 0.4}, method="B")
    assert one([*rows({"A": {0: [70.0], 1: [71.0]}}), unlike])["way"] == ""
