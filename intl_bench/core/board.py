"""A log for TensorBoard."""

import io
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_bench.core import files


class Board:
    """A file of TensorBoard events, a by-product: the first failure ends it with one warning, and the run goes on.

    `SummaryWriter` is not used, because it writes in a thread, which prints a traceback if the disk is full.

    Args:
        folder: the folder of the file.
        purge_step: the first step whose values in earlier files are no longer valid.
    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self.path: Path | None = folder / name
        self._write([{"file_version": "brain.Event:2"}])
        if purge_step is not None:
            self._write([{"session_log": {"status": "START"}, "step": purge_step}])

    def add(self, row: Mapping[str, float], step: int) -> None:
        """Write the values of a step by name."""
        self._write(
            [{"summary": {"value": [{"tag": tag, "simple_value": value}]}, "step": step} for tag, value in row.items()]
        )

    def _write(self, events: list[dict[str, Any]]) -> None:
        if self.path is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter

            content = io.BytesIO()
            for event in events:
                RecordWriter(content).write(Event(wall_time=time.time(), **event).SerializeToString())
            files.append_bytes(self.path, content.getvalue())
        except Exception as error:  # also whatever the import of a broken package raises
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: no more TensorBoard events: {reason}", file=sys.stderr)
            self.path = None
