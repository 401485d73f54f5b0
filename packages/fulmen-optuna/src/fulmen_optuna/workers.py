"""Several processes that run trials of one study."""

from __future__ import annotations

import copy
import multiprocessing
import socket
import time
from typing import Any

import optuna

from fulmen import ModuleError
from fulmen.errors import warn
from fulmen_optuna.job import Job, run_trials
from fulmen_optuna.storages import ERROR, count_finished, give_up_orphans, open_storage


def run_in_processes(job: Job, study: optuna.Study, n_trials: int, workers: int) -> optuna.Study:
    """Run trials in new processes until ``n_trials`` are finished. A process that dies is replaced, and its trial queued again.

    Raises:
        ModuleError: A trial failed, and ``on_error`` is ``"stop"``, or no other trial would do better.
    """
    context = multiprocessing.get_context("spawn")
    left, stop = context.Value("i", n_trials - count_finished(study)), context.Event()
    running: dict[Any, int | None] = {}
    deaths, started = 0, 0
    try:
        while True:
            while len(running) < workers and left.value > 0 and not stop.is_set():
                process = context.Process(target=_work, args=(job, left, stop, started), daemon=False)
                process.start()
                running[process], started = process.pid, started + 1
            if not running:
                break
            for process in [each for each in running if not each.is_alive()]:
                pid = running.pop(process)
                if process.exitcode != 0 and not stop.is_set():
                    again = give_up_orphans(study, f"{socket.gethostname()}:{pid}")
                    deaths += 1
                    warn(
                        "worker-died",
                        f"a worker of the study ended with exit status {process.exitcode}; trials to repeat: {again}",
                    )
                    if deaths > workers + n_trials:
                        raise ModuleError(f"{deaths} workers of the study died; look at what they wrote")
                    with left.get_lock():
                        left.value += len(again)
            time.sleep(0.05)
        failed = stop.is_set()
    finally:
        stop.set()
        for process in running:
            process.join()
    if failed:
        _raise_failure(study)
    return study


def _raise_failure(study: optuna.Study) -> None:
    failed = [t for t in study.get_trials(deepcopy=False) if t.state is optuna.trial.TrialState.FAIL and ERROR in t.user_attrs]
    if failed:
        raise ModuleError(f"trial {failed[-1].number} failed, so the study was stopped:\n{failed[-1].user_attrs[ERROR]}")


def _work(job: Job, left: Any, stop: Any, index: int) -> None:
    """What a process does."""
    sampler = copy.deepcopy(job.sampler)
    if sampler is not None:
        sampler.reseed_rng()
    study = optuna.load_study(study_name=job.study_name, storage=open_storage(job.storage), sampler=sampler, pruner=job.pruner)

    def wanted() -> bool:
        with left.get_lock():
            if left.value <= 0 or stop.is_set():
                return False
            left.value -= 1
            return True

    try:
        run_trials(job, study, None, wanted)
    except Exception:  # noqa: BLE001  the study has it; the parent raises it
        stop.set()
