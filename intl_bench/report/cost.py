"""What results cost, and where they were computed."""

import dataclasses
import html
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from intl_bench.core import planned
from intl_bench.core.terminal import visible
from intl_bench.records import ResultRecord


def gpus_of(record: ResultRecord) -> int:
    """Return how many GPUs the machine of a record showed."""
    found = record.hardware.get("gpus")
    return len(found) if isinstance(found, list) else 0


def pretrainings_of(records: Iterable[ResultRecord]) -> list[ResultRecord]:
    """Return one record for each pre-training whose duration is known; the same weights count once."""
    found: dict[object, ResultRecord] = {}
    for record in records:
        if isinstance(_seconds(record), int | float):
            weights = record.weights_sha256 or record.details.get("weights_sha256")
            found.setdefault(weights or (record.pretraining_sha256, record.pretrain_seed), record)
    return list(found.values())


def _seconds(record: ResultRecord) -> Any:
    about = record.details.get("pretrain")
    return about.get("seconds") if isinstance(about, Mapping) else None


@dataclasses.dataclass(frozen=True)
class _Cost:
    """The cost of one run, or of several together. `joules` is the energy of the GPUs; None if it is not known."""

    seconds: float
    gpu_seconds: float
    joules: float | None
    memory_mib: float | None

    @classmethod
    def of_score(cls, record: ResultRecord) -> "_Cost":
        """Return the cost of a score, which uses one GPU unless its identity counts processes."""
        gpus = min(gpus_of(record), _processes(record))
        return cls(record.wall_time_s, record.wall_time_s * gpus, joules_of(record.details), record.peak_memory_mib)

    @classmethod
    def of_pretraining(cls, record: ResultRecord) -> "_Cost":
        """Return the cost of the pre-training. Earlier versions did not count its GPUs: those of the machine count."""
        about = record.details["pretrain"]
        seconds, gpu = float(about["seconds"]), about.get("gpu_seconds")
        known = isinstance(gpu, int | float) and math.isfinite(gpu)
        return cls(seconds, float(gpu) if known else seconds * gpus_of(record), joules_of(about), None)

    @classmethod
    def together(cls, costs: Sequence["_Cost"]) -> "_Cost":
        joules = [cost.joules for cost in costs if cost.gpu_seconds]
        known = bool(joules) and None not in joules
        return cls(
            sum(cost.seconds for cost in costs),
            sum(cost.gpu_seconds for cost in costs),
            sum(filter(None, joules)) if known else None,
            max(filter(None, (cost.memory_mib for cost in costs)), default=None),
        )

    def cells(self) -> list[str]:
        return [
            planned.duration(self.seconds),
            f"{self.gpu_seconds / 3600:.1f}" if self.gpu_seconds else "0",
            "–" if self.joules is None else f"{self.joules / 3.6e6:.3g}",
            "–" if self.memory_mib is None else f"{self.memory_mib / 1024:.1f}",
        ]


def joules_of(details: Any) -> float | None:
    """Return the energy of the GPUs that the details of a result or a pre-training tell; None if it is not known."""
    found = details.get("gpu_joules") if isinstance(details, Mapping) else None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def cost_html(records: Sequence[ResultRecord]) -> str:
    """Return a table with the cost of the pre-trainings and of each task."""
    rows = {"Pre-training": [_Cost.of_pretraining(record) for record in pretrainings_of(records)]}
    for record in sorted(records, key=lambda record: record.task):
        if record.task != "pretrain":
            rows.setdefault(record.task, []).append(_Cost.of_score(record))
    lines = [_row(name, str(len(costs)), *_Cost.together(costs).cells()) for name, costs in rows.items() if costs]
    total = _Cost.together([cost for costs in rows.values() for cost in costs]).cells()[:-1]
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Cost">\n<table>\n<thead><tr>'
        '<th scope="col">Work</th><th scope="col">Runs</th><th scope="col">Time</th><th scope="col">GPU-hours</th>'
        '<th scope="col">kWh</th><th scope="col">Peak memory, GiB</th></tr></thead>\n'
        f"<tbody>\n{''.join([*lines, _row('Total', '', *total, '')])}</tbody>\n</table>\n</div>\n"
        '<p class="caption">Time is the sum over the runs. GPU-hours are 0 for runs on a CPU; a pre-training of an '
        "earlier version counts all GPUs of the machine that scored it. kWh is the energy of the GPUs, where their "
        "driver counts it; the rest of the machine is not in it.</p>\n"
    )


def _processes(record: ResultRecord) -> int:
    found = record.evaluation.get("settings", {}).get("processes", 1)
    return found if isinstance(found, int) else 1


def _row(name: str, *cells: str) -> str:
    values = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{html.escape(visible(name))}</th>{values}</tr>\n'


def environment_html(records: Sequence[ResultRecord]) -> str:
    """Return a table of the environments, each a code version, a machine and versions of libraries."""
    groups: dict[tuple[str, str, str], list[ResultRecord]] = defaultdict(list)
    for record in records:
        groups[_code(record.code), _machine(record.hardware), _libraries(record.libraries)].append(record)
    newest_first = sorted(groups.items(), key=lambda item: max(record.created for record in item[1]), reverse=True)
    rows = ""
    for about, some in newest_first:
        cells = (days_of(some), str(len(some)), *about)
        rows += f"<tr>{''.join(f'<td>{html.escape(visible(cell))}</td>' for cell in cells)}</tr>\n"
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Environments">\n<table class="left">\n<thead><tr>'
        '<th scope="col">Date</th><th scope="col">Records</th><th scope="col">Code</th><th scope="col">Machine</th>'
        f'<th scope="col">Libraries</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n'
    )


def days_of(records: Sequence[ResultRecord]) -> str:
    """Return the first and the last day on which records were made, such as `3 – 27 Nov 2026`."""
    days = sorted(record.created_at for record in records)
    first, last = days[0], days[-1]
    end = f"{last.day} {last:%b %Y}"
    if first.date() == last.date():
        return end
    same = 3 if (first.year, first.month) == (last.year, last.month) else 2 if first.year == last.year else 1
    return f"{' '.join([str(first.day), f'{first:%b}', f'{first:%Y}'][: 4 - same])} – {end}"


def _code(code: Mapping[str, Any]) -> str:
    commit = str(code.get("commit") or "")[:7]
    return " ".join(
        filter(None, [str(code.get("version", "unknown")), commit, "(modified)" if code.get("modified") else ""])
    )


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = hardware.get("gpus") or []
    names = dict.fromkeys(map(str, gpus)) if isinstance(gpus, list) else {}
    parts = [f"{gpus.count(name)} x {name}" for name in names]
    parts += [f"{hardware['cpu']}, {hardware.get('cores', '?')} cores"] if "cpu" in hardware else []
    parts += [f"{hardware['memory_gib']} GiB"] if "memory_gib" in hardware else []
    return "; ".join(parts) or "unknown"


def _libraries(libraries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in libraries.items()) or "unknown"
