"""Stop a training when a metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulmen import Callback, ConfigurationError, ModuleError
from fulmen.errors import listing, warn

if TYPE_CHECKING:
    from fulmen import Module, Trainer
    from fulmen.contracts.data_hooks import Stage


class EarlyStoppingReason(Enum):
    """Why :class:`EarlyStopping` stopped a training."""

    NOT_STOPPED = "not_stopped"
    STOPPING_THRESHOLD = "stopping_threshold"
    DIVERGENCE_THRESHOLD = "divergence_threshold"
    PATIENCE_EXHAUSTED = "patience_exhausted"
    NON_FINITE_METRIC = "non_finite_metric"


class EarlyStopping(Callback):
    """Asks the trainer to stop when ``monitor`` has not improved for ``patience`` checks in a row, or crossed a threshold.

    Each value of the metric is checked once: after the validation or at the end of the epoch that measured it. A validation
    that does not take place is not counted as one without improvement. Nothing is checked in the sanity check. In a
    distributed run rank 0 reads the value, so that all ranks decide alike and stop after the same step; log it with
    ``sync_dist=True`` if it shall be that of all ranks.

    The count is kept in checkpoints: a run that is resumed stops where one without interruption would have. A resumed run
    that had already stopped stops again at once, unless an argument here gives it more room. ``min_epochs`` and
    ``min_steps`` of the trainer come first.

    Args:
        monitor: The name of a logged metric, as it stands in ``trainer.callback_metrics``.
        min_delta: The value must be better than the best one by more than this to count as an improvement.
        patience: Checks without improvement after which to stop. 0 stops at the first.
        verbose: Print improvements and the reason of the stop.
        mode: Whether ``"min"`` or ``"max"`` is better.
        strict: A metric that was not logged is an error; ``False``: a warning, and nothing is checked.
        check_finite: Stop as soon as the value is infinite or not a number. ``False``: such a value is no improvement.
        stopping_threshold: Stop as soon as the value is better than this; ``None``: never.
        divergence_threshold: Stop as soon as the value is worse than this; ``None``: never.
        check_on_train_epoch_end: ``True``: check at the ends of epochs; ``False``: after validations; ``None``: wherever the
            metric is measured.
        log_rank_zero_only: Print on rank 0 only. ``False``: on each rank, those above 0 with their number.

    Attributes:
        wait_count: Checks without improvement in a row.
        stopped_epoch: The index of the epoch in which this callback stopped the training; 0 if it did not.
        best_score: The best value so far, a tensor without dimensions on the host; infinity (of the bad sign) before.
        stopping_reason: Why it stopped the training.
        stopping_reason_message: The same as a sentence; ``None`` if it did not.

    Raises:
        ConfigurationError: An argument has a wrong value.

    >>> EarlyStopping("val_acc", mode="max", patience=5).state_key
    "EarlyStopping{'monitor': 'val_acc', 'mode': 'max'}"
    """

    runs_last = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(f"EarlyStopping mode={mode!r} is not allowed; allowed: 'min', 'max'")
        if not _is_number(min_delta) or not 0 <= min_delta < math.inf:
            raise ConfigurationError(f"EarlyStopping min_delta={min_delta!r} is not allowed; allowed: a number from 0")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise ConfigurationError(f"EarlyStopping patience={patience!r} is not allowed; allowed: a whole number from 0")
        for name, threshold in (("stopping", stopping_threshold), ("divergence", divergence_threshold)):
            if threshold is not None and (not _is_number(threshold) or math.isnan(threshold)):
                raise ConfigurationError(
                    f"EarlyStopping {name}_threshold={threshold!r} is not allowed; allowed: a number, or None"
                )
        self.monitor, self.mode = monitor, mode
        self.min_delta, self.patience, self.verbose = float(min_delta), patience, verbose
        self.strict, self.check_finite = strict, check_finite
        self.stopping_threshold, self.divergence_threshold = stopping_threshold, divergence_threshold
        self.check_on_train_epoch_end, self.log_rank_zero_only = check_on_train_epoch_end, log_rank_zero_only
        self._fitting = True  # until a run of another kind begins
        self._reset()

    def _reset(self) -> None:
        self.wait_count = self.stopped_epoch = 0
        self.best_score = torch.tensor(math.inf if self.mode == "min" else -math.inf, dtype=torch.float64)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._position = -1  # training batches done when the latest value was measured
        self._grounds: tuple[float, int, float] | None = None  # value, wait_count and best_score that the stop rests on
        self._validated = self._warned = self._cut = False

    # ---- When

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Forget what an earlier training of this callback counted."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._reset()

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Stop at once where the training that is resumed had stopped.

        Raises:
            ConfigurationError: It is to check after validations, and there are none.
        """
        if self.check_on_train_epoch_end is False and not trainer.enable_validation:
            raise ConfigurationError(
                "EarlyStopping check_on_train_epoch_end=False checks after validations, and this training has none; "
                "leave it out, or set it to True"
            )
        self._cut = False
        if trainer.progress.batch < trainer.num_training_batches:  # else the end of an epoch is still to be settled
            self._stop_again(trainer)

    def on_train_stop(self, trainer: Trainer, module: Module) -> None:
        """Count nothing more: a run that is resumed from here measures these values again, at the end of the whole epoch."""
        self._cut = True

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Check what the validation measured."""
        if trainer.phase != "validate" or not self._fitting or self._cut:
            return
        self._validated = True
        if self.check_on_train_epoch_end is False:
            self._check(trainer, must_exist=True)
        elif self.check_on_train_epoch_end is None:
            self._check(trainer, must_exist=False)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Check what the epoch measured."""
        if not trainer.should_stop:
            self._stop_again(trainer)
        if self.check_on_train_epoch_end is not False:
            self._check(trainer, must_exist=self._validated or not trainer.enable_validation)

    # ---- What

    def _check(self, trainer: Trainer, must_exist: bool) -> None:
        """Look at a value that was not looked at before. The same call on every rank."""
        if self._cut:
            return
        age = trainer.metric_age(self.monitor)
        measured = None if age is None else trainer.progress.batches - age
        answer: list[Any] = [measured, None]
        if trainer.is_global_zero and measured is not None and measured != self._position:
            answer[1] = float(trainer.callback_metrics[self.monitor])  # synchronises: once per value
        measured, current = trainer.runtime.broadcast(answer)
        if current is not None:
            self._position = measured
            self._count(trainer, current)
        elif measured is None and must_exist:
            self._report_missing(trainer)

    def _report_missing(self, trainer: Trainer) -> None:
        text = (
            f"EarlyStopping monitors {self.monitor!r}, which was never logged; logged are: "
            f"{listing(sorted(trainer.callback_metrics))}"
        )
        if self.strict:
            raise ModuleError(text)
        if not self._warned:
            self._warned = True
            warn("early-stopping-metric", f"{text}. Nothing is checked, because of strict=False")

    def _count(self, trainer: Trainer, current: float) -> None:
        best = float(self.best_score)
        if self._is_better(current, best, self.min_delta):
            self.wait_count, self.best_score = 0, torch.tensor(current, dtype=torch.float64)
            if self.verbose:
                by = f" by {abs(best - current):.3f}, which is more than {self.min_delta:g}" if math.isfinite(best) else ""
                self._tell(trainer, f"{self.monitor} improved{by}. New best score: {current:.3f}")
        else:
            self.wait_count += 1
        if self._grounds is None:  # the first reason stays, also where min_epochs lets the training go on
            self._stop_on(trainer, current, self.wait_count, float(self.best_score))

    def _stop_on(self, trainer: Trainer, current: float, waited: int, best: float) -> bool:
        """Stop where these numbers demand it; whether they do."""
        reason, text = self._verdict(current, waited, best)
        if reason is EarlyStoppingReason.NOT_STOPPED:
            return False
        if self._grounds is None:
            self._grounds, self.stopped_epoch = (current, waited, best), trainer.current_epoch
        self.stopping_reason, self.stopping_reason_message = reason, text
        trainer.request_stop(text)
        if self.verbose:
            self._tell(trainer, text)
        return True

    def _stop_again(self, trainer: Trainer) -> None:
        """Stop where the training that is resumed had, unless what it stopped on is allowed now."""
        if self._grounds is not None and not self._stop_on(trainer, *self._grounds):
            self._grounds, self.stopped_epoch = None, 0
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None

    def _verdict(self, current: float, waited: int, best: float) -> tuple[EarlyStoppingReason, str]:
        name = self.monitor
        if self.check_finite and not math.isfinite(current):
            return EarlyStoppingReason.NON_FINITE_METRIC, f"{name} = {current} is not finite; the best was {best:.3f}"
        if self.stopping_threshold is not None and self._is_better(current, self.stopping_threshold):
            return (
                EarlyStoppingReason.STOPPING_THRESHOLD,
                f"{name} = {current} is better than stopping_threshold={self.stopping_threshold}",
            )
        if self.divergence_threshold is not None and self._is_better(self.divergence_threshold, current):
            return (
                EarlyStoppingReason.DIVERGENCE_THRESHOLD,
                f"{name} = {current} is worse than divergence_threshold={self.divergence_threshold}",
            )
        if waited and waited >= self.patience:
            return (
                EarlyStoppingReason.PATIENCE_EXHAUSTED,
                f"{name} did not improve in the last {waited} checks; the best was {best:.3f}",
            )
        return EarlyStoppingReason.NOT_STOPPED, ""

    def _is_better(self, value: float, than: float, by: float = 0.0) -> bool:
        """Whether ``value`` is better by more than ``by``. Never where one of them is not a number."""
        return value + by < than if self.mode == "min" else value - by > than

    def _tell(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            trainer.print(text)
        elif not self.log_rank_zero_only:
            print(f"[rank {trainer.global_rank}] {text}")  # noqa: T201

    # ---- State

    @property
    def state_key(self) -> str:
        """Two callbacks that monitor different metrics have different keys."""
        return f"{type(self).__qualname__}{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """The count and what it rests on."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
            "grounds": self._grounds,
            "position": self._position,
            "validated": self._validated,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting from there. Only a fit does: a test of an older checkpoint leaves the count as it is."""
        if not self._fitting:
            return
        self.wait_count, self.stopped_epoch = int(state_dict["wait_count"]), int(state_dict["stopped_epoch"])
        self.best_score = torch.as_tensor(state_dict["best_score"], dtype=torch.float64)
        self.stopping_reason = EarlyStoppingReason(state_dict["stopping_reason"])
        self.stopping_reason_message = state_dict["stopping_reason_message"]
        self._grounds, self._position = state_dict["grounds"], state_dict["position"]
        self._validated = state_dict["validated"]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
