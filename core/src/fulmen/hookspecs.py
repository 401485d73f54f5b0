"""Every hook of fulmen. Read this first: it is the training loop, with a mark where each hook fires.

A plugin is a module with functions marked ``@hookimpl``, found through the entry-point group ``fulmen``. It imports
this file and nothing heavier::

    from fulmen.hookspecs import hookimpl

    @hookimpl
    def register(registry):
        registry.logger("mine", "my_package.logger:MyLogger", summary="metrics to my database")

``register`` makes parts available by name. The ``on_*`` hooks act on every run, so a plugin's are called only where the
project enables it. The same names are methods of :class:`fulmen.Callback` and, without ``trainer`` and ``module``, of
:class:`fulmen.Module`; at each mark, plugins run first, then callbacks, then the module, then callbacks that set
``runs_last``. Fitting, with everything that fires::

    module.configure_callbacks()
    datamodule.prepare_data(); module.prepare_data()                  # once per node
    datamodule.setup("fit"); callback.setup("fit"); module.setup("fit")
    module.configure_model()
    module.configure_optimizers()
    # <on_load_checkpoint>                                            # only with ckpt_path; then the state is restored
    # <on_fit_start>
    # hyper-parameters and options go to the loggers
    # <on_sanity_check_start>                                         # num_sanity_val_steps batches, metrics thrown away
    validate()
    # <on_sanity_check_end>
    # <on_train_start>
    while not stopped:
        # <on_train_epoch_start>
        for batch in train_dataloader:
            module.on_before_batch_transfer; module.transfer_batch_to_device; module.on_after_batch_transfer
            # <on_train_batch_start>                                  # -1: skip the rest of the epoch
            outputs = module.training_step(batch, batch_idx)
            if first_batch_of_the_window:                             # of accumulate_grad_batches
                # <on_before_zero_grad>
                module.optimizer_zero_grad()
            # <on_before_backward>
            module.backward(loss)
            # <on_after_backward>
            if last_batch_of_the_window:
                # <on_before_optimizer_step>
                module.configure_gradient_clipping()
                optimizer.step()                                      # global_step += 1
                module.lr_scheduler_step()                            # interval "step"
            # <on_train_batch_end>
            # values go to loggers, every log_every_n_steps           # then <on_train_batch_end> of callbacks that run last
            if validation_is_due:
                validate()
        # <on_train_stop>                                             # only where a stop was requested before its end
        module.lr_scheduler_step()                                    # interval "epoch"
        if validation_is_due:
            validate()
        module.lr_scheduler_step()                                    # reduce on plateau
        # <on_train_epoch_end>
        # epoch values go to loggers                                  # then <on_train_epoch_end> of callbacks that run last
    # <on_train_end>
    # <on_fit_end>
    datamodule.teardown("fit"); callback.teardown("fit"); module.teardown("fit")

    def validate():                                                   # test and predict alike, with their names
        module.on_validation_model_eval()
        # <on_validation_start>
        # <on_validation_epoch_start>
        for dataloader_idx, loader in enumerate(val_dataloaders):
            for batch_idx, batch in enumerate(loader):
                # <on_validation_batch_start>
                outputs = module.validation_step(batch, batch_idx)
                # <on_validation_batch_end>
        # <on_validation_epoch_end>
        # metrics are complete, and go to loggers
        # <on_validation_end>
        module.on_validation_model_train()

Where a module overrides ``optimizer_step``, or its optimizer takes a closure (LBFGS), the lines from ``training_step``
to ``configure_gradient_clipping`` run inside that closure, in the same order. ``on_exception`` fires where anything
above raises; ``on_save_checkpoint`` wherever a checkpoint is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from fulmen.contracts.module import Module
    from fulmen.registry import Registry
    from fulmen.trainer import Trainer

VERSION = 1
"""The version of these hooks. It rises when a hook is removed or changes its meaning, and not when one is added."""

hookspec = pluggy.HookspecMarker("fulmen")
hookimpl = pluggy.HookimplMarker("fulmen")
"""Marks a function of a plugin as an implementation of the hook of the same name."""


# ---- Registration


@hookspec
def register(registry: Registry) -> None:
    """Make parts available by kind and name.

    Called once, when plugins are discovered; must not import torch. Classes are named as strings
    (``"package.module:Class"``) and imported when someone uses the name.
    """


# ---- Fit


@hookspec
def on_fit_start(trainer: Trainer, module: Module) -> None:
    """Fitting starts: everything is set up on its device and a resumed state has been applied."""


@hookspec
def on_fit_end(trainer: Trainer, module: Module) -> None:
    """Fitting ended, normally or because a stop was requested."""


@hookspec
def on_sanity_check_start(trainer: Trainer, module: Module) -> None:
    """The short validation before training starts."""


@hookspec
def on_sanity_check_end(trainer: Trainer, module: Module) -> None:
    """The short validation before training ended; its metrics are thrown away."""


@hookspec
def on_train_start(trainer: Trainer, module: Module) -> None:
    """Training starts, after the sanity check."""


@hookspec
def on_train_end(trainer: Trainer, module: Module) -> None:
    """Training ended."""


@hookspec
def on_train_stop(trainer: Trainer, module: Module) -> None:
    """Training stops before its epoch is complete, at a position from which it can be resumed: the place to save."""


@hookspec
def on_train_epoch_start(trainer: Trainer, module: Module) -> None:
    """An epoch starts. Not called again when a run resumes in the middle of one."""


@hookspec
def on_train_epoch_end(trainer: Trainer, module: Module) -> None:
    """An epoch ends, after its validation. Epoch values of ``training_step`` are in ``trainer.callback_metrics``."""


@hookspec
def on_train_batch_start(trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> int | None:
    """A batch is on its device. Return -1 to skip the rest of the epoch (not of the training)."""
    return None


@hookspec
def on_train_batch_end(trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
    """A batch is done, and the optimizer step too where one was due. ``outputs`` is what ``training_step`` returned."""


# ---- Optimization


@hookspec
def on_before_zero_grad(trainer: Trainer, module: Module, optimizer: Optimizer) -> None:
    """Gradients are about to be reset: once per optimizer step."""


@hookspec
def on_before_backward(trainer: Trainer, module: Module, loss: Tensor) -> None:
    """A backward pass starts: once per batch. ``loss`` is already divided for accumulation."""


@hookspec
def on_after_backward(trainer: Trainer, module: Module) -> None:
    """A backward pass ended. Gradients may still be scaled by the precision or summed over the window."""


@hookspec
def on_before_optimizer_step(trainer: Trainer, module: Module, optimizer: Optimizer) -> None:
    """Gradients are complete and unscaled, but not clipped yet: the place to look at them."""


# ---- Validation


@hookspec
def on_validation_start(trainer: Trainer, module: Module) -> None:
    """Validation starts; the module is in evaluation mode and gradients are off."""


@hookspec
def on_validation_end(trainer: Trainer, module: Module) -> None:
    """Validation ended; its metrics are complete and logged."""


@hookspec
def on_validation_epoch_start(trainer: Trainer, module: Module) -> None:
    """The pass over the loaders starts. Called once per validation."""


@hookspec
def on_validation_epoch_end(trainer: Trainer, module: Module) -> None:
    """The pass over the loaders ended. Values logged here join its metrics."""


@hookspec
def on_validation_batch_start(trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
    """A batch is on its device. ``dataloader_idx`` counts the loaders."""


@hookspec
def on_validation_batch_end(
    trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
) -> None:
    """A batch is done. ``outputs`` is what ``validation_step`` returned."""


# ---- Testing


@hookspec
def on_test_start(trainer: Trainer, module: Module) -> None:
    """Testing starts; the module is in evaluation mode and gradients are off."""


@hookspec
def on_test_end(trainer: Trainer, module: Module) -> None:
    """Testing ended; its metrics are complete and logged."""


@hookspec
def on_test_epoch_start(trainer: Trainer, module: Module) -> None:
    """The pass over the loaders starts. Called once per testing."""


@hookspec
def on_test_epoch_end(trainer: Trainer, module: Module) -> None:
    """The pass over the loaders ended. Values logged here join its metrics."""


@hookspec
def on_test_batch_start(trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
    """A batch is on its device. ``dataloader_idx`` counts the loaders."""


@hookspec
def on_test_batch_end(trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
    """A batch is done. ``outputs`` is what ``test_step`` returned."""


# ---- Prediction


@hookspec
def on_predict_start(trainer: Trainer, module: Module) -> None:
    """Prediction starts; the module is in evaluation mode and gradients are off."""


@hookspec
def on_predict_end(trainer: Trainer, module: Module) -> None:
    """Prediction ended; its metrics are complete and logged."""


@hookspec
def on_predict_epoch_start(trainer: Trainer, module: Module) -> None:
    """The pass over the loaders starts. Called once per prediction."""


@hookspec
def on_predict_epoch_end(trainer: Trainer, module: Module) -> None:
    """The pass over the loaders ended."""


@hookspec
def on_predict_batch_start(trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
    """A batch is on its device. ``dataloader_idx`` counts the loaders."""


@hookspec
def on_predict_batch_end(
    trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
) -> None:
    """A batch is done. ``outputs`` is what ``predict_step`` returned."""


# ---- Checkpoints and failures


@hookspec
def on_save_checkpoint(trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
    """A checkpoint is complete and about to be written: add keys, or change them. Plain data only."""


@hookspec
def on_load_checkpoint(trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
    """A checkpoint was read and is about to be applied."""


@hookspec
def on_exception(trainer: Trainer, module: Module, exception: BaseException) -> None:
    """A run failed. The exception goes on to the caller after this."""
