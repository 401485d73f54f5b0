"""What holds for every callback."""

from __future__ import annotations

from typing import ClassVar

from fulmen_checkpoint import ModelCheckpoint

from fulmen.testing.conformance.callback import CallbackSuite


class TestModelCheckpoint(CallbackSuite):
    name = "checkpoint"
    arguments: ClassVar = {"monitor": "val_loss", "save_top_k": 2}

    def make(self, folder):
        return ModelCheckpoint(folder / "checkpoints", save_last=True, **self.arguments)


class TestAsynchronous(CallbackSuite):
    name = "checkpoint"

    def make(self, folder):
        return ModelCheckpoint(folder / "checkpoints", save_last=True, asynchronous=True)
