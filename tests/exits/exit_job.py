"""A training that something happens to after its third step: ``python exit_job.py EVENT FOLDER``."""

from __future__ import annotations

import os
import signal
import sys

import torch
from torch.utils.data import DataLoader, Dataset

from fulmen import Callback, Logger, Trainer
from fulmen.callbacks import RecoveryCheckpoint
from fulmen.testing import QUIET, Validated

STEPS = 8


class Signals(Callback):
    """Sends signals to its own process in the middle of step 3."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 2:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class Raises(Callback):
    """Fails in the middle of step 3."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 2:
            raise ValueError("in a hook")


class Impatient(Callback):
    """In a validation, asks to stop, and kills when that takes longer than two batches."""

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == 3 and batch_idx in (2, 5):
            os.kill(os.getpid(), signal.SIGTERM if batch_idx == 2 else signal.SIGKILL)


class Points(Dataset):
    """Fails in the worker process that loads the third batch, if asked to."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def __len__(self):
        return STEPS * 4

    def __getitem__(self, index):
        if self.fails and index == 8:
            raise ValueError("in a worker")
        return torch.full((3,), index / 32), torch.full((1,), index / 32)


class Broken(Logger):
    """Fails at the third row."""

    name, version = "broken", "0"

    def __init__(self) -> None:
        self.rows = 0

    def log_metrics(self, metrics, step):
        self.rows += 1
        if self.rows == 3:
            raise OSError("in a logger")

    def log_hyperparams(self, params):
        pass


def main(event: str, folder: str) -> None:
    numbers = [getattr(signal, name) for name in event.split("+")] if event.startswith("SIG") else []
    callbacks = [RecoveryCheckpoint(every_n_steps=2, asynchronous=False)]
    callbacks += [Signals(*numbers)] if numbers else [Raises()] if event == "hook" else []
    callbacks += [Impatient()] if event == "validation" else []
    loggers = [Broken()] if "logger" in event else []
    if event == "required logger":
        loggers[0].required = True
    trainer = Trainer(
        **{**QUIET, "enable_checkpointing": True, "logger": loggers or False}, max_epochs=1, log_every_n_steps=1,
        limit_val_batches=None if event == "validation" else 0, val_check_interval=3, callbacks=callbacks,
        default_root_dir=folder,
    )  # fmt: skip
    data = DataLoader(Points(event == "worker"), batch_size=4, num_workers=int(event == "worker"))
    trainer.fit(Validated(), data, DataLoader(Points(), batch_size=4))
    print("after fit:", trainer.global_step, trainer.interrupted, trainer.stop_reason, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
