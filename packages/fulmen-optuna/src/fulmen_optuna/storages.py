"""Where studies are kept, and what is left there by processes that are gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from fulmen import ConfigurationError

PROCESS, ERROR = "process", "error"
"""User attributes of a trial: who runs it, and the traceback that ended it."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
REQUEUED = "requeued"
"""The user attribute of a trial whose process died, and whose parameters are queued again."""


def open_storage(storage: Any) -> Any:
    """A storage of Optuna.

    Args:
        storage: ``None``: in memory; a database URL (``"sqlite:///study.db"``); another text or path: a journal file; or
            an object.
    """
    if storage is None or isinstance(storage, optuna.storages.BaseStorage):
        return storage
    if not isinstance(storage, (str, os.PathLike)):
        raise ConfigurationError(
            f"optimize storage={storage!r} is not allowed; allowed: None, a database URL, the path of a journal file, or a "
            "storage of Optuna"
        )
    text = os.fspath(storage)
    if "://" in text:
        waits = {"connect_args": {"timeout": 60}} if text.startswith("sqlite") else {}  # seconds, for other processes
        return optuna.storages.RDBStorage(text, engine_kwargs=waits)
    Path(text).parent.mkdir(parents=True, exist_ok=True)
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(JournalFileBackend(text))


def this_process() -> str:
    """Who runs a trial: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def give_up_orphans(study: optuna.Study, dead: str | None = None) -> list[int]:
    """Mark running trials whose process is gone as failed, and queue their parameters again.

    Args:
        study: The study.
        dead: A process that has ended; ``None``: look which of this host exist. Those of other hosts are left alone.

    Returns:
        Numbers of the trials.
    """
    found = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get(PROCESS)
        if owner is None or not (owner == dead if dead is not None else _is_gone(owner)):
            continue
        text = f"the process that ran it ({owner}) ended without a word; its parameters are queued again"
        storage = study._storage  # Optuna has no public call that writes to the trial of another process
        storage.set_trial_user_attr(trial._trial_id, ERROR, text)
        storage.set_trial_user_attr(trial._trial_id, REQUEUED, True)
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
        found.append(trial.number)
    return found


def count_finished(study: optuna.Study) -> int:
    """Trials that need not run again."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return sum(not trial.user_attrs.get(REQUEUED) for trial in trials)


def _is_gone(owner: str) -> bool:
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it exists, and belongs to someone else
    return False
