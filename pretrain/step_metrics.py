"""The numbers of a training step, on their way from the device to the host."""

import dataclasses

from intl_bench.core.copies import Fetched
from intl_bench.core.distributed import require_finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What one step measured; it is copied behind the step's own work, and only metrics it waits for that.

    Attributes:
        step: number of the step, from 1 on; it is in epoch `epoch`, from 0 on.
        lr: its learning rate.
        names: of the numbers.
        numbers: one float32 each, then the signal by which any process asked to stop, and whether to save.
        finite: names of the numbers that must be finite.
    """

    step: int
    epoch: int
    lr: float
    names: list[str]
    numbers: Fetched
    finite: set[str]

    def values(self) -> dict[str, float]:
        """The numbers by name, and `lr`.

        Raises:
            DivergedError: one that must be finite is not.
        """
        values = dict(zip(self.names, self.numbers.read().tolist(), strict=False))
        require_finite(
            {name: value for name, value in values.items() if name in self.finite},
            where=f"at step {self.step - 1} (epoch {self.epoch})",
            remedy="the checkpoint is of before this step; lower base_lr, or use precision=fp32",
        )
        return values | {"lr": self.lr}

    def asked(self) -> tuple[int, bool]:
        """The signal by which any process asked to stop (0: none did), and whether any asked to save."""
        stop, save = self.numbers.read().tolist()[-2:]
        return int(stop), save > 0
