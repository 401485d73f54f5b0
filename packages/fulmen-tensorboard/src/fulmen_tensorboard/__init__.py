"""Watch fulmen trainings in TensorBoard.

>>> from fulmen_tensorboard import TensorBoardLogger
>>> logger = TensorBoardLogger("runs", name="digits")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_tensorboard.histograms import HistogramMonitor
    from fulmen_tensorboard.logger import TensorBoardLogger

__all__ = ["HistogramMonitor", "TensorBoardLogger"]

__getattr__, __dir__ = attributes("fulmen_tensorboard", {"HistogramMonitor": "histograms", "TensorBoardLogger": "logger"})
