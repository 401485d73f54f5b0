"""When to validate while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fulmen.errors import ConfigurationError
from fulmen.options import Options
from fulmen.progress import VALIDATED, Progress

if TYPE_CHECKING:
    from fulmen.state import Run

INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class ValidationSchedule:
    """The meaning of ``val_check_interval`` and ``check_val_every_n_epoch`` for a loader of known or unknown length."""

    every: int | None = None
    """Batches between two validations; ``None``: not counted in batches."""
    seconds: float | None = None
    """Time between two validations; ``None``: not by time."""
    epochs: int | None = 1
    """Validate in every n-th epoch; ``None``: batches are counted over the whole training."""

    @classmethod
    def of(cls, options: Options, num_batches: float) -> ValidationSchedule:
        """The schedule for epochs of ``num_batches`` batches; infinity where nobody knows.

        Raises:
            ConfigurationError: The interval does not fit such an epoch.
        """
        interval, epochs = options.val_check_interval, options.check_val_every_n_epoch
        if isinstance(interval, dict):
            return cls(seconds=interval["seconds"], epochs=epochs)
        if isinstance(interval, int) and not options.fast_dev_run:
            if epochs is not None and interval > num_batches:
                raise ConfigurationError(
                    f"val_check_interval={interval} is more than the {num_batches:g} batches of an epoch, so validation would "
                    "never run; to count batches over the whole training: check_val_every_n_epoch=None"
                )
            return cls(every=interval, epochs=epochs)
        if isinstance(interval, float) and interval < 1.0 and not options.fast_dev_run:
            if num_batches == INFINITE:
                raise ConfigurationError(
                    f"val_check_interval={interval} is a fraction of an epoch, and the train_dataloader does not know its "
                    "length; give a number of batches, a duration, or 1.0 for the end of the epoch"
                )
            return cls(every=max(1, int(num_batches * interval)), epochs=epochs)
        return cls(epochs=epochs)

    def inside(self, epoch: int) -> int | None:
        """Batches between two validations inside this epoch; ``None``: none inside."""
        return self.every if self.has_epoch(epoch) else None

    def has_epoch(self, epoch: int) -> bool:
        """Whether there is a validation in this epoch."""
        return self.epochs is None or (epoch + 1) % self.epochs == 0

    def due_after_batch(self, progress: Progress) -> bool:
        """Whether the interval ends with the latest batch."""
        count = progress.batches if self.epochs is None else progress.batch
        return bool(self.every) and self.has_epoch(progress.epoch) and count % (self.every or 1) == 0

    def due_at_end(self, progress: Progress) -> bool:
        """Whether to validate when an epoch ends."""
        if self.every is not None:
            return self.due_after_batch(progress)
        return self.seconds is None and self.has_epoch(progress.epoch)


def plan_validation(run: Run) -> None:
    """Work out the schedule of a run, now that the length of its epochs is known."""
    if run.validates:
        run.validation = ValidationSchedule.of(run.options, run.loaders["train"].total)
        if run.validation.seconds is not None:
            run.clock.every(run.validation.seconds, lambda: setattr(run, "validation_requested", True))


def validation_is_due(run: Run, at_end: bool = False, stopping: bool = False) -> bool:
    """Whether to validate where the run stands.

    Args:
        run: The run.
        at_end: Whether the epoch ends here.
        stopping: Whether it ends early, because the training stops.
    """
    progress, schedule = run.progress, run.validation
    if not run.validates or progress.settled >= VALIDATED:
        return run.validates and not progress.is_done(VALIDATED)
    if stopping and run.stop_requested:
        return schedule.has_epoch(progress.epoch)
    due = schedule.due_at_end(progress) if at_end and not stopping else schedule.due_after_batch(progress)
    return due or run.validation_requested
