"""One checkpoint to continue from, whatever happens."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from fulmen.contracts.callback import Checkpoint
from fulmen.contracts.logger import call_loggers
from fulmen.errors import CheckpointError, ConfigurationError
from fulmen.storage import is_url, read_checkpoint, remote_checkpoints, remove_file, write_checkpoint

if TYPE_CHECKING:
    from fulmen.clock import Alarm
    from fulmen.contracts.data_hooks import Stage
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer

SHORTEST = 30.0
"""Seconds between two saves by time, however cheap they are: more often is of no use to anyone."""
FREE = 1.0
"""Seconds that saving may cost in a training before its share is looked at: short trainings save at the end of each epoch."""


class RecoveryCheckpoint(Checkpoint):
    """Saves by time, at the ends of epochs and when the training stops; keeps the newest.

    What a save costs is measured: how long the training stood still for it, and the processor time of the thread that wrote
    it. From this follows how often is affordable. The trainer prints how much work can be lost at worst as soon as that is
    known. Where another callback has saved this very step, it is not saved again.

    Where no other callback saves, ``best_model_path`` and ``ckpt_path="best"`` are the newest file, as with a
    ``ModelCheckpoint`` without a monitor. ``trainer.test()`` without a module takes the module as it is.

    The older file is removed when the newer one is on the disk and has been verified. ``fit(ckpt_path="last")`` finds it.

    Args:
        dirpath: The folder or URL; ``None``: ``checkpoints`` in the logger's folder, or in ``default_root_dir`` without one.
        every_seconds: The longest time between two saves; ``None``: not by time.
        every_n_steps: Save after every n-th optimizer step, at the end of its batch, whatever it costs; each step of each
            optimizer counts, as in ``trainer.global_step``. ``None``: not by steps.
        max_cost: The share of the training time that saving may cost. It is saved as often as that allows, but not more
            often than every 30 seconds, and not less often than ``every_seconds``; an end of an epoch for which it does not
            suffice is not saved. ``None``: at intervals of ``every_seconds``, and at the end of every epoch.
        asynchronous: Copy the state, and write it in a thread while the training goes on. ``False``: the training waits, and
            host memory for the copy is saved.

    Raises:
        ConfigurationError: An argument has a value that is not allowed.
    """

    compares = False
    best_model_score = None

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        every_seconds: float | None = 600.0,
        every_n_steps: int | None = None,
        max_cost: float | None = 0.02,
        asynchronous: bool = True,
    ) -> None:
        if every_seconds is not None and not every_seconds > 0:
            raise ConfigurationError(f"every_seconds={every_seconds!r} is not allowed; allowed: seconds above 0, or None")
        if every_n_steps is not None and (not isinstance(every_n_steps, int) or every_n_steps < 1):
            raise ConfigurationError(f"every_n_steps={every_n_steps!r} is not allowed; allowed: a whole number from 1, or None")
        if max_cost is not None and not 0 < max_cost <= 1:
            raise ConfigurationError(f"max_cost={max_cost!r} is not allowed; allowed: a share above 0 and up to 1, or None")
        self.dirpath = None if dirpath is None else os.fspath(dirpath)
        self.every_seconds, self.every_n_steps = every_seconds, every_n_steps
        self.max_cost, self.asynchronous = max_cost, asynchronous
        self._step = 0  # at the latest look
        self._fitting = self._is_only = True  # until a run says otherwise
        self._saved: tuple[int, ...] = ()  # the position in the newest file
        self._replaced = ""  # the file before that one, which is removed when that one is complete
        self._loaded: tuple[str, ...] = ()  # the names of both in a state that was loaded
        self._first, self._began = 0, 0.0  # batches done, and the time, when the training started
        self._blocked = self._used = self._writing = self._cost = 0.0  # of the latest save: seconds
        self._spent = self._told = 0.0
        self._alarm: Alarm | None = None
        if every_n_steps is not None:  # a method of the instance, so that others pay nothing per step
            self.__dict__["on_train_batch_end"] = self._after_batch

    # ---- When

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Forget the file of an earlier training, and what saving cost there."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._is_only = len(trainer.checkpoint_callbacks) == 1
            self._take_note("", -1, ())
            self._alarm, self._replaced = None, ""
            self._blocked = self._used = self._writing = self._cost = self._spent = self._told = 0.0

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock. The first save comes soon, so that its cost is known."""
        self._step, self._first, self._began = trainer.global_step, trainer.progress.batches, monotonic()
        if trainer.is_global_zero and os.path.isfile(self._replaced):
            self._remove_replaced(trainer)
        if self.every_seconds is not None:
            self._alarm = trainer.every(self.interval, lambda: self._by_time(trainer))

    @property
    def interval(self) -> float:
        """Seconds between two saves by time, from what the latest one cost."""
        assert self.every_seconds is not None
        affordable = self.every_seconds if self.max_cost is None else max(SHORTEST, self._cost / self.max_cost)
        return min(self.every_seconds, affordable)

    def _by_time(self, trainer: Trainer) -> None:
        if self._alarm is not None and trainer.runtime.broadcast(trainer.writer.busy):
            self._alarm.ring_in(min(1.0, self.interval))  # rather a moment later than waiting for another save
        else:
            self.save(trainer)

    def on_train_stop(self, trainer: Trainer, module: Module) -> None:
        """Save in the middle of an epoch."""
        self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Save between two epochs. One that was cut short was saved where it can be continued, with its unfinished means."""
        if trainer.progress.epoch_is_complete and trainer.runtime.broadcast(self._is_affordable()):
            self.save(trainer)

    def _is_affordable(self) -> bool:
        if self.max_cost is None:
            return True
        return self._spent + self._cost <= self.max_cost * (monotonic() - self._began) + FREE

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Save the newest state, unless that is done, and wait until it is written."""
        if self.saved_batches != trainer.progress.batches:
            self.save(trainer)
        trainer.writer.finish()

    def _after_batch(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._step = self._step, trainer.global_step
        every = self.every_n_steps
        if every and before // every != self._step // every:  # several optimizers may step in one batch
            self.save(trainer)

    # ---- What

    def save(self, trainer: Trainer) -> None:
        """Save where the training stands, unless that is done. A failure leaves the earlier file, and is raised."""
        position = (trainer.progress.batches, trainer.progress.settled)
        others = [each for each in trainer.checkpoint_callbacks if each is not self]
        if position == self._saved or any(each.saved_batches == position[0] for each in others):
            return
        epoch = trainer.current_epoch - (not trainer.progress.batch and position[0] > 0)  # that of the newest batch
        name = f"epoch={epoch}-step={trainer.global_step}.ckpt"
        path = f"{self._folder(trainer)}/{name}"
        if others:  # a name that none of them could want: what their files are called does not depend on when this one saves
            path = path.replace(".ckpt", "-recovery.ckpt")
        began = monotonic()
        trainer.writer.finish()  # so that what becomes of the earlier file is known
        before = (self.last_model_path, self.saved_batches, self._saved)
        self._replaced = before[0]
        self._take_note(path, position[0], position)  # the file knows its own name
        try:
            payload = trainer.collect_checkpoint()
        except BaseException:
            self._take_note(*before)
            raise
        write = partial(self._write, path=path, older=before[0], began=began)
        finished = partial(self._finished, trainer, began, before)
        if self.asynchronous:
            trainer.writer.start(payload, write, finished, path)
            self._blocked = monotonic() - began
        else:
            trainer.writer.write_now(payload, write, finished, path)

    def _take_note(self, path: str, batches: int, position: tuple[int, ...]) -> None:
        """Of the newest file."""
        self.last_model_path, self.saved_batches, self._saved = path, batches, position
        self.best_model_path = path if self._is_only else ""

    def _write(self, payload: dict[str, Any], path: str, older: str, began: float) -> None:
        """On rank 0, in the thread or not."""
        used = thread_time()
        write_checkpoint(payload, path)
        if (
            older
            and older != path
            and os.path.dirname(older) == os.path.dirname(path)
            and self._is_own(older, payload["run"]["id"])
        ):
            remove_file(older)
        self._used, self._writing = thread_time() - used, monotonic() - began

    def _remove_replaced(self, trainer: Trainer) -> None:
        """Remove the older file where a kill came between the newer one and that."""
        others = [each for each in trainer.checkpoint_callbacks if each is not self]
        if self._replaced == self.last_model_path or any(other.holds(self._replaced) for other in others):
            return
        inside = os.path.dirname(self._replaced) == os.path.dirname(self.last_model_path) == self._folder(trainer)
        if inside and self._is_own(self._replaced, trainer.run_id):
            remove_file(self._replaced)

    def _is_own(self, path: str, run_id: str) -> bool:
        """Whether a file is of this run. One that this process wrote is; the name in a checkpoint is what somebody wrote."""
        if path not in self._loaded:
            return True
        try:
            return bool(read_checkpoint(path, "meta", verify=False)["run"]["id"] == run_id)
        except (CheckpointError, LookupError, TypeError):
            return False

    def _finished(self, trainer: Trainer, began: float, before: tuple[str, int, Any], failure: CheckpointError | None) -> None:
        """Take note of how writing ended, and of what it cost. Between two steps, on every rank."""
        if failure is not None:
            self._take_note(*before)
            return
        self._cost = self._blocked + self._used if self.asynchronous else monotonic() - began
        self._spent += self._cost
        if self._alarm is not None:
            self._alarm.seconds = self.interval
            self._alarm.ring_in(max(0.0, began + self.interval - monotonic()))
        if trainer.is_global_zero:
            path = self.last_model_path
            call_loggers(trainer.loggers, lambda logger: logger.after_save_checkpoint(self, path))
            self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        """Say once how much can be lost; again when it has doubled."""
        if self._alarm is None:
            if not self._told:
                self._told = 1.0
                most = f"{self.every_n_steps} steps" if self.every_n_steps else "an epoch"
                trainer.print(f"recovery checkpoint: at most {most} of work can be lost")
            return
        step = (monotonic() - self._began) / max(1, trainer.progress.batches - self._first)
        loss = self.interval + self._writing + step  # all since the file before, until this one is complete
        if not self._told or loss > 2 * self._told:
            self._told = loss
            every, share = duration(self.interval), self._cost / self.interval
            trainer.print(
                f"recovery checkpoint: every {every}, for {share:.1%} of the time; at most {duration(loss)} of work can be lost"
            )

    # ---- Where

    def folders(self, trainer: Trainer) -> list[Path]:
        """The folders of this experiment's runs."""
        if self.dirpath is not None:
            return [] if is_url(self.dirpath) else [Path(self.dirpath)]
        experiments = [Path(logger.save_dir) / (logger.name or "") for logger in trainer.loggers if logger.save_dir]
        found = [folder for experiment in experiments for folder in sorted(experiment.glob("*/checkpoints"))]
        return [*found, Path(trainer.default_root_dir) / "checkpoints"]

    def elsewhere(self, trainer: Trainer) -> list[tuple[float, str]]:
        """Those behind the URL, whose contents are verified when they are read."""
        return remote_checkpoints(self.dirpath) if self.dirpath is not None and is_url(self.dirpath) else []

    def _folder(self, trainer: Trainer) -> str:
        return self.dirpath if self.dirpath is not None else f"{trainer.log_dir}/checkpoints"

    # ---- State

    @property
    def best_k_models(self) -> dict[str, Any]:
        """Nothing: there are no scores."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The name of the file, and of the one that it takes the place of."""
        return {"last_model_path": self.last_model_path, "replaced": self._replaced}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with the file that the training is resumed from. A test of another one leaves what is known as it is."""
        if not self._fitting:
            return
        self._take_note(state_dict["last_model_path"], self.saved_batches, self._saved)
        self._replaced = state_dict.get("replaced", "")
        self._loaded = (self.last_model_path, self._replaced)


def duration(seconds: float) -> str:
    """For people, rounded up.

    >>> duration(129.2)
    '2 min 10 s'
    """
    whole = math.ceil(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
