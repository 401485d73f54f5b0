"""Run a study: trial after trial, in one process or several, today and again tomorrow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optuna

from fulmen import ConfigurationError
from fulmen_optuna.job import Job, run_trials
from fulmen_optuna.storages import count_finished, give_up_orphans, open_storage
from fulmen_optuna.workers import run_in_processes


def optimize(
    objective: Callable[[Any], Any],
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    *,
    n_trials: int,
    datamodule: Any = None,
    monitor: str | None = None,
    trainer: Mapping[str, Any] | None = None,
    storage: Any = None,
    study_name: str | None = None,
    direction: Literal["minimize", "maximize"] = "minimize",
    sampler: Any = None,
    pruner: Any = None,
    workers: int = 1,
    on_error: Literal["continue", "stop"] = "continue",
    folder: str | os.PathLike[str] | None = None,
) -> optuna.Study | None:
    """Run a study until ``n_trials`` trials are finished, those of earlier calls included.

    A trial that raises, or whose value is no number, is marked as failed, with its traceback in ``user_attrs["error"]``. One
    whose process died is marked likewise by the next call, and its parameters are queued again. The README says more.

    Args:
        objective: Called with each trial; returns its value, or a :class:`fulmen.Module` to train here, with pruning. New
            processes must be able to import it.
        train_dataloaders: Data for modules, as ``trainer.fit`` takes it; each process gets a copy.
        val_dataloaders: The same, for validation.
        n_trials: Trials in the study, in the end.
        datamodule: Data instead of loaders.
        monitor: The metric whose last value is that of a module's trial.
        trainer: Options of the trainer for modules; each trial gets copies of the parts among them.
        storage: ``None``: in memory; a database URL; the path of a journal file; or a storage of Optuna.
        study_name: The study in the storage, to create or continue; ``None``: ``"fulmen"``.
        direction: ``"minimize"`` or ``"maximize"``.
        sampler: Of Optuna; workers get copies with other seeds.
        pruner: Of Optuna.
        workers: Processes that run trials at the same time.
        on_error: After a trial that failed: ``"continue"`` with a warning, or ``"stop"`` and raise.
        folder: Where modules' trials write. The weights of the best stay; ``user_attrs["checkpoint"]`` is their path.

    Returns:
        The study; on ranks other than 0 of a distributed run, ``None``.

    Raises:
        ConfigurationError: An option has a wrong value.
    """
    _check_options(n_trials, direction, storage, workers, on_error)
    folder = None if folder is None else os.path.abspath(folder)
    job = Job(
        objective, train_dataloaders, val_dataloaders, datamodule, monitor, trainer, folder, on_error, storage,
        study_name or "fulmen", sampler, pruner,
    )  # fmt: skip
    runtime = job.shared_runtime()
    if runtime is not None and not runtime.is_global_zero:
        return run_trials(job, None, runtime, lambda: True)
    study = _open_study(job, direction)
    if workers > 1:
        return run_in_processes(job, study, n_trials, workers)
    return run_trials(job, study, runtime, lambda: count_finished(study) < n_trials)


def _check_options(n_trials: Any, direction: Any, storage: Any, workers: Any, on_error: Any) -> None:
    if n_trials < 1 or workers < 1:
        name, value = ("n_trials", n_trials) if n_trials < 1 else ("workers", workers)
        raise ConfigurationError(f"optimize {name}={value!r} is not allowed; allowed: a whole number from 1")
    if on_error not in ("continue", "stop"):
        raise ConfigurationError(f"optimize on_error={on_error!r} is not allowed; allowed: 'continue', 'stop'")
    if direction not in ("minimize", "maximize"):
        raise ConfigurationError(f"optimize direction={direction!r} is not allowed; allowed: 'minimize', 'maximize'")
    if workers > 1 and (storage is None or isinstance(storage, optuna.storages.InMemoryStorage)):
        raise ConfigurationError(
            f"optimize workers={workers} needs a storage that processes share; pass storage='study.journal' or "
            "storage='sqlite:///study.db'"
        )


def _open_study(job: Job, direction: Literal["minimize", "maximize"]) -> optuna.Study:
    """The study, as earlier calls left it."""
    study = optuna.create_study(
        storage=open_storage(job.storage), study_name=job.study_name if job.storage is not None else None, direction=direction,
        sampler=job.sampler, pruner=job.pruner, load_if_exists=True,
    )  # fmt: skip
    if study.direction.name.lower() != direction:
        raise ConfigurationError(
            f"the study {job.study_name!r} in {job.storage!r} has direction {study.direction.name.lower()!r}, and not "
            f"{direction!r}; choose another study_name"
        )
    give_up_orphans(study)
    return study
