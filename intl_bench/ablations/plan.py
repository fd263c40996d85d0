"""What `intl-bench ablation NAME` would do: `--dry-run`. Nothing is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intl_bench import dry_run
from intl_bench.ablations.cells import Ablation, split_scoring
from intl_bench.ablations.fresh import listed
from intl_bench.ablations.grid import is_done, require_gpu
from intl_bench.ablations.scoring import planned_checkpoint, random_records, random_scores, scoring_key, scorings
from intl_bench.core import machine, planned
from intl_bench.core.errors import BenchError
from intl_bench.records import RecordStore
from pretrain import states
from pretrain.dry_run import machine as machines
from pretrain.dry_run.plan import make_plan
from pretrain.dry_run.text import describe_data
from pretrain.recipe import Recipe

_FIXED = "fixed costs add 2 to 7 s to each pre-training and to each score"


def describe(
    ablation: Ablation,
    cells: Sequence[Recipe],
    *,
    seeds: Sequence[int],
    results: Path,
    fresh: bool,
    elsewhere: bool = False,
) -> str:
    """Describe the cells of a grid, what is done already, and the time and disk that the rest needs.

    Args:
        cells: the recipes of the first seed.
        elsewhere: see `grid.check`.

    Raises:
        InputError, ResourceError: see `grid.check`. Images that are not there yet are no error.
    """
    records = RecordStore(results / "records").load()
    replaced = {record.file for record in (records if fresh else listed(records, results))}
    records = [record for record in records if record.file not in replaced]
    rows, left, needed, data = list[list[str]](), 0.0, 0, ""
    here = machines.measure(cells[0].device) if cells else None
    preparations: dict[Any, machines.Preparation | None] = {}  # most cells have the same images and views
    scores: dict[Any, float] = {}  # seconds of each entry of `tasks`, by its configuration and the backbone
    missing = list[str]()  # images of `tasks` that could not be opened
    for recipe in cells:
        assert here is not None
        prepared = scorings(planned_checkpoint(recipe, opened=False), ablation.tasks)
        if not elsewhere:
            require_gpu(recipe, prepared)
        look = recipe.data, recipe.views
        made = make_plan(recipe, here=here, devices=(), preparation=preparations.get(look))
        preparations[look] = made.preparation
        data = data or describe_data(made)
        try:
            done = sum(is_done(recipe, seed, ablation.tasks, records) for seed in seeds)
        except BenchError:  # images cannot be opened, which `data` or `missing` tells
            done = 0
        hours = made.estimates[0].hours
        rest = len(seeds) - done
        scoring = 0.0
        for entry, (_, checkpoint, config) in zip(ablation.tasks, prepared, strict=True):
            key = recipe.backbone, scoring_key(entry, config)
            if key not in scores:
                work = dry_run.work_of(split_scoring(entry)[0], checkpoint, config, here)
                scores[key] = work.seconds(here.device, here)
                if "NOT OPENED" in work.data and work.data not in missing:
                    missing.append(work.data)
            scoring += scores[key]
        left += (3600 * (hours or 0.0) + scoring) * rest
        needed += rest * max(0, states.needed_bytes(recipe.checkpoint, made.checkpoint))
        steps = "not known" if made.total_steps is None else f"{made.total_steps:,}"
        time = "not known" if hours is None else planned.duration(3600 * hours)
        name = recipe.name.removeprefix(f"{ablation.name}-")
        rows.append([name if len(name) <= 38 else f"{name[:35]}...", steps, time, f"{done} of {len(seeds)}"])
    for key, (checkpoint, entry) in random_scores(cells, ablation).items():
        try:
            recorded = len(random_records(records, checkpoint, entry, seeds))
        except BenchError:
            recorded = 0
        left += scores[key] * (len(seeds) - recorded)
    also = [] if ablation.also is None else [("also", f"{ablation.also}, an experiment without images")]
    scale = cells[0].scale if cells else ablation.scale
    random = ", also at random initialization" if ablation.random else ""
    total = f"{planned.duration(left)} for what is left, one after the other" if left else ""
    head = [
        ("ablation", f"{ablation.name}: {len(cells)} cells x {len(seeds)} seeds, scale {scale}"),
        ("seeds", ", ".join(map(str, seeds))),
        ("tasks", f"{', '.join(ablation.tasks)} for each{random}" if cells else ""),
        ("data", data),
        *(("images", text) for text in missing),
        *also,
    ]
    tail = [
        ("time", total and f"{total}, on {here.device.name if here else ''}: a model, not a measurement; {_FIXED}"),
        ("disk", planned.disk(needed, machine.free_bytes(Path("runs"))) if cells else ""),
        ("writes", f"{results}: records, table.md and figures; runs/pretrain/{ablation.name}-*"),
    ]
    table = [planned.table("cells", [["cell", "steps", "a seed", "done"], *rows])] if rows else []
    return "\n".join([planned.rows(head), *table, planned.rows(tail)])
