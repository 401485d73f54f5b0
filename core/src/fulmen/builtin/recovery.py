"""One checkpoint to continue from, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulmen.contracts.callback import Checkpoint
from fulmen.contracts.logger import call_loggers
from fulmen.errors import ConfigurationError
from fulmen.storage import is_url, remove_file

if TYPE_CHECKING:
    from fulmen.contracts.data_hooks import Stage
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer


class RecoveryCheckpoint(Checkpoint):
    """Saves at the end of each epoch, when the training stops, and by time or steps; keeps the newest.

    The older file is removed when the newer one is on the disk and has been verified. ``fit(ckpt_path="last")`` finds it.

    Args:
        dirpath: The folder or URL; ``None``: ``checkpoints`` in the logger's folder, or in ``default_root_dir`` without one.
        every_seconds: Save between two steps when so much time has passed; ``None``: not by time.
        every_n_steps: Save after every n-th optimizer step; ``None``: not by steps.

    Raises:
        ConfigurationError: An interval is not positive.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        every_seconds: float | None = 600.0,
        every_n_steps: int | None = None,
    ) -> None:
        if every_seconds is not None and not every_seconds > 0:
            raise ConfigurationError(f"every_seconds={every_seconds!r} is not allowed; allowed: seconds above 0, or None")
        if every_n_steps is not None and (not isinstance(every_n_steps, int) or every_n_steps < 1):
            raise ConfigurationError(f"every_n_steps={every_n_steps!r} is not allowed; allowed: a whole number from 1, or None")
        self.dirpath = None if dirpath is None else os.fspath(dirpath)
        self.every_seconds, self.every_n_steps = every_seconds, every_n_steps
        self._updates = 0  # at the latest look
        if every_n_steps is not None:  # a method of the instance, so that others pay nothing per step
            self.__dict__["on_train_batch_end"] = self._after_batch

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Forget the file of an earlier training."""
        if stage == "fit":
            self.last_model_path = ""

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._updates = trainer.progress.updates
        if self.every_seconds is not None:
            trainer.every(self.every_seconds, lambda: self.save(trainer))

    def on_train_stop(self, trainer: Trainer, module: Module) -> None:
        """Save in the middle of an epoch."""
        self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Save between two epochs. One that was cut short was saved where it can be continued, with its unfinished means."""
        if trainer.progress.epoch_is_complete:
            self.save(trainer)

    def _after_batch(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._updates = self._updates, trainer.progress.updates
        if self.every_n_steps and before != self._updates and self._updates % self.every_n_steps == 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save where the training stands, and remove the file before. A failure leaves that one in place and is raised."""
        name = f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        before, path = self.last_model_path, f"{self._folder(trainer)}/{name}"
        if any(other.holds(path) for other in trainer.checkpoint_callbacks if other is not self):
            path = path.replace(".ckpt", "-recovery.ckpt")
        self.last_model_path = path  # the file knows its own name
        try:
            trainer.save_checkpoint(path)
        except BaseException:
            self.last_model_path = before
            raise
        if not trainer.is_global_zero:
            return
        call_loggers(trainer.loggers, lambda logger: logger.after_save_checkpoint(self, path))
        if before and before != path and os.path.dirname(before) == os.path.dirname(path):
            remove_file(before)

    def folders(self, trainer: Trainer) -> list[Path]:
        """The folders of this experiment's runs."""
        if self.dirpath is not None:
            return [] if is_url(self.dirpath) else [Path(self.dirpath)]
        experiments = [Path(logger.save_dir) / (logger.name or "") for logger in trainer.loggers if logger.save_dir]
        found = [folder for experiment in experiments for folder in sorted(experiment.glob("*/checkpoints"))]
        return [*found, Path(trainer.default_root_dir) / "checkpoints"]

    def _folder(self, trainer: Trainer) -> str:
        return self.dirpath if self.dirpath is not None else f"{trainer.log_dir}/checkpoints"

    def state_dict(self) -> dict[str, Any]:
        """The name of the file."""
        return {"last_model_path": self.last_model_path}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with the file that the training is resumed from."""
        self.last_model_path = state_dict["last_model_path"]
