"""End a trial of a study that does worse than others did."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna

from fulmen import Callback, ConfigurationError, ModuleError
from fulmen.errors import listing

if TYPE_CHECKING:
    from fulmen import Module, Trainer
    from fulmen.contracts.data_hooks import Stage

PRUNED = "pruned"
"""The user attribute of a trial that says why it was pruned."""


class OptunaPruning(Callback):
    """Reports ``monitor`` to an Optuna trial after each validation, and ends the training where the study's pruner says so.

    The training ends cleanly, as by any requested stop: after its step, with loggers and checkpoints complete. Then
    ``optuna.TrialPruned`` is raised out of ``trainer.fit``, for the study to see. ``min_epochs`` and ``min_steps`` of the
    trainer come first. Where nothing is validated, the value of each training epoch is reported.

    The step that Optuna sees counts the values, from 0: the epoch, with one validation per epoch. The count is kept in
    checkpoints, so that a trial that is resumed goes on with the next one. Values that were reported before the interruption
    are not reported again, and not judged again.

    In a distributed run rank 0 reports and decides, and all ranks stop after the same step.

    Args:
        trial: The trial. Ranks other than 0 do not use it: it may be ``None`` there.
        monitor: The name of a logged metric, as in ``trainer.callback_metrics``.

    Raises:
        ConfigurationError: The study has several objectives, which Optuna cannot prune.

    >>> OptunaPruning(optuna.trial.FixedTrial({}), "val_loss").state_key
    "OptunaPruning{'monitor': 'val_loss'}"
    """

    runs_last = True

    def __init__(self, trial: Any, monitor: str) -> None:
        directions = getattr(getattr(trial, "study", None), "directions", [])
        if len(directions) > 1:
            raise ConfigurationError(
                f"OptunaPruning cannot prune a study with {len(directions)} objectives: Optuna knows no pruning there; leave "
                "it out"
            )
        self.trial, self.monitor = trial, monitor
        self._fitting = True  # until a run of another kind begins
        self._reset()

    def _reset(self) -> None:
        self._count = 0  # values so far
        self._position = -1  # training batches done when the latest value was measured
        self._reason: str | None = None  # why the trial was pruned
        self._known = -1  # the last step that the study knew when this training began
        self._validated = self._cut = False

    # ---- When

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Forget what an earlier training of this callback counted."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._reset()

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Ask the study what it knows of this trial: it may have been reported before a crash."""
        if trainer.is_global_zero:
            self._known = _last_step(self.trial)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Stop at once where the trial that is resumed was pruned."""
        self._cut = False
        if self._reason is not None:
            trainer.request_stop(self._reason)

    def on_train_stop(self, trainer: Trainer, module: Module) -> None:
        """Report nothing more: a resumed run measures these values again."""
        self._cut = True

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Report what the validation measured; not in the sanity check."""
        if trainer.phase == "validate" and self._fitting:
            self._validated = True
            self._report(trainer, must_exist=False)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Report what only the epoch measured."""
        self._report(trainer, must_exist=self._validated or not trainer.enable_validation)

    def teardown(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Tell the study, by ``optuna.TrialPruned``, when everything is complete."""
        reason = self._reason
        if stage == "fit" and reason is not None and trainer.status == "finished":
            self._reason = None
            raise optuna.TrialPruned(reason)

    # ---- What

    def _report(self, trainer: Trainer, must_exist: bool) -> None:
        """Report a value that was not reported before. The same call on every rank."""
        if self._cut or self._reason is not None:
            return
        age = trainer.metric_age(self.monitor)
        measured = None if age is None else trainer.progress.batches - age
        answer: list[Any] = [measured, None]
        if trainer.is_global_zero and measured is not None and measured != self._position:
            answer[1] = self._judge(float(trainer.callback_metrics[self.monitor]))  # synchronises: once per value
        measured, reason = trainer.runtime.broadcast(answer)
        if measured is None:
            if must_exist:
                raise ModuleError(
                    f"OptunaPruning monitors {self.monitor!r}, which was never logged; logged are: "
                    f"{listing(sorted(trainer.callback_metrics))}"
                )
        elif measured != self._position:
            self._position, self._count = measured, self._count + 1
            if reason is not None:
                self._reason = reason
                trainer.request_stop(reason)

    def _judge(self, value: float) -> str | None:
        """Report a value; why the trial shall end, or ``None``."""
        step = self._count
        if step <= self._known:
            return None  # it was judged before the interruption
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The reported value is ignored because", UserWarning)
            self.trial.report(value, step)
        if not self.trial.should_prune():
            return None
        reason = f"trial {self.trial.number} was pruned at step {step}: {self.monitor} = {value:.6g}"
        self.trial.set_user_attr(PRUNED, reason)
        return reason

    # ---- State

    @property
    def state_key(self) -> str:
        """Two callbacks that monitor different metrics have different keys."""
        return f"{type(self).__qualname__}{{'monitor': {self.monitor!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """How far the reports are, and whether the trial was pruned."""
        return {"count": self._count, "position": self._position, "reason": self._reason, "validated": self._validated}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from there. Only a fit does."""
        if self._fitting:
            self._count, self._position = int(state_dict["count"]), int(state_dict["position"])
            self._reason, self._validated = state_dict["reason"], bool(state_dict["validated"])


def _last_step(trial: Any) -> int:
    """The last step that was reported for a trial; -1: none."""
    study = getattr(trial, "study", None)
    if study is None:
        return -1
    found = next((each for each in study.get_trials(deepcopy=False) if each.number == trial.number), None)
    return max(found.intermediate_values, default=-1) if found else -1
