"""What every logger must do."""

from __future__ import annotations

import pytest
from archives import metrics, params

from fulmen.loggers import CometLogger
from fulmen.testing.conformance import LoggerSuite


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Comet's, where the disk is full
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestCometLogger(LoggerSuite):
    name = "comet"
    keeps_hyperparams = True
    readable_while_open = False  # an archive is written when the run ends
    rewinds = False  # Comet cannot take rows back

    def make(self, folder):
        return CometLogger(online=False, save_dir=folder)

    def read_back(self, part, folder):
        rows = metrics(folder)
        epochs = [{"step": row["step"], "epoch": row["epoch"]} for row in rows if row["epoch"] is not None]
        return epochs + [{"step": row["step"], row["metricName"]: row["metricValue"]} for row in rows]

    def read_hyperparams(self, part, folder):
        return params(folder)
