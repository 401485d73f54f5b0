"""Every installed callback by its class name: ``from fulmen.callbacks import LearningRateMonitor``.

Also the contracts ``Callback``, ``Checkpoint`` and ``ProgressBar``. A class that is not installed says how to install it.
"""

from __future__ import annotations

from fulmen.contracts.callback import Callback, Checkpoint
from fulmen.contracts.progress import ProgressBar
from fulmen.plugins import class_lookup

__all__ = ["Callback", "Checkpoint", "ProgressBar"]

__getattr__, __dir__ = class_lookup(__name__, "callback", "progress")
