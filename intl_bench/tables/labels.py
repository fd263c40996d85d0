"""The label of a measured row, and what tells it from rows that would read alike."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from intl_bench.core.datasets import PAPER
from intl_bench.records import ResultRecord
from intl_bench.tables.footnotes import value_text
from intl_bench.tables.grouping import (
    dataset_in_label,
    evaluation_of,
    flat_evaluation,
    spread_key,
    task_of,
    trained,
    varying,
)
from intl_bench.tables.identities import flatten, has_fingerprint, name, shown
from intl_bench.tables.model import Table

_USUAL = 3  # settings that a label tells, unless it takes more to tell the rows apart

# A row has one identity of each: ("pretraining",), or ("pretraining", data set) where it has several pre-trainings, and
# ("evaluation", task, data set), of which the last is "" where the columns or the label say it.
Part = tuple[str, ...]
# The start of parts for all of which a setting holds, such as ("evaluation", task), and its dotted key
Key = tuple[Part, str]
# part -> what tells the identity from others, and the identity flattened
Identities = Mapping[Part, tuple[Hashable, dict[str, str]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """`text` is the label; `told` is all that tells the row from those that would read alike, as words."""

    text: str
    told: Sequence[str]


def labels_of(table: Table, rows: Sequence[Sequence[ResultRecord]]) -> list[Label]:
    """One label a row; of rows that would read alike each also says the settings that tell them apart."""
    plain = [_plain(table, row) for row in rows]
    forms = [", ".join(sorted({_form(record) for record in row} - {""})) for row in rows]
    told: list[list[str]] = [[] for _ in rows]
    first = [_USUAL for _ in rows]
    flat: dict[Hashable, dict[str, str]] = {}
    for alike in _equal(plain):
        if len({forms[row] for row in alike}) > 1:
            for row in alike:
                told[row] += [forms[row]] if forms[row] else []
        for same in _equal(forms, alike):
            if len(same) > 1:
                apart, needed = _apart([_identities(table, rows[row], flat) for row in same])
                for row, words in zip(same, apart, strict=True):
                    first[row] = max(_USUAL, len(told[row]) + needed)
                    told[row] += words
    return [
        Label(text=f"{start}{_parts_of_data(row)}{_first(words, count)}{end}", told=words)
        for (start, end), row, words, count in zip(plain, rows, told, first, strict=True)
    ]


def _plain(table: Table, row: Sequence[ResultRecord]) -> tuple[str, str]:
    """Start and end of a label, between which stands what tells it apart."""
    first = row[0]
    backbone = re.sub(r"^resnet(?=\d)", "ResNet-", first.backbone).replace("_", " ")
    always = []
    for key in table.told:
        values = {value_text(record.protocol[key]) for record in row if key in record.protocol}
        always += [f"{key} {'/'.join(sorted(values))}"] if values else []
    earlier = "recorded by an earlier version" if first.schema == 1 else ""
    about = ", ".join(filter(None, [backbone, dataset_in_label(table, first), *always, earlier]))
    return f"{first.method} ({about}", f"; measured, {first.scale} scale)"


def _parts_of_data(row: Sequence[ResultRecord]) -> str:
    """The data sets of the paper of whose training images only a part was used."""
    images = defaultdict(set)
    for record in row:
        count = record.protocol.get("train_images")
        # Fine-tuning takes a share of the images anyway, and its column says which.
        if record.task != "finetune" and record.dataset in PAPER and isinstance(count, int):
            images[record.dataset].add(count)
    several = len({record.dataset for record in row}) > 1
    return "".join(
        f", {'/'.join(f'{count:,}' for count in sorted(counts))} training images{f' of {dataset}' if several else ''}"
        for dataset, counts in sorted(images.items())
        if counts != {PAPER[dataset].train}
    )


def _form(record: ResultRecord) -> str:
    """What kind of identity a pre-training has; those of two kinds have no settings to compare."""
    if "source" in record.pretraining:
        return f"{name('pretraining', 'source')} {record.pretraining['source']}"
    return "random initialization" if "initialization" in record.pretraining else ""


def _first(words: Sequence[str], count: int) -> str:
    more = f" and {len(words) - count} more" if len(words) > count else ""
    return "".join(f", {word}" for word in words[:count]) + more


def _identities(table: Table, row: Sequence[ResultRecord], flat: dict[Hashable, dict[str, str]]) -> Identities:
    """The identities of a row; `flat` keeps the flattened ones."""
    found: dict[Part, tuple[Hashable, dict[str, str]]] = {}
    pretrainings = {trained(table, record) for record in row}
    for record in row:
        part: Part = ("pretraining", record.dataset) if len(pretrainings) > 1 else ("pretraining",)
        if part not in found:
            digest = trained(table, record)
            if digest not in flat:
                flat[digest] = flatten(record.pretraining)
                flat[digest].pop(spread_key(table, record), None)
            found[part] = digest, flat[digest]
        if not record.evaluation:
            continue
        evaluation = evaluation_of(record)
        if evaluation not in flat:
            flat[evaluation] = flat_evaluation(table, record)
        dataset = record.dataset if table.datasets is None else ""
        found["evaluation", task_of(record), dataset] = evaluation, flat[evaluation]
    return found


def _apart(rows: Sequence[Identities]) -> tuple[list[list[str]], int]:
    """What tells each row from the others, in words, the most telling first; and how many it takes at most."""
    values = _compare(rows)
    # Rows without a data set and task in common: they are compared by task, whatever the data set.
    for alike in _equal([tuple(sorted(found.items())) for found in values]):
        if len(alike) > 1:
            for row, found in zip(alike, _compare([_merged(rows[row]) for row in alike]), strict=True):
                values[row] = values[row] | found
    order, needed = _order(values)
    return [[f"{_name(key)} {shown(found[key])}" for key in order if key in found] for found in values], needed


def _name(key: Key) -> str:
    (kind, *about), dotted = key
    return " ".join(filter(None, [" on ".join(filter(None, about)), name(kind, dotted)]))


def _compare(rows: Sequence[Identities]) -> list[dict[Key, str]]:
    """The values of each row that differ from another row's on the same data set and task."""
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
    """Whether a row's values for some parts are those of all its parts with the same start of `depth` words."""
    return all(
        identities[part][1].get(dotted) == flat.get(dotted)
        for part in parts
        if part in identities
        for other, (_, flat) in identities.items()
        if other[:depth] == part[:depth]
    )


