"""One trial after the other."""

from __future__ import annotations

import copy
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from fulmen import Callback, ConfigurationError, Module, ModuleError, Runtime, Trainer
from fulmen.errors import listing, warn
from fulmen_optuna.pruning import PRUNED, OptunaPruning
from fulmen_optuna.storages import ERROR, PROCESS, this_process

CHECKPOINT = "checkpoint"
"""The user attribute of a trial with the path of its weights."""


@dataclass
class Job:
    """What to do in each trial; can be sent to other processes."""

    objective: Callable[[Any], Any]
    train_dataloaders: Any
    val_dataloaders: Any
    datamodule: Any
    monitor: str | None
    trainer: Mapping[str, Any] | None
    folder: str | None
    on_error: str
    storage: Any
    study_name: str
    sampler: Any
    pruner: Any

    def __post_init__(self) -> None:
        """Find out before the first trial that modules will be trained, and nobody said what their value is."""
        given = [n for n in ("train_dataloaders", "val_dataloaders", "datamodule", "trainer") if getattr(self, n) is not None]
        if self.monitor is None and given:
            raise ConfigurationError(
                f"optimize needs monitor= with {listing(given)}: they are for an objective that returns a module, and which "
                "metric is its value?"
            )

    def make_trainer(self, trial: Any) -> Trainer:
        """A trainer with parts of its own, that prunes."""
        options = copy.deepcopy(dict(self.trainer or {}))
        given = options.pop("callbacks", None) or []
        callbacks = [*(given if isinstance(given, (list, tuple)) else [given])]
        if self.monitor is not None:
            callbacks.append(OptunaPruning(trial, self.monitor))
        if self.folder is not None:
            callbacks.append(KeepWeights(str(_checkpoint(self.folder, trial.number))))
            options.setdefault("default_root_dir", os.path.join(self.folder, f"trial-{trial.number:04d}"))
        return Trainer(**options, callbacks=callbacks)

    def shared_runtime(self) -> Runtime | None:
        """Through which the ranks of a distributed run agree, each of which called ``optimize``; ``None``: one process."""
        if not self.trainer:
            return None
        quiet = {"logger": False, "callbacks": None, "enable_checkpointing": False, "enable_progress_bar": False}
        runtime = Trainer(**{**copy.deepcopy(dict(self.trainer)), **quiet}).runtime
        return None if runtime.starts_processes or runtime.world_size == 1 else runtime


class KeepWeights(Callback):
    """Writes the weights at the end of a trial, where all ranks are still there."""

    runs_last = True

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """Write them."""
        trainer.save_checkpoint(self.path, weights_only=True)


def run_trials(
    job: Job, study: optuna.Study | None, runtime: Runtime | None, wanted: Callable[[], bool]
) -> optuna.Study | None:
    """Run trials while ``wanted()``.

    Args:
        job: What to do.
        study: The study; ``None`` on ranks other than 0, which get parameters from rank 0.
        runtime: Where several ranks work on one trial: how they agree.
        wanted: Asked before each trial, on rank 0.
    """
    while True:
        trial = study.ask() if study is not None and wanted() else None
        if study is not None and trial is not None:
            trial.set_user_attr(PROCESS, this_process())
        if runtime is None and trial is None:
            return study
        error = run_trial(job, study, trial, runtime)
        if error is _NO_MORE:
            return study
        if error is not None and (job.on_error == "stop" or isinstance(error, CallError) or not isinstance(error, Exception)):
            raise error


class CallError(ConfigurationError):
    """What no other trial would make right: it ends the study whatever ``on_error`` says."""


_NO_MORE = KeyboardInterrupt("no more trials")


def run_trial(job: Job, study: optuna.Study | None, trial: Any, runtime: Runtime | None) -> BaseException | None:
    """Run a trial and tell the study; what it raised."""
    value, error, state = None, None, TrialState.COMPLETE
    try:
        result = job.objective(trial) if trial is not None else None
        if runtime is not None:
            trial, result = _from_rank_0(job, runtime, trial, result)
            if trial is None:
                return _NO_MORE
        value = _train(job, trial, result) if isinstance(result, Module) else result
        if study is not None:  # rank 0 alone judges: on other ranks a metric may have another value
            value = check_value(value, job.monitor if isinstance(result, Module) else None)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except BaseException as failure:  # noqa: BLE001  it goes into the study, and up where asked
        error, state = failure, TrialState.FAIL
    if study is None:
        return error
    if state is TrialState.FAIL and _was_pruned(study, trial):
        error, state = None, TrialState.PRUNED  # another process raised it, and what arrived here may be of another type
    _tell(job, study, trial, state, value, error)
    return error


