"""The footnote of a measured row: scale, protocols, seeds and files."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from intl_bench.records import ResultRecord
from intl_bench.tables.grouping import column_setting_of, task_of
from intl_bench.tables.model import Table

Protocol = dict[str, str | int | float | bool | None]

ADAPTED = "the recipe's training differs from its source, as its header says"
_BUDGET = ("pretrain_epochs", "pretrain_batch_size", "pretrain_crops")  # what a short footnote states
EARLIER = "recorded by an earlier version: settings unknown beyond those listed"


def footnote(
    table: Table, row: Sequence[ResultRecord], used: Sequence[ResultRecord], differences: Sequence[str]
) -> str:
    """Return the text of a row's footnote.

    Args:
        row: all records of the row.
        used: the records whose metrics are in the cells.
        differences: the settings in which the row differs from rows of the same name, as words.
    """
    several = len({record.dataset for record in used}) > 1
    summaries = [(record, *summary(table, record)) for record in used]
    trained = [(record.dataset, _sentence(pretraining)) for record, _, pretraining in summaries]
    tasks = [
        (f"{task_of(record)} on {record.dataset}" if several else task_of(record), _sentence(evaluation))
        for record, evaluation, _ in summaries
    ]
    sentences = [
        f"Measured at {row[0].scale} scale{f': {ADAPTED}' if row[0].scale == 'adapted' else ''}",
        f"Pre-training: {_clauses(trained, name_single=False)}",
        f"Evaluation: {_clauses(tasks, name_single=True)}",
    ]
    if row[0].schema == 1:
        sentences.append(EARLIER)
    if differences:
        sentences.append(f"Unlike rows of the same name: {', '.join(differences)}")
    files = sorted(
        {str(record.details.get("checkpoint", "")) for record in used if "source" in record.pretraining} - {""}
    )
    if files:  # users identify the checkpoint of another project by its file name
        sentences.append(f"Checkpoints: {', '.join(files)}")
    sentences.append(", ".join(_counts(row, used)))
    versions = sorted({_version(record.code) for record in used})
    if len(versions) > 1:
        sentences.append(f"Code versions: {', '.join(versions)}")
    return "".join(f"{sentence[0].upper()}{sentence[1:]}. " for sentence in sentences).rstrip()


def short_footnote(table: Table, used: Sequence[ResultRecord]) -> str:
    """Return the budget of the pre-training and the numbers of seeds of a row."""
    budgets = []
    for record in used:
        _, pretraining = summary(table, record)
        budget = _sentence({key: value for key, value in pretraining.items() if key in _BUDGET})
        budgets.append((record.dataset, budget))
    return f"Pre-training: {_clauses(budgets, name_single=False)}. {', '.join(_seeds(used))}."


def summary(table: Table, record: ResultRecord) -> tuple[Protocol, Protocol]:
    """Return the protocols of the evaluation and of the pre-training, without the settings that the columns show."""
    in_column = "pretrain_" + column_setting_of(table, record).rpartition(".")[2].removeprefix("pretrain_")
    evaluation, pretraining = {}, {}
    for key, value in record.protocol.items():
        if key.startswith("pretrain_"):
            if key != in_column:
                pretraining[key] = value
        elif (record.task, key) != ("finetune", "train_percent"):
            evaluation[key] = value
    return evaluation, pretraining


def _counts(row: Sequence[ResultRecord], used: Sequence[ResultRecord]) -> list[str]:
    counts = [*_seeds(used), _count(len(used), "record")]
    if len(row) > len(used):
        counts.append(f"{_count(len(row) - len(used), 'older record')} of the same seeds left out")
    return counts


def _seeds(used: Sequence[ResultRecord]) -> list[str]:
    seeds = {record.pretrain_seed for record in used}
    counts = [_count(len(seeds - {None}), "pre-training seed")] if seeds != {None} else []
    counts += ["an unknown pre-training seed"] if None in seeds else []
    return [*counts, _count(len({record.transfer_seed for record in used}), "transfer seed")]


def _version(code: Mapping[str, object]) -> str:
    commit = str(code.get("commit") or "")[:7]
    about = ", ".join(filter(None, [commit, "modified" if code.get("modified") else ""]))
    return f"{code.get('version', 'unknown')}{f' ({about})' if about else ''}"


def _clauses(items: list[tuple[str, str]], *, name_single: bool) -> str:
    """Join (subject, text) pairs. Each text occurs once, after all of its subjects.

    Args:
        name_single: whether the subjects are also named if there is a single text.
    """
    subjects: dict[str, set[str]] = defaultdict(set)
    for subject, text in items:
        subjects[text].add(subject)
    if len(subjects) == 1 and not name_single:
        return items[0][1]
    return "; ".join(sorted(f"{' and '.join(sorted(names))}: {text}" for text, names in subjects.items()))


def _sentence(protocol: Protocol) -> str:
    words = {key: key.removeprefix("pretrain_").replace("_", " ") for key in sorted(protocol)}
    return ", ".join(f"{word} {value_text(protocol[key])}" for key, word in words.items()) or "not stated"


def value_text(value: str | int | float | bool | None) -> str:
    """Return a value of a protocol as text for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not stated" if value is None else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