def _merged(identities: Identities) -> Identities:
    """One identity of the pre-training and one of each task, whatever the data set."""
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
    """All keys, settings before fingerprints, short before long; and how many of the first tell the rows apart."""
    keys = sorted({key for found in values for key in found}, key=lambda key: (len(_name(key)), key))
    fingerprints = {key for found in values for key, text in found.items() if has_fingerprint(text)}
    settings = [key for key in keys if key not in fingerprints]
    others = [key for key in keys if key in fingerprints]
    chosen, classes = _telling(values, settings, [0] * len(values))
    chosen += _telling(values, others, classes)[0]
    return chosen + [key for key in (*settings, *others) if key not in chosen], len(chosen)


def _telling(
    values: Sequence[Mapping[Key, str]], pool: Sequence[Key], classes: Sequence[int]
) -> tuple[list[Key], Sequence[int]]:
    """The keys that split the classes of the rows further, the best first, and the classes they make."""
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
    """The number of each row's class, where rows of one class also have the same value."""
    numbers: dict[tuple[int, str | None], int] = {}
    return [numbers.setdefault(pair, len(numbers)) for pair in zip(classes, values, strict=True)]


def _equal(values: Sequence[object], among: Sequence[int] | None = None) -> list[list[int]]:
    """The places of equal values, of all or of some."""
    found: dict[object, list[int]] = defaultdict(list)
    for place in range(len(values)) if among is None else among:
        found[values[place]].append(place)
    return list(found.values())
