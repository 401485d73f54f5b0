"""Measure how long the stages of a run take, and stop the training when its time is up."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from fulmen.contracts.callback import Callback
from fulmen.errors import ConfigurationError, listing
from fulmen.options import seconds_of

if TYPE_CHECKING:
    from fulmen.contracts.data_hooks import Stage
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer

STAGES = ("train", "sanity_check", "validate", "test", "predict")


class Timer(Callback):
    """Ends the training when ``duration`` has passed, counted over all resumes; or only measures.

    ``"train"`` is the whole time from ``on_train_start`` to ``on_train_end``, with the validations inside; all times are in
    seconds and add up over the runs of a trainer. The stop is a request like any other: ``min_epochs`` and ``min_steps``
    come first.

    Args:
        duration: ``"DD:HH:MM:SS"``, a timedelta, its arguments as a mapping, or seconds. ``None`` never stops.
        interval: Whether to stop after a step, or at the end of an epoch.

    Raises:
        ConfigurationError: An argument is something else.
    """

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, float] | float | None = None,
        interval: Literal["step", "epoch"] = "step",
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ConfigurationError(f"Timer interval={interval!r} is not allowed; allowed: 'step', 'epoch'")
        self.duration = None if duration is None else duration_in_seconds(duration)
        self.interval = interval
        self._elapsed = dict.fromkeys(STAGES, 0.0)  # of what has ended
        self._start: dict[str, float | None] = dict.fromkeys(STAGES)
        self._end: dict[str, float | None] = dict.fromkeys(STAGES)

    # ---- Reading

    def start_time(self, stage: str = "train") -> float | None:
        """When a stage started last, on the clock of ``time.monotonic``; ``None``: it has not."""
        return self._start[check_stage(stage)]

    def end_time(self, stage: str = "train") -> float | None:
        """When a stage ended last, on the clock of ``time.monotonic``; ``None`` while it runs, or where it has not started."""
        return self._end[check_stage(stage)]

    def time_elapsed(self, stage: str = "train") -> float:
        """Seconds spent in a stage so far, those before a resume included."""
        start = self._start[check_stage(stage)]
        running = 0.0 if start is None or self._end[stage] is not None else monotonic() - start
        return self._elapsed[stage] + running

    def time_remaining(self, stage: str = "train") -> float | None:
        """Seconds until ``duration`` has passed, at least 0; ``None`` where there is none."""
        return None if self.duration is None else max(0.0, self.duration - self.time_elapsed(stage))

    # ---- Stages

    def _begin(self, stage: str) -> None:
        self._start[stage], self._end[stage] = monotonic(), None

    def _finish(self, stage: str) -> None:
        start = self._start[stage]
        if start is not None and self._end[stage] is None:
            self._end[stage] = now = monotonic()
            self._elapsed[stage] += now - start

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Start counting, and ask for an alarm when the time is up: steps in between cost nothing."""
        self._begin("train")
        self._stop_when_over(trainer)
        if self.interval == "step" and (remaining := self.time_remaining()):
            trainer.every(remaining, lambda: self._stop_when_over(trainer))

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Stop where the time is up."""
        self._stop_when_over(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Stop counting."""
        self._finish("train")

    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        """Start counting."""
        self._begin("sanity_check")

    def on_sanity_check_end(self, trainer: Trainer, module: Module) -> None:
        """Stop counting."""
        self._finish("sanity_check")

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Start counting, unless this is the sanity check."""
        if trainer.phase == "validate":
            self._begin("validate")

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Stop counting."""
        self._finish("validate")

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Start counting."""
        self._begin("test")

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """Stop counting."""
        self._finish("test")

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Start counting."""
        self._begin("predict")

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """Stop counting."""
        self._finish("predict")

    def teardown(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Stop counting what a failure cut short."""
        for each in STAGES:
            self._finish(each)

    def _stop_when_over(self, trainer: Trainer) -> None:
        if self.duration is not None and self.time_elapsed() >= self.duration:
            trainer.request_stop(f"max_time={timedelta(seconds=self.duration)} reached")

    # ---- State

    @property
    def state_key(self) -> str:
        """``"Timer"``; a timer that only measures has a key of its own, so that it can stand beside ``max_time``."""
        return "Timer" if self.duration is not None else "Timer{'duration': None}"

    def state_dict(self) -> dict[str, Any]:
        """The seconds spent in each stage."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in STAGES}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._elapsed.update({stage: float(seconds) for stage, seconds in state_dict["time_elapsed"].items()})


def duration_in_seconds(duration: Any) -> float:
    """A duration in seconds.

    Raises:
        ConfigurationError: ``duration`` is none.
    """
    is_number = isinstance(duration, (int, float)) and not isinstance(duration, bool)
    seconds = float(duration) if is_number else seconds_of(duration, "duration")
    if not seconds >= 0:
        raise ConfigurationError(f"duration={duration!r} is not allowed; it must not be negative")
    return seconds


def check_stage(stage: str) -> str:
    """``stage``, which must be one of :data:`STAGES`."""
    if stage not in STAGES:
        raise ConfigurationError(f"stage={stage!r} is not allowed; allowed: {listing(STAGES)}")
    return stage
