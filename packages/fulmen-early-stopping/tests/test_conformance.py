"""What holds for every callback."""

from __future__ import annotations

from typing import ClassVar

from fulmen_early_stopping import EarlyStopping

from fulmen.testing.conformance.callback import CallbackSuite


class TestEarlyStopping(CallbackSuite):
    name = "early_stopping"
    arguments: ClassVar = {"monitor": "val_loss", "patience": 100}

    def make(self, folder):
        return EarlyStopping(**self.arguments)
