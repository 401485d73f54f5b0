"""The few integers that say where a training is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# How far the work is that follows a batch. A checkpoint records it, so that a resumed run does neither repeat nor skip it.
# In the first batch of an epoch, LOGGED says that the epoch has begun.
BATCH, LOGGED, SCHEDULED, VALIDATED, PLATEAU, EPOCH_ENDING, EPOCH_ENDED = range(7)


@dataclass(slots=True)
class Progress:
    """Where a training is."""

    epoch: int = 0
    """Completed epochs, which is the index of the running one."""
    batch: int = 0
    """Batches done in this epoch."""
    batches: int = 0
    """Batches done in all epochs."""
    step: int = 0
    """Optimizer steps: ``global_step``. With manual optimization, every ``step`` of every optimizer counts."""
    updates: int = 0
    """Batches that ended with a step, however many optimizers took part: the step axis of loggers is one less."""
    evaluated: int = 0
    """Batches evaluated so far: the step axis of values logged with ``on_step`` in evaluations."""
    settled: int = BATCH
    """What has been done after the latest batch: one of the constants above."""
    fired: int = 0
    """How much of it, where it consists of several calls and some are left; 0: all."""

    @property
    def epoch_is_complete(self) -> bool:
        """Whether all batches of the epoch are done, in the hooks that follow them: those of its validation and of its end.

        Not in ``on_validation_end``, which follows validations inside an epoch too. Not where an epoch was cut short by a
        stop: ``on_train_epoch_end`` is called there too, and again when a resumed run has completed it.
        """
        return self.settled == SCHEDULED or self.settled >= PLATEAU

    def is_done(self, state: int) -> bool:
        """Whether all of ``state`` was done after the latest batch."""
        return self.settled > state or (self.settled == state and not self.fired)

    def once(self, state: int, calls: Sequence[Callable[[], Any]]) -> None:
        """Make the calls that lead to ``state``, but for those made before the run was cut: a saver may be one of them."""
        if self.is_done(state):
            return
        made = self.fired if self.settled == state else 0
        self.settled = state
        for self.fired, call in enumerate(calls[made:], made + 1):
            call()
        self.fired = 0

    def forget_calls(self) -> None:
        """Go on as if all calls of a moment had been made, or none where that is the beginning of an epoch."""
        if self.fired and self.settled == LOGGED:
            self.settled = BATCH
        self.fired = 0

    def state_dict(self) -> dict[str, int]:
        """These integers; an ended epoch is written as the next one, before the last calls of the one before it."""
        ended = {"epoch": self.epoch + 1, "batch": 0} if self.settled == EPOCH_ENDED else {}
        return {**asdict(self), **ended}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from these integers."""
        for name in self.__slots__:
            setattr(self, name, int(state.get(name, 0)))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is negative")
