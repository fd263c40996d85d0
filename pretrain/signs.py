"""Early signs of a run that goes wrong: a collapse, a learning rate that is too high, a loader that starves.

Each sign is one line on stderr when it appears. The bounds are rough; a sign stops no run.
"""

import statistics
import time
import typing
from collections.abc import Mapping

from intl_bench.core import machine, planned
from intl_bench.core.transcript import note
from pretrain import spectrum

if typing.TYPE_CHECKING:
    from pretrain.train import Training

WINDOW = 20  # steps whose median loss is compared
# The loss is called rising if its median is this share of the earlier fall above its lowest median. Losses that rise
# from the start, as with an empty queue of MoCo, have not fallen before.
RISE = 0.5
LEAST_FALL = 0.1  # of the first median: a smaller fall is noise
STARVING, STARVING_SECONDS = 0.3, 20.0  # share of the time spent waiting for images, measured over so many seconds


class Signs:
    """The signs of a run so far.

    Attributes:
        found: the lines that were printed, without "warning: ".
    """

    def __init__(self, training: "Training") -> None:
        self.training = training
        self.found: list[str] = []
        self._said: set[str] = set()
        self._collapse: dict[str, str | None] = {}
        self._losses: list[float] = []
        self._first: float | None = None
        self._lowest = (float("inf"), 0)
        self._waited, self._since = 0.0, None if training.recipe.workers else time.perf_counter()

    def _say(self, text: str) -> None:
        """Print a sign as a warning, and keep it for `summary.json`."""
        self.found.append(text)
        if self.training.process.is_main:
            note(f"warning: {text}")

    def step(self, loss: float, waited: float, step: int) -> None:
        """Look at the loss of a step and at the seconds that it waited for its images."""
        self._losses.append(loss)
        self._waited += waited
        if len(self._losses) == WINDOW:
            self._look_at_loss(statistics.median(self._losses), step)
            self._losses.clear()
            self._look_at_loader(step)

    def embedding(self, numbers: Mapping[str, float], largest_rank: int, step: int, where: str) -> None:
        """Look at the spectrum of the embedding, "embedding/..." of `spectrum.summary`.

        Args:
            where: the images of the spectrum, for the line.
        """
        sentence = spectrum.collapse(numbers, largest_rank)
        now = sentence and sentence.partition(":")[0]
        if now == self._collapse.get(where):
            return
        self._collapse[where] = now
        if sentence:
            self._say(f"step {step}: {sentence} ({where})")
        elif self.training.process.is_main:
            note(f"step {step}: the embedding has not collapsed any more ({where})")

    def _look_at_loss(self, loss: float, step: int) -> None:
        if self._first is None:
            self._first = loss
        if loss < self._lowest[0]:
            self._lowest = loss, step
        lowest, at = self._lowest
        fallen = self._first - lowest
        if fallen > LEAST_FALL * abs(self._first) and loss > lowest + RISE * fallen and "loss" not in self._said:
            self._said.add("loss")
            recipe = self.training.recipe
            self._say(
                f"step {step}: the loss rose to {loss:.4g}, from {lowest:.4g} at step {at}; the learning rate may be "
                f"too high: lower base_lr={recipe.base_lr:g}, or raise warmup_epochs={recipe.warmup_epochs}"
            )

    def _look_at_loader(self, step: int) -> None:
        now = time.perf_counter()
        if self._since is None:  # the first images also wait for the start of the workers
            self._waited, self._since = 0.0, now
        elapsed = now - self._since
        if elapsed < STARVING_SECONDS:
            return
        share, self._waited, self._since = self._waited / elapsed, 0.0, now
        if share > STARVING and "loader" not in self._said:
            self._said.add("loader")
            self._say(f"step {step}: {share:.0%} of the time is spent waiting for images; {self._remedy()}")

    def _remedy(self) -> str:
        workers = self.training.recipe.workers
        share = machine.cores_of_process()
        if workers < share:
            return f"raise workers={workers} to {share}, one for each core"
        return (
            f"{planned.workers(workers, machine.cores())} cannot make them faster: install simplejpeg, shrink the "
            "image files, pack them with `intl-bench data pack`, or use more cores"
        )
