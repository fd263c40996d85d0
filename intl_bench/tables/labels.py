"""The label of a measured row, and the settings that distinguish it from rows of the same name."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from intl_bench.core.datasets import DATASETS
from intl_bench.records import ResultRecord
from intl_bench.tables.footnotes import value_text
from intl_bench.tables.grouping import (
    column_setting_of,
    dataset_in_label,
    evaluation_of,
    flat_evaluation,
    pretraining_digest,
    task_of,
    varying,
)
from intl_bench.tables.identities import flatten, has_fingerprint, readable_key, shorten_fingerprints
from intl_bench.tables.model import Table

# Keys of a protocol that every label has: on which images a score was measured or chosen, if not as usual.
_ALWAYS = ("scored_on", "chosen_on")
_USUAL = 3  # number of settings in a label, unless more are needed to distinguish the rows

# A row has one identity for each of these parts:
#     ("pretraining",), or ("pretraining", data set) if the row has several pre-trainings;
#     ("evaluation", task, data set); the data set is "" if the columns or the label show it.
Part = tuple[str, ...]
# A setting: the common start of all parts for which it holds, such as ("evaluation", task), and its dotted key.
Key = tuple[Part, str]
# part -> (identity, flattened identity). The first may be a digest; it is only compared with others.
Identities = Mapping[Part, tuple[Hashable, dict[str, str]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A label as shown.

    Attributes:
        text: the label with the most important differences.
        differences: all settings that distinguish the row from rows of the same name, as words.
    """

    text: str
    differences: Sequence[str]


def labels_of(table: Table, rows: Sequence[Sequence[ResultRecord]]) -> list[Label]:
    """Return a label for each row. Rows that would have equal labels also show the settings that distinguish them."""
    plain = [_plain(table, row) for row in rows]
    kinds = [", ".join(sorted({_kind(record) for record in row} - {""})) for row in rows]
    differences: list[list[str]] = [[] for _ in rows]
    shown = [_USUAL for _ in rows]
    flat: dict[Hashable, dict[str, str]] = {}
    for alike in _equal(plain):
        if len({kinds[row] for row in alike}) > 1:
            for row in alike:
                differences[row] += [kinds[row]] if kinds[row] else []
        for same_kind in _equal(kinds, alike):
            if len(same_kind) > 1:
                found, needed = _differences([_identities(table, rows[row], flat) for row in same_kind])
                for row, words in zip(same_kind, found, strict=True):
                    shown[row] = max(_USUAL, len(differences[row]) + needed)
                    differences[row] += words
    return [
        Label(text=f"{start}{_parts_of_data(row)}{_first(words, count)}{end}", differences=words)
        for (start, end), row, words, count in zip(plain, rows, differences, shown, strict=True)
    ]


def _plain(table: Table, row: Sequence[ResultRecord]) -> tuple[str, str]:
    """Return the start and the end of a label. The differences are inserted between them."""
    first = row[0]
    backbone = re.sub(r"^resnet(?=\d)", "ResNet-", first.backbone).replace("_", " ")
    always = []
    for key in (*table.label_keys, *_ALWAYS):
        values = {value_text(record.protocol[key]) for record in row if key in record.protocol}
        always += [f"{key.replace('_', ' ')} {'/'.join(sorted(values))}"] if values else []
    earlier = "recorded by an earlier version" if first.schema == 1 else ""
    about = ", ".join(filter(None, [backbone, dataset_in_label(table, first), *always, earlier]))
    return f"{first.method} ({about}", f"; measured, {first.scale} scale)"


def _parts_of_data(row: Sequence[ResultRecord]) -> str:
    """Return the numbers of training images, for data sets of the paper that were used in part only."""
    images = defaultdict(set)
    for record in row:
        count = record.protocol.get("train_images")
        # Fine-tuning always uses a part of the images, and its column shows the percentage.
        if record.task != "finetune" and record.dataset in DATASETS and isinstance(count, int):
            images[record.dataset].add(count)
    several = len({record.dataset for record in row}) > 1
    return "".join(
        f", {'/'.join(f'{count:,}' for count in sorted(counts))} training images{f' of {dataset}' if several else ''}"
        for dataset, counts in sorted(images.items())
        if counts != {DATASETS[dataset].train}
    )


def _kind(record: ResultRecord) -> str:
    """Return the kind of a pre-training's identity. Identities of different kinds have no settings in common."""
    if "source" in record.pretraining:
        return f"{readable_key('pretraining', 'source')} {record.pretraining['source']}"
    return "random initialization" if "initialization" in record.pretraining else ""


def _first(words: Sequence[str], count: int) -> str:
    more = f" and {len(words) - count} more" if len(words) > count else ""
    return "".join(f", {word}" for word in words[:count]) + more


def _identities(table: Table, row: Sequence[ResultRecord], flat: dict[Hashable, dict[str, str]]) -> Identities:
    """Return the identities of a row. `flat` caches flattened identities across rows."""
    found: dict[Part, tuple[Hashable, dict[str, str]]] = {}
    pretrainings = {pretraining_digest(table, record) for record in row}
    for record in row:
        part: Part = ("pretraining", record.dataset) if len(pretrainings) > 1 else ("pretraining",)
        if part not in found:
            digest = pretraining_digest(table, record)
            if digest not in flat:
                flat[digest] = flatten(record.pretraining)
                if crops := record.protocol.get("pretrain_crops"):  # a short name of most differences of views
                    flat[digest]["settings.crops"] = str(crops)
                flat[digest].pop(column_setting_of(table, record), None)
            found[part] = digest, flat[digest]
        if not record.evaluation:
            continue
        evaluation = evaluation_of(record)
        if evaluation not in flat:
            flat[evaluation] = flat_evaluation(table, record)
        dataset = record.dataset if table.datasets is None else ""
        found["evaluation", task_of(record), dataset] = evaluation, flat[evaluation]
    return found


