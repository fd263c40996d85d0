"""Metrics of a training step, and their copy from the device to the host."""

import dataclasses

from intl_bench.core.copies import Fetched
from intl_bench.core.distributed import require_finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of one step.

    The device copies the values to the host after the work of the step. Only `values` and `asked` wait for the copy.

    Attributes:
        step: number of the step, from 1.
        epoch: epoch of the step, from 0.
        lr: learning rate of the step.
        names: names of the metrics.
        numbers: float32, one value for each name; then the number of the signal by which a process asked to stop, and
            whether a process asked to save.
        finite: names of the metrics that must be finite.
    """

    step: int
    epoch: int
    lr: float
    names: list[str]
    numbers: Fetched
    finite: set[str]

    def values(self) -> dict[str, float]:
        """Return the metrics by name, and `lr`.

        Raises:
            DivergedError: a metric that must be finite is not.
        """
        values = dict(zip(self.names, self.numbers.read().tolist(), strict=False))
        require_finite(
            {name: value for name, value in values.items() if name in self.finite},
            where=f"at step {self.step - 1} (epoch {self.epoch})",
            remedy="the last checkpoint was saved before this step; lower base_lr, or use precision=fp32",
        )
        return values | {"lr": self.lr}

    def asked(self) -> tuple[int, bool]:
        """Return the signal by which a process asked to stop (0: none), and whether a process asked to save."""
        stop, save = self.numbers.read().tolist()[-2:]
        return int(stop), save > 0
