"""What a sweep leaves: a record of each recipe and seed with the chosen setting, and their table."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_bench.ablations import cells, fresh, scoring
from intl_bench.ablations import sweep as sweeps
from intl_bench.core import files
from intl_bench.core.identity import digest
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables import render
from intl_bench.tables import tuning as table
from transfer.selection import VAL

_IMAGES = ("train_images", "test_images")


def finish(sweep: sweeps.Sweep, results: Path) -> str:
    """Write a record of each recipe and seed, and the table of all sweeps in this folder; return the table.

    Records of the same search with another choice, which an earlier search made, are deleted.

    Raises:
        InputError: a cell has no records yet.
    """
    store = RecordStore(results / "records")
    search = sweeps.tried(sweep, results)
    chosen, records = sweeps.choose(search), store.load()
    read = dict[str, dict[str, str]]()
    names, made = [recipe for _ in sweep.seeds for recipe in sweep.recipes], set[tuple[str, str]]()
    ends = sweeps.ends(sweep.final_cells(sweeps.settings_of(chosen)), records)
    for name, (planned, cell) in zip(names, ends, strict=True):
        own = dict(scoring.evaluations(sweep.search.tasks, planned, read))
        tuned = _record(sweep, cell, own, sweeps.scores_of(cell, own, records), search[name], chosen[name])
        store.replace(tuned)
        made.add((tuned.pretraining_sha256, tuned.evaluation_sha256))
    earlier = [record for record in records if record.task == table.TASK]
    others = _other_choices(sweep, read) - made if earlier else set()
    for record in earlier:
        if (record.pretraining_sha256, record.evaluation_sha256) in others:
            store.remove(record)
    text = render([record for record in store.load() if record.task == table.TASK], tables=["tuning"])
    files.write_text(results / "table.md", text + "\n")
    for folder in (results, sweep.search_results(results)):
        fresh.end(folder)
    return text


def _other_choices(sweep: sweeps.Sweep, read: dict[str, dict[str, str]]) -> set[tuple[str, str]]:
    """Return the digests of the pre-training and of the evaluation of a record, for every choice.

    Args:
        read: see `scoring.evaluations`.
    """
    choices = [cells.recipes(sweep.final(dict.fromkeys(sweep.recipes, one)), sweep.seeds[0]) for one in sweep.settings]
    found = set()
    for planned in scoring.planned_checkpoints([recipe for made in choices for recipe in made]):
        own = dict(scoring.evaluations(sweep.search.tasks, planned, read))
        found.add((digest(planned.pretraining()), digest(_evaluation(sweep, own))))
    return found


def _record(
    sweep: sweeps.Sweep,
    cell: ResultRecord,
    evaluations: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, ResultRecord],
    options: Sequence[sweeps.Tried],
    best: sweeps.Tried,
) -> ResultRecord:
    """Return the record of a tuned method: its test scores, and the search as its evaluation.

    The evaluation is that of the plan, so that a seed that diverged is averaged with the others.
    """
    metrics = {f"{task}/{name}": value for task, record in scores.items() for name, value in record.metrics.items()}
    metrics = {name: value for name, value in metrics.items() if "/best_" not in name} | cell.metrics
    if sweep.select == VAL and best.score is not None and cell.pretrain_seed == sweep.seeds[0]:
        metrics["val/score"] = best.score
    evaluation = _evaluation(sweep, evaluations)
    held = f"{sweep.share:.4g} of the training images, held out of the search"
    protocol = {
        "chosen": ", ".join(best.setting).replace("=", " "),
        "budget": f"{evaluation['budget']} of {sweep.size} settings",
        "space": "; ".join(f"{key} {' '.join(values)}" for key, values in sweep.space.items()),
        "chosen_by": f"{sweeps.SCORES[sweep.task]} of {sweep.chosen_by}, seed {sweep.seeds[0]}",
        "chosen_on": held if sweep.select == VAL else "the test images",
    }
    details = {
        "pretrain": cell.details.get("pretrain"),
        "search": [{"setting": list(option.setting), "score": option.score} for option in options],
        "search_seconds": round(sum(option.cell.wall_time_s for option in options), 2),
        "scores": {task: record.key for task, record in scores.items()},
        **({"diverged": cell.details["diverged"]} if "diverged" in cell.details else {}),
    }
    own = {key: value for record in scores.values() for key, value in record.protocol.items() if key in _IMAGES}
    return dataclasses.replace(
        cell,
        task=table.TASK,
        metrics=metrics,
        details=details,
        evaluation=evaluation,
        protocol={**cell.protocol, **own, **protocol},
        file="",
    )


def _evaluation(sweep: sweeps.Sweep, evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the identity of the evaluation of a tuned method: the search, and its scores by task."""
    part = {"holdout": sweep.share} if sweep.select == VAL else {}
    return {
        "space": {key: list(values) for key, values in sweep.space.items()},
        "budget": sweep.tries,
        **({"draw_seed": sweep.draw_seed} if sweep.tries < sweep.size else {}),
        "search_seed": sweep.seeds[0],
        "selection": {"on": sweep.select, "by": sweep.chosen_by, **part},
        "scores": {task: digest(own) for task, own in sorted(evaluations.items())},
        "data": next(iter(evaluations.values()))["data"],
    }
