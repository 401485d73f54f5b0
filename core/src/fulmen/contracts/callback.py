"""Code that runs beside the model: saving, stopping, measuring, reporting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from fulmen.contracts.data_hooks import Stage
from fulmen.errors import ModuleError, listing

if TYPE_CHECKING:
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer

RUNNING: ContextVar[Module] = ContextVar("fulmen.running")
"""The module of the run that goes on in this thread, the innermost where one goes on inside another. Set by the run."""


class Callback:
    """Override what you need; what is not overridden costs nothing, because it is never called.

    Callbacks run in the order of the list, all of them before the module's hook of the same name, except those that
    set :attr:`runs_last`. They read ``trainer`` and ask it (``trainer.should_stop = True``, ``trainer.request_stop``);
    they may log with :meth:`log`, which is ``module.log``.

    >>> class Hello(Callback):
    ...     def on_train_start(self, trainer, module): print("training", type(module).__name__)
    """

    runs_last: bool = False
    """Whether this callback runs after the module and all other callbacks, when metrics are complete and logged.

    For callbacks that act on what others produced: savers, and those that stop on a metric.
    """

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint.

        Add the arguments that tell two callbacks of one class apart: ``f"{type(self).__qualname__}{{'monitor': ...}}"``.
        """
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint, as plain data."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave. Called before ``on_fit_start``."""

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """A run starts, on every rank; the module is not on its device yet."""

    def teardown(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """A run ends, also after an exception."""

    # ---- Logging

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """:meth:`fulmen.Module.log` of the module that runs: the same arguments, at the same moments, in the same record.

        Raises:
            ModuleError: Nothing runs.
        """
        self._logging_module([name]).log(name, value, *args, **kwargs)

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """:meth:`fulmen.Module.log_dict` of the module that runs.

        Raises:
            ModuleError: Nothing runs.
        """
        self._logging_module(dictionary).log_dict(dictionary, *args, **kwargs)

    def _logging_module(self, names: Iterable[str]) -> Module:
        module = RUNNING.get(None)
        if module is None:
            raise ModuleError(
                f"{type(self).__name__} cannot log {listing(names)}: no trainer runs in this thread; log in the hooks of a "
                "callback that a trainer was given"
            )
        return module

    # ---- Fit

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Fitting starts: everything is set up on its device and a resumed state has been applied."""

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """Fitting ended, normally or because a stop was requested."""

    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        """The short validation before training starts."""

    def on_sanity_check_end(self, trainer: Trainer, module: Module) -> None:
        """The short validation before training ended; its metrics are thrown away."""

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Training starts, after the sanity check."""

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Training ended."""

    def on_train_stop(self, trainer: Trainer, module: Module) -> None:
        """Training stops before its epoch is complete, at a position from which it can be resumed: the place to save."""

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """An epoch starts. Not called again when a run resumes in the middle of one."""

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """An epoch ends, after its validation. Epoch values of ``training_step`` are in ``trainer.callback_metrics``."""

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> int | None:
        """A batch is on its device. Return -1 to skip the rest of the epoch (not of the training)."""
        return None

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is done, and the optimizer step too where one was due. ``outputs`` is what ``training_step`` returned."""

    # ---- Optimization

    def on_before_zero_grad(self, trainer: Trainer, module: Module, optimizer: Optimizer) -> None:
        """Gradients are about to be reset: once per optimizer step."""

    def on_before_backward(self, trainer: Trainer, module: Module, loss: Tensor) -> None:
        """A backward pass starts: once per batch. ``loss`` is already divided for accumulation."""

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        """A backward pass ended. Gradients may still be scaled by the precision or summed over the window."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Optimizer) -> None:
        """Gradients are complete and unscaled, but not clipped yet: the place to look at them."""

    # ---- Validation

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Validation starts; the module is in evaluation mode and gradients are off."""

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Validation ended; its metrics are complete and logged."""

    def on_validation_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """The pass over the loaders starts. Called once per validation."""

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """The pass over the loaders ended. Values logged here join its metrics."""

    def on_validation_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch is on its device. ``dataloader_idx`` counts the loaders."""

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch is done. ``outputs`` is what ``validation_step`` returned."""

    # ---- Testing

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Testing starts; the module is in evaluation mode and gradients are off."""

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """Testing ended; its metrics are complete and logged."""

    def on_test_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """The pass over the loaders starts. Called once per testing."""

    def on_test_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """The pass over the loaders ended. Values logged here join its metrics."""

    def on_test_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch is on its device. ``dataloader_idx`` counts the loaders."""

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch is done. ``outputs`` is what ``test_step`` returned."""

    # ---- Prediction

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Prediction starts; the module is in evaluation mode and gradients are off."""

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """Prediction ended; its metrics are complete and logged."""

    def on_predict_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """The pass over the loaders starts. Called once per prediction."""

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """The pass over the loaders ended."""

    def on_predict_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch is on its device. ``dataloader_idx`` counts the loaders."""

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch is done. ``outputs`` is what ``predict_step`` returned."""

    # ---- Checkpoints and failures

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is complete and about to be written: add keys, or change them. Plain data only."""

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read and is about to be applied."""

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """A run failed. The exception goes on to the caller after this."""


class Checkpoint(Callback):
    """A callback that writes checkpoints: what ``ckpt_path="last"`` and ``"best"`` ask."""

    runs_last = True

    compares: bool = True
    """Whether :attr:`best_model_path` was chosen: ``test`` without a module takes it. Otherwise it is the newest, or empty."""

    best_model_path: str = ""
    """The best checkpoint so far; empty before."""

    last_model_path: str = ""
    """The checkpoint that was written last; empty before. With a writer in the background, it may still be being written."""

    saved_batches: int = -1
    """Training batches that were done in the newest checkpoint from which the training can go on; -1: there is none.

    Where it is this step, the recovery checkpoint does not save the same state again.
    """

    def save(self, trainer: Trainer) -> None:
        """Save where the training stands, between two steps, because somebody asked for it (SIGUSR2). The same on all ranks."""

    def folders(self, trainer: Trainer) -> list[Path]:
        """Local folders in which to look for a checkpoint of an earlier run."""
        return []

    def elsewhere(self, trainer: Trainer) -> list[tuple[float, str]]:
        """Complete checkpoints that are not on this machine: when each was written, in seconds since 1970, and its URL."""
        return []

    def holds(self, path: str) -> bool:
        """Whether the file at ``path`` is one that this callback keeps: others neither overwrite nor remove it."""
        return path in (self.best_model_path, self.last_model_path)
