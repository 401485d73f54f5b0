"""Trainings that end badly: ``python child.py KIND FOLDER``, or a URL. Prints what its callback knows afterwards."""

from __future__ import annotations

import json
import os
import resource
import sys

import torch
from fulmen_checkpoint import ModelCheckpoint, complete_checkpoints
from torch import nn

from fulmen import Callback, CheckpointError
from fulmen.testing import Regression, batches, quiet


class Heavy(Regression):
    """Its checkpoint has some megabytes, and its score falls from epoch to epoch."""

    def __init__(self, megabytes=4):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(megabytes << 18))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.weight[0] * 0

    def validation_step(self, batch, batch_idx):
        self.log("score", -float(self.trainer.current_epoch))


class After(Callback):
    """Does something when the third epoch starts."""

    def __init__(self, action):
        self.action = action

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            trainer.writer.finish()  # what was saved before is complete
            self.action()


def fill_the_disk():
    """No file may be longer than a megabyte from now on: writing fails as on a full disk."""
    sys.dont_write_bytecode = True  # Python would leave a part of the file
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def lose_permission(folder):
    """The folder cannot be written to any more, not even by root, who becomes someone else."""
    os.chmod(folder, 0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)


def main(kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    asynchronous, kind = kind.startswith("asynchronous-"), kind.removeprefix("asynchronous-")
    callback = ModelCheckpoint(folder, "{epoch}", "score", save_top_k=2, save_last=True, asynchronous=asynchronous)
    action = {"full": fill_the_disk, "denied": lambda: lose_permission(folder), "killed": lambda: None}[kind]
    trainer = quiet(max_epochs=500 if kind == "killed" else 4, callbacks=[callback, After(action)], enable_checkpointing=True)
    trainer._given_callbacks = [each for each in trainer._given_callbacks if type(each).__name__ != "RecoveryCheckpoint"]
    path = "last" if complete_checkpoints(folder) else None
    error = ""
    try:
        trainer.fit(Heavy(32 if kind == "killed" else 4), batches(2), batches(1), ckpt_path=path)
    except CheckpointError as failure:
        error = str(failure)
    known = [*callback.best_k_models, callback.best_model_path, callback.last_model_path]
    print(json.dumps({"error": error, "known": known, "status": trainer.status, "step": trainer.global_step}))


if __name__ == "__main__":
    main(*sys.argv[1:])
