"""The cells of a row: averaged over transfer seeds, then over pre-trainings."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from intl_bench.records import ResultRecord
from intl_bench.tables.footnotes import summary
from intl_bench.tables.identities import at
from intl_bench.tables.model import Cell, Table

DAGGER = "†"


def summarize(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (divisor n - 1; None for one value), correctly rounded, so in any order the same."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def cell_text(values: Sequence[float], decimals: int, mark: str = "") -> str:
    """How a measured cell looks: `61.2 ± 0.08 (3)`, or `61.2 (1)` for one value; `mark` follows their number."""
    mean, std = summarize(values)
    spread = "" if std is None else f" ± {_rounded(std, 2)}"
    return f"{_rounded(mean, decimals)}{spread} ({len(values)}{mark})"


def cells_of(table: Table, row: Sequence[ResultRecord]) -> tuple[dict[str, Cell], list[ResultRecord]]:
    """The cells of one row by column key, and the records that are in them."""
    placed: dict[str, dict[tuple[int | None, int], tuple[float, ResultRecord]]] = defaultdict(dict)
    for record in sorted(row, key=lambda r: (r.created_at, r.key, sorted(r.metrics.items()))):
        for column, metric in table.place(record).items():
            if metric in record.metrics:
                # A repetition with the seeds of an earlier one replaces it: it is no further sample.
                placed[column][record.pretrain_seed, record.transfer_seed] = record.metrics[metric], record
    used = {id(record): record for by_seeds in placed.values() for _, record in by_seeds.values()}
    return {column: _cell(table, by_seeds) for column, by_seeds in placed.items()}, list(used.values())


def _cell(table: Table, by_seeds: dict[tuple[int | None, int], tuple[float, ResultRecord]]) -> Cell:
    by_pretraining: dict[int | None, list[float]] = defaultdict(list)
    for (pretrain_seed, _), (value, _) in by_seeds.items():
        by_pretraining[pretrain_seed].append(value)
    n = len(by_pretraining)
    transfer_seeds = max(map(len, by_pretraining.values()))
    values = [statistics.mean(values) for values in by_pretraining.values()]
    spread = "pre-training" if n > 1 else None
    if n == 1 and transfer_seeds > 1:
        (values,), spread = by_pretraining.values(), "transfer"
    mean, std = summarize(values)
    _, first = next(iter(by_seeds.values()))
    evaluation, pretraining = summary(table, first)
    return Cell(
        cell=cell_text(values, table.decimals, DAGGER if spread == "transfer" else ""),
        mean=mean,
        std=std,
        n=n,
        transfer_seeds=transfer_seeds,
        spread=spread,
        protocol=_text({"evaluation": evaluation, "pretraining": pretraining}),
        rank_with=_contest(first),
    )


def _contest(record: ResultRecord) -> str | None:
    """What cells of one column must have in common to be ranked together, None for a cell that contests nothing."""
    pretraining = record.pretraining
    data, epochs = pretraining.get("data"), at(pretraining, "settings.epochs")
    if pretraining.get("initialization") == "random":
        budget = None
    elif data is None or epochs is None:
        return None
    else:
        budget = [data, epochs, pretraining.get("progress"), pretraining.get("initial_weights")]
    return _text(
        {
            "dataset": record.dataset,
            "evaluation": record.evaluation_sha256,
            "scale": record.scale,
            "backbone": [record.backbone, at(pretraining, "settings.backbone.stem")],
            "pretraining": budget,
        }
    )


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _rounded(value: float, decimals: int) -> str:
    # Through the shortest decimal form, so that 0.005 is a half and not the binary number just beside it.
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))
