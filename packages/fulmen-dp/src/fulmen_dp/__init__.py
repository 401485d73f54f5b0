"""Split each batch of a training over the devices of one process.

>>> from fulmen_dp import DataParallelStrategy
>>> strategy = DataParallelStrategy()

Names are imported when they are first used: looking for plugins imports this package, and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_dp.strategy import DataParallelStrategy

__all__ = ["DataParallelStrategy"]

__getattr__, __dir__ = attributes(__name__, {"DataParallelStrategy": "strategy"})
