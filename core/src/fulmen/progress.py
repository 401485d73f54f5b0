"""The few integers that say where a training is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# How far the work is that follows a batch. A checkpoint records it, so that a resumed run does neither repeat nor skip it.
# In the first batch of an epoch, LOGGED says that the epoch has begun.
BATCH, LOGGED, SCHEDULED, VALIDATED, PLATEAU, EPOCH_ENDED = range(6)


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
    """Hooks of the present moment that were called, where a training may be resumed between two of them."""

    @property
    def epoch_is_complete(self) -> bool:
        """Whether all batches of the epoch are done, in the hooks that follow them: those of its validation and of its end.

        Not where an epoch was cut short by a stop: ``on_train_epoch_end`` is called there too, and again when a resumed run
        has completed it.
        """
        return self.settled == SCHEDULED or self.settled >= PLATEAU

    def forget_hooks(self) -> None:
        """Go on as if all hooks of a moment had been called, or none where that is its beginning."""
        self.fired = 0
        if self.settled == EPOCH_ENDED:
            self.settled = BATCH

    def state_dict(self) -> dict[str, int]:
        """These integers; an ended epoch is written as the next one, before the last hooks of the one before it."""
        state = asdict(self)
        if self.settled == EPOCH_ENDED:
            state.update(epoch=self.epoch + 1, batch=0)
        return state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from these integers."""
        for name in self.__slots__:
            setattr(self, name, int(state.get(name, 0)))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is negative")