def _differences(rows: Sequence[Identities]) -> tuple[list[list[str]], int]:
    """Find the settings that distinguish rows.

    Returns:
        for each row its differences as words, the most distinctive first; and how many of them distinguish all rows.
    """
    values = _compare(rows)
    # Rows that have no data set and task in common are compared by task alone.
    for alike in _equal([tuple(sorted(found.items())) for found in values]):
        if len(alike) > 1:
            for row, found in zip(alike, _compare([_merged(rows[row]) for row in alike]), strict=True):
                values[row] = values[row] | found
    order, needed = _order(values)
    words = [
        [f"{_readable(key)} {shorten_fingerprints(found[key])}" for key in order if key in found] for found in values
    ]
    return words, needed


def _readable(key: Key) -> str:
    (kind, *about), dotted = key
    return " ".join(filter(None, [" on ".join(filter(None, about)), readable_key(kind, dotted)]))


def _compare(rows: Sequence[Identities]) -> list[dict[Key, str]]:
    """Return for each row the values that differ from those of another row on the same data set and task."""
    differing: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in {part: None for identities in rows for part in identities}:
        distinct = dict(identities[part] for identities in rows if part in identities)
        for dotted in varying(list(distinct.values())):
            differing[part[0], dotted].append(part)
    values: list[dict[Key, str]] = [{} for _ in rows]
    for (_, dotted), parts in differing.items():
        depth = next(depth for depth in (1, 2, 3) if all(_holds(row, parts, dotted, depth) for row in rows))
        for found, identities in zip(values, rows, strict=True):
            for part in parts:
                if part in identities and dotted in identities[part][1]:
                    found[part[:depth], dotted] = identities[part][1][dotted]
    return values


def _holds(identities: Identities, parts: Sequence[Part], dotted: str, depth: int) -> bool:
    """Return whether a row's values of a setting hold for more than `parts`.

    They must be equal in all parts of the row whose first `depth` words are equal.
    """
    return all(
        identities[part][1].get(dotted) == flat.get(dotted)
        for part in parts
        if part in identities
        for other, (_, flat) in identities.items()
        if other[:depth] == part[:depth]
    )


def _merged(identities: Identities) -> Identities:
    """Return one identity for the pre-training and one for each task. Values of several data sets are joined."""
    merged: dict[Part, list[tuple[Hashable, dict[str, str]]]] = defaultdict(list)
    for (kind, *about), identity in identities.items():
        merged[(kind, *about[:1]) if kind == "evaluation" else (kind,)].append(identity)
    return {
        part: (
            tuple(one for one, _ in some),
            {
                key: "/".join(sorted({flat[key] for _, flat in some if key in flat}))
                for key in {key: None for _, flat in some for key in flat}
            },
        )
        for part, some in merged.items()
    }


def _order(values: Sequence[Mapping[Key, str]]) -> tuple[list[Key], int]:
    """Return all keys, the most distinctive first, and how many of them distinguish the rows.

    Settings come before fingerprints, and short keys before long ones.
    """
    keys = sorted({key for found in values for key in found}, key=lambda key: (len(_readable(key)), key))
    fingerprints = {key for found in values for key, text in found.items() if has_fingerprint(text)}
    settings = [key for key in keys if key not in fingerprints]
    others = [key for key in keys if key in fingerprints]
    chosen, classes = _distinctive(values, settings, [0] * len(values))
    chosen += _distinctive(values, others, classes)[0]
    return chosen + [key for key in (*settings, *others) if key not in chosen], len(chosen)


def _distinctive(
    values: Sequence[Mapping[Key, str]], pool: Sequence[Key], classes: Sequence[int]
) -> tuple[list[Key], Sequence[int]]:
    """Choose the keys that split the classes of the rows further.

    Args:
        pool: the keys to choose from.
        classes: the number of each row's class. Rows of one class are not distinguished yet.

    Returns:
        the chosen keys, the best first, and the classes after the split.
    """
    chosen: list[Key] = []
    while max(classes) < len(values) - 1:
        split = {key: _classes(classes, [found.get(key) for found in values]) for key in pool}
        best = max(pool, key=lambda key: max(split[key]), default=None)
        if best is None or max(split[best]) == max(classes):
            break
        chosen.append(best)
        classes = split[best]
    return chosen, classes


def _classes(classes: Sequence[int], values: Sequence[str | None]) -> list[int]:
    """Split classes of rows by a value; return the number of each row's new class."""
    numbers: dict[tuple[int, str | None], int] = {}
    return [numbers.setdefault(pair, len(numbers)) for pair in zip(classes, values, strict=True)]


def _equal(values: Sequence[object], among: Sequence[int] | None = None) -> list[list[int]]:
    """Return lists of the indices of equal values, of all values or of those at the indices `among`."""
    found: dict[object, list[int]] = defaultdict(list)
    for index in range(len(values)) if among is None else among:
        found[values[index]].append(index)
    return list(found.values())
