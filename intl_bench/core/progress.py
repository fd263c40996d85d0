"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
import weakref
from collections.abc import Mapping

from tqdm import tqdm

from intl_bench.core import heartbeat, planned

_BAR = "{desc} {percentage:3.0f}% |{bar}| {remaining} left{postfix}"
_AROUND = " 100% |1234| 10:00:00 left"  # a short bar and what is always beside it
_shown = weakref.WeakSet[tqdm]()


def end_bars() -> None:
    """End the bars that an error has left open, so that its line does not continue one of them."""
    for bar in list(_shown):
        bar.close()


def _is_one_of_several() -> bool:
    """Return whether other commands, such as other seeds, write to the same terminal, where bars would mix."""
    return heartbeat.is_watched() and "RANK" not in os.environ


class Progress:
    """The steps done, the time left, the images per second and the share of time spent waiting for data.

    Args:
        total: number of steps of the whole job.
        done: number of steps that an earlier session finished.
        images_per_step: images of a step over all processes; 0 omits the rate.
        label: the beginning of a line.
        enabled: False prints nothing, for all processes but the first.
        every: seconds between two plain lines.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        images_per_step: int = 0,
        label: str,
        enabled: bool = True,
        every: float = 30,
    ) -> None:
        self.total, self.label, self.images_per_step, self.enabled, self.every = (
            total,
            label,
            images_per_step,
            enabled,
            every,
        )
        self.steps = done
        self.waited = 0.0
        self.started = self.line_at = time.perf_counter()
        self.first = done
        self.bar = (
            tqdm(total=total, initial=done, desc=label, dynamic_ncols=True, bar_format=_BAR)
            if enabled and sys.stderr.isatty() and not _is_one_of_several()
            else None
        )
        if self.bar is not None:
            _shown.add(self.bar)

    @property
    def images_per_second(self) -> float:
        """Mean rate of this session, over all processes."""
        elapsed = time.perf_counter() - self.started
        return (self.steps - self.first) * self.images_per_step / elapsed if elapsed > 0 else 0.0

    @property
    def data_share(self) -> float:
        """Share of this session's time spent waiting for data, 0 to 1."""
        elapsed = time.perf_counter() - self.started
        return self.waited / elapsed if elapsed > 0 else 0.0

    def step(self, waited: float = 0.0, values: Mapping[str, float] | None = None) -> None:
        """Count a step that waited `waited` seconds for its data, and show `values`."""
        self.steps += 1
        self.waited += waited
        heartbeat.at(self)
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.set_postfix_str(self._fitting(values), refresh=False)
            self.bar.update()
        elif self.enabled and (now - self.line_at >= self.every or self.steps == self.total):
            self.line_at = now
            left = (now - self.started) / (self.steps - self.first) * (self.total - self.steps)
            parts = [
                f"{self.label}: step {self.steps} of {self.total}",
                f"{planned.clock(left)} left",
                *self._details(values),
            ]
            print(", ".join(parts), file=sys.stderr)

    def close(self) -> None:
        """End the bar and keep its last state on the terminal."""
        if self.bar is not None:
            self.bar.close()

    def _fitting(self, values: Mapping[str, float] | None) -> str:
        """Return as many of the details as fit beside a short bar, the first ones first."""
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:  # the terminal was closed; the work goes on
            return ""
        room = width - len(self.label + _AROUND)
        shown = ""
        for part in self._details(values):
            if len(shown) + len(part) + 2 > room:
                break
            shown += f", {part}"
        return shown.removeprefix(", ")  # tqdm writes one itself

    def _details(self, values: Mapping[str, float] | None) -> list[str]:
        parts = [f"{name} {value:.4g}" for name, value in (values or {}).items()]
        if self.images_per_step:
            parts += [f"{self.images_per_second:.0f} images/s", f"{100 * self.data_share:.0f}% waiting for data"]
        return parts
