"""Averages of the weights of a training, which as a rule generalise better than the last weights.

>>> from fulmen_swa import EMAWeightAveraging, StochasticWeightAveraging
>>> callback = StochasticWeightAveraging(swa_lrs=0.05)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_swa.averaging import WeightAveraging
    from fulmen_swa.ema import EMAWeightAveraging
    from fulmen_swa.swa import StochasticWeightAveraging

__all__ = ["EMAWeightAveraging", "StochasticWeightAveraging", "WeightAveraging"]

__getattr__, __dir__ = attributes(
    __name__, {"EMAWeightAveraging": "ema", "StochasticWeightAveraging": "swa", "WeightAveraging": "averaging"}
)
