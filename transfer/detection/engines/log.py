"""The log of a detection run, which both engines write."""

from collections.abc import Mapping
from pathlib import Path

from intl_bench.core.board import Board
from intl_bench.core.json_lines import JsonLines


class RunLog:
    """Log of the first process: `metrics.jsonl`, and TensorBoard events in `tensorboard`.

    On resume, entries of steps that will be repeated are removed.

    Args:
        folder: the folder of the run.
        first: number of completed steps.
        mark: see `JsonLines`.
    """

    def __init__(self, folder: Path, first: int, mark: Mapping[str, int] | None) -> None:
        self.lines = JsonLines(folder / "metrics.jsonl", lambda row: row["iteration"] <= first, mark)
        self.board = Board(folder / "tensorboard", purge_step=first + 1 if first else None)

    def append(self, iteration: int, row: Mapping[str, float]) -> None:
        """Write the losses or the scores after a step."""
        self.lines.append({"iteration": iteration, **row})
        self.board.add(row, iteration)
