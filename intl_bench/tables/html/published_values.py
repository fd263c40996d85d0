"""The difference of a measured cell to the value that a paper prints for the same method."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from intl_bench.records import ResultRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A measured value minus a published one.

    Attributes:
        method: the printed name of the method.
        value: the published value.
        difference: measured minus published.
        unlike: what distinguishes the two measurements, as words; empty if nothing that is known does.
    """

    method: str
    value: float
    difference: float
    unlike: Sequence[str]


def difference_to(
    published: Sequence[Mapping[str, Any]], line: Mapping[str, Any], record: ResultRecord
) -> Difference | None:
    """Return the difference of a measured cell to the most similar published one; None if there is none.

    Args:
        published: the lines of the published cells of the same column.
        line: the line of the measured cell, with a mean.
        record: one of the records of the measured cell.
    """
    found = [
        Difference(
            method=other["method"],
            value=other["mean"],
            difference=line["mean"] - other["mean"],
            unlike=_unlike(json.loads(other["protocol"] or "{}"), line, record),
        )
        for other in published
        if other["mean"] == other["mean"] and _name(other["method"]) == _name(line["method"])  # not NaN
    ]
    return min(found, key=lambda one: len(one.unlike), default=None)


def _name(method: str) -> str:
    """Return a method's name as it is compared: `SwAV (repro.)` and `INTL acc.(%)` are SwAV and INTL."""
    return re.sub(r"\(.*?\)|\bacc\.|[^a-z0-9]", "", method.casefold())


def _unlike(paper: Mapping[str, Any], line: Mapping[str, Any], record: ResultRecord) -> list[str]:
    words = [] if line["scale"] == "paper" else [f"measured at {line['scale']} scale"]
    backbone = str(paper.get("backbone", "")).lower().replace("-", "")
    if backbone and backbone != line["backbone"]:
        words.append(f"backbone {line['backbone']}, published {paper['backbone']}")
    for key in ("schedule", "pretrain_epochs", "pretrain_batch_size"):
        ours, theirs = record.protocol.get(key), paper.get(key)
        known = isinstance(theirs, int) or (key == "schedule" and theirs is not None)
        if known and ours is not None and str(theirs).split(",")[0] != str(ours):
            words.append(f"{key.replace('pretrain_', 'pre-training ').replace('_', ' ')} {ours}, published {theirs}")
    return words
