"""The cells of a measured row: metrics averaged over transfer seeds, then over pre-trainings."""

import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal

from intl_bench.records import ResultRecord
from intl_bench.tables.footnotes import summary
from intl_bench.tables.identities import flatten, value_at
from intl_bench.tables.model import Cell, Measurement, Table

DAGGER = "†"


def summarize(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation (divisor n - 1; None for one value).

    Both are correctly rounded, so the order of the values does not change them.
    """
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def cell_text(values: Sequence[float], decimals: int, mark: str = "") -> str:
    """Return the text of a measured cell: `61.2 ± 0.08 (3)`, or `61.2 (1)` for one value.

    The deviation has two digits, at most two of them decimals. The mean has no more decimals than the deviation.

    Args:
        values: one number for each pre-training, or for each transfer seed of a single pre-training.
        decimals: the largest number of decimals of the mean.
        mark: follows the number of values in the brackets.
    """
    mean, std = summarize(values)
    if std is None:
        return f"{rounded(mean, decimals)} ({len(values)}{mark})"
    known = decimals_of_spread(std)
    return f"{rounded(mean, min(decimals, known))} ± {rounded(std, known)} ({len(values)}{mark})"


def decimals_of_spread(spread: float) -> int:
    """Return the decimals with which a deviation or the half width of an interval has two digits, at most two."""
    return next(digits for digits in (2, 1, 0) if digits == 0 or float(rounded(spread, digits)) < 10 ** (2 - digits))


def averaged_columns(table: Table, rows: Sequence[Sequence[ResultRecord]]) -> list[str]:
    """Return the keys of the columns that `Table.average` averages: those with a value in every row, if several."""
    if not table.average or not rows:
        return []
    have = [{c for r in row for c, metric in table.place(r).items() if metric in r.metrics} for row in rows]
    common = sorted(set.intersection(*have))
    return common if len(common) > 1 else []


def mixed_settings(table: Table, row: Sequence[ResultRecord], averaged: Sequence[str]) -> list[str]:
    """Return the settings in which the averaged columns of a row differ, `Table.own_settings` left out."""
    used = [record for record in row if not table.place(record).keys().isdisjoint(averaged)]
    found: dict[str, set[str]] = defaultdict(set)
    for settings in (flatten(record.evaluation.get("settings", {})) for record in used):
        for key, value in settings.items():
            found[key].add(value)
    return sorted(key for key, values in found.items() if len(values) > 1 and key not in table.own_settings)


def cells_of(
    table: Table, row: Sequence[ResultRecord], averaged: Sequence[str] = ()
) -> tuple[dict[str, Cell], dict[str, list[Measurement]]]:
    """Return the cells of one row, and what they are made of, both by column key.

    Args:
        averaged: see `averaged_columns`. A row in which these columns have different settings has no average.
    """
    placed: dict[str, dict[tuple[int | None, int], Measurement]] = defaultdict(dict)
    for record in sorted(row, key=lambda r: (r.created_at, r.key, sorted(r.metrics.items()))):
        for column, metric in table.place(record).items():
            if metric in record.metrics:
                # A later record with the same seeds replaces the earlier one: it is not an additional sample.
                placed[column][record.pretrain_seed, record.transfer_seed] = Measurement(record.metrics[metric], record)
    cells = {column: _cell(table, by_seeds) for column, by_seeds in placed.items()}
    comparable = averaged and not mixed_settings(table, row, averaged)
    if comparable and (together := _average([placed[column] for column in averaged])):
        placed[table.average] = together
        ranks = [cells[column].rank_with for column in averaged]
        rank = None if None in ranks else _json(dict(zip(averaged, ranks, strict=True)))
        cells[table.average] = dataclasses.replace(_cell(table, together), rank_with=rank, protocol=None)
    return cells, {column: list(by_seeds.values()) for column, by_seeds in placed.items()}


def _average(
    columns: Sequence[Mapping[tuple[int | None, int], Measurement]],
) -> dict[tuple[int | None, int], Measurement]:
    """Return the mean over columns for each pre-training that all of them have, with the first transfer seed."""
    average = {}
    for seed in sorted({seed for seed, _ in columns[0]}, key=lambda seed: -1 if seed is None else seed):
        parts = [[one for (other, _), one in column.items() if other == seed] for column in columns]
        if all(parts):
            mean = statistics.mean(statistics.mean(one.value for one in part) for part in parts)
            average[seed, 0] = Measurement(mean, parts[0][0].record)
    return average


def _cell(table: Table, by_seeds: dict[tuple[int | None, int], Measurement]) -> Cell:
    """Return the cell of {(pre-training seed, transfer seed): (value, record)}."""
    by_pretraining: dict[int | None, list[float]] = defaultdict(list)
    for (pretrain_seed, _), (value, _) in by_seeds.items():
        by_pretraining[pretrain_seed].append(value)
    n = len(by_pretraining)
    transfer_seeds = max(map(len, by_pretraining.values()))
    values = [statistics.mean(values) for values in by_pretraining.values()]
    std_over = "pre-training" if n > 1 else None
    if n == 1 and transfer_seeds > 1:
        (values,), std_over = by_pretraining.values(), "transfer"
    mean, std = summarize(values)
    _, first = next(iter(by_seeds.values()))
    evaluation, pretraining = summary(table, first)
    return Cell(
        cell=cell_text(values, table.decimals, DAGGER if std_over == "transfer" else ""),
        mean=mean,
        std=std,
        n=n,
        transfer_seeds=transfer_seeds,
        std_over=std_over,
        protocol=_json({"evaluation": evaluation, "pretraining": pretraining}),
        rank_with=_rank_with(first),
    )


def _rank_with(record: ResultRecord) -> str | None:
    """Return what cells of one column must share to be ranked together; None for a cell that is never ranked."""
    pretraining = record.pretraining
    data, epochs = pretraining.get("data"), value_at(pretraining, "settings.epochs")
    if pretraining.get("initialization") == "random":
        budget = None
    elif data is None or epochs is None:
        return None
    else:
        budget = [data, epochs, pretraining.get("progress"), pretraining.get("initial_weights")]
        budget += [steps for steps in [value_at(pretraining, "settings.max_steps")] if steps is not None]
    return _json(
        {
            "dataset": record.dataset,
            "evaluation": record.evaluation_sha256,
            "scale": record.scale,
            "backbone": [record.backbone, value_at(pretraining, "settings.backbone.stem")],
            "pretraining": budget,
        }
    )


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def rounded(value: float, decimals: int) -> str:
    """Return a number with this number of decimals; a half is rounded up."""
    # Decimal(repr(value)) is the shortest decimal form. So 0.005 counts as a half and is rounded up, although the
    # nearest binary number may lie below it.
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))
