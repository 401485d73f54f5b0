"""The suite for callbacks, for both."""

from __future__ import annotations

from fulmen_swa import EMAWeightAveraging, StochasticWeightAveraging

from fulmen.testing.conformance.callback import CallbackSuite


class TestStochasticWeightAveraging(CallbackSuite):
    name, arguments = "swa", {"swa_lrs": 0.05}
    changes_training = True

    def make(self, folder):
        return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)


class TestEMAWeightAveraging(CallbackSuite):
    name = "ema"
    changes_training = True

    def make(self, folder):
        return EMAWeightAveraging(decay=0.9)
