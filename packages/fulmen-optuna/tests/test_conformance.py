"""The suite for callbacks."""

from __future__ import annotations

from typing import ClassVar

import optuna
from fulmen_optuna import OptunaPruning

from fulmen.testing.conformance import CallbackSuite


class TestOptunaPruning(CallbackSuite):
    name, arguments = "optuna", {"trial": optuna.trial.FixedTrial({}), "monitor": "val_loss"}
    options: ClassVar = {}

    def make(self, folder):
        return OptunaPruning(**self.arguments)