def check_value(value: Any, monitor: str | None = None) -> float:
    """``value`` as the study takes it: a number, which may be infinite, or a sequence of one.

    Args:
        value: What the objective returned, or the metric.
        monitor: The name of the metric.

    Raises:
        ModuleError: It is none.
    """
    single = value[0] if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) == 1 else value
    try:
        found = float(single)
    except Exception:  # noqa: BLE001  whatever it says, it is no number
        found = math.nan
    if math.isnan(found):
        what = "the objective returned" if monitor is None else f"the metric {monitor!r} is"
        raise ModuleError(f"{what} {value!r}, which is no value of a trial: a study compares numbers, and NaN is none")
    return found


def _from_rank_0(job: Job, runtime: Runtime, trial: Any, result: Any) -> tuple[Any, Any]:
    """The trial and the module, on every rank; no trial: the study is done."""
    if trial is not None and not isinstance(result, Module):
        raise ConfigurationError(
            f"optimize in a distributed run needs an objective that gives a fulmen.Module, not a {type(result).__name__}: "
            "the trainer is made here, so that ranks agree"
        )
    runtime.open()
    try:
        message = runtime.broadcast(None if trial is None else (trial.number, dict(trial.params)))
    finally:
        runtime.close()
    if message is None or trial is not None:
        return trial, result
    number, params = message
    trial = optuna.trial.FixedTrial(params, number)
    return trial, job.objective(trial)


def _train(job: Job, trial: Any, module: Module) -> float:
    if job.monitor is None:
        raise CallError("optimize needs monitor= where the objective returns a module: which metric is the value?")
    trainer = job.make_trainer(trial)
    data = copy.deepcopy(job.datamodule) if job.datamodule is not None else None
    trainer.fit(module, job.train_dataloaders, job.val_dataloaders, datamodule=data)
    if trainer.interrupted:
        raise KeyboardInterrupt(f"trial {trial.number} was interrupted")
    found = trainer.callback_metrics
    if job.monitor not in found:
        raise ConfigurationError(
            f"optimize monitor={job.monitor!r} was never logged in trial {trial.number}; logged are: {listing(sorted(found))}"
        )
    return float(found[job.monitor])  # synchronises: once per trial


def _tell(job: Job, study: optuna.Study, trial: Any, state: TrialState, value: Any, error: Any) -> None:
    if error is not None:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        trial.set_user_attr(ERROR, text)
    if job.folder is not None and state is TrialState.COMPLETE and _checkpoint(job.folder, trial.number).exists():
        trial.set_user_attr(CHECKPOINT, str(_checkpoint(job.folder, trial.number)))
    study.tell(trial, value if state is TrialState.COMPLETE else None, state)
    if job.folder is not None:
        _keep_best(study, job.folder)
    if job.on_error == "continue" and isinstance(error, Exception) and not isinstance(error, CallError):
        warn(
            "trial-failed",
            f"trial {trial.number} failed: {type(error).__name__}: {error}. Its traceback is in "
            f"study.trials[{trial.number}].user_attrs[{ERROR!r}]; the study goes on",
        )


def _keep_best(study: optuna.Study, folder: str) -> None:
    """Remove weights of finished trials that are not the best. Safe beside others: it judges by one look at the study."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    sign = 1 if study.direction is optuna.study.StudyDirection.MINIMIZE else -1
    best = min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)
    for trial in trials:
        if trial.state.is_finished() and trial is not best:
            with suppress(FileNotFoundError):
                _checkpoint(folder, trial.number).unlink()


def _checkpoint(folder: str, number: int) -> Path:
    return Path(folder) / f"trial-{number:04d}.ckpt"


def _was_pruned(study: optuna.Study, trial: Any) -> bool:
    found = study.get_trials(deepcopy=False)[trial.number]
    return PRUNED in found.user_attrs
