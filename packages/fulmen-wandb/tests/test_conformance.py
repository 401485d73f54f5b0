"""What every logger must do."""

from __future__ import annotations

from typing import ClassVar

from runfiles import config, rows

from fulmen.loggers import WandbLogger
from fulmen.testing.conformance import LoggerSuite


class TestWandbLogger(LoggerSuite):
    name = "wandb"
    arguments: ClassVar = {"offline": True}
    keeps_hyperparams = True
    readable_while_open = False  # wandb's own process writes the file
    rewinds = False  # what was sent cannot be taken back

    def make(self, folder):
        return WandbLogger(save_dir=folder, offline=True)

    def read_back(self, part, folder):
        internal = ("_timestamp", "_runtime", "_step", "trainer/global_step")
        return [
            {"step": row["trainer/global_step"], **{name: value for name, value in row.items() if name not in internal}}
            for row in rows(folder)
        ]

    def read_hyperparams(self, part, folder):
        return config(folder)
