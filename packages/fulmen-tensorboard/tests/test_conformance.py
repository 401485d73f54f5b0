"""What every logger must do."""

from __future__ import annotations

import json
from pathlib import Path

from eventfiles import rows

from fulmen.loggers import TensorBoardLogger
from fulmen.testing.conformance import LoggerSuite


class TestTensorBoardLogger(LoggerSuite):
    name = "tensorboard"
    keeps_hyperparams = True

    def make(self, folder):
        return TensorBoardLogger(folder, default_hp_metric=False)

    def read_back(self, part, folder):
        return rows(part.event_dir)

    def read_hyperparams(self, part, folder):
        return json.loads(Path(part.log_dir, "hparams.yaml").read_text())
