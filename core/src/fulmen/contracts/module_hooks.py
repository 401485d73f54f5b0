"""Every moment of a run at which a module may act. The order is in :mod:`fulmen.hookspecs`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class ModuleHooks:
    """The ``on_*`` hooks of :class:`fulmen.Module`. What is not overridden is never called."""

    # ---- Fit

    def on_fit_start(self) -> None:
        """Fitting starts: everything is set up on its device and a resumed state has been applied."""

    def on_fit_end(self) -> None:
        """Fitting ended, normally or because a stop was requested."""

    def on_train_start(self) -> None:
        """Training starts, after the sanity check."""

    def on_train_end(self) -> None:
        """Training ended."""

    def on_train_stop(self) -> None:
        """Training stops before its epoch is complete, at a position from which it can be resumed: the place to save."""

    def on_train_epoch_start(self) -> None:
        """An epoch starts. Not called again when a run resumes in the middle of one."""

    def on_train_epoch_end(self) -> None:
        """An epoch ends, after its validation. Epoch values of ``training_step`` are in ``trainer.callback_metrics``."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """A batch is on its device. Return -1 to skip the rest of the epoch (not of the training)."""
        return None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is done, and the optimizer step too where one was due. ``outputs`` is what ``training_step`` returned."""

    # ---- Optimization

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Gradients are about to be reset: once per optimizer step."""

    def on_before_backward(self, loss: Tensor) -> None:
        """A backward pass starts: once per batch. ``loss`` is already divided for accumulation."""

    def on_after_backward(self) -> None:
        """A backward pass ended. Gradients may still be scaled by the precision or summed over the window."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Gradients are complete and unscaled, but not clipped yet: the place to look at them."""

    # ---- Validation

    def on_validation_start(self) -> None:
        """Validation starts; the module is in evaluation mode and gradients are off."""

    def on_validation_end(self) -> None:
        """Validation ended; its metrics are complete and logged."""

    def on_validation_epoch_start(self) -> None:
        """The pass over the loaders starts. Called once per validation."""

    def on_validation_epoch_end(self) -> None:
        """The pass over the loaders ended. Values logged here join its metrics."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch is on its device. ``dataloader_idx`` counts the loaders."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch is done. ``outputs`` is what ``validation_step`` returned."""

    # ---- Testing

    def on_test_start(self) -> None:
        """Testing starts; the module is in evaluation mode and gradients are off."""

    def on_test_end(self) -> None:
        """Testing ended; its metrics are complete and logged."""

    def on_test_epoch_start(self) -> None:
        """The pass over the loaders starts. Called once per testing."""

    def on_test_epoch_end(self) -> None:
        """The pass over the loaders ended. Values logged here join its metrics."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch is on its device. ``dataloader_idx`` counts the loaders."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch is done. ``outputs`` is what ``test_step`` returned."""

    # ---- Prediction

    def on_predict_start(self) -> None:
        """Prediction starts; the module is in evaluation mode and gradients are off."""

    def on_predict_end(self) -> None:
        """Prediction ended; its metrics are complete and logged."""

    def on_predict_epoch_start(self) -> None:
        """The pass over the loaders starts. Called once per prediction."""

    def on_predict_epoch_end(self) -> None:
        """The pass over the loaders ended."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch is on its device. ``dataloader_idx`` counts the loaders."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch is done. ``outputs`` is what ``predict_step`` returned."""

    # ---- Checkpoints and failures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is complete and about to be written: add keys, or change them. Plain data only."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read and is about to be applied."""

    # ---- Modes

    def on_validation_model_eval(self: Any) -> None:
        """Switch to evaluation mode before validation; the default is ``self.eval()``."""
        self.eval()

    def on_validation_model_train(self: Any) -> None:
        """Switch back after validation. Overrides replace the default, which restores the mode of every submodule."""
        self.train()

    def on_validation_model_zero_grad(self: Any) -> None:
        """Free gradients before a validation inside training; not called while a window of accumulation is open."""
        self.zero_grad()

    def on_test_model_eval(self: Any) -> None:
        """Like :meth:`on_validation_model_eval`, for testing."""
        self.eval()

    def on_test_model_train(self: Any) -> None:
        """Like :meth:`on_validation_model_train`, for testing."""
        self.train()

    def on_predict_model_eval(self: Any) -> None:
        """Like :meth:`on_validation_model_eval`, for prediction."""
        self.eval()
