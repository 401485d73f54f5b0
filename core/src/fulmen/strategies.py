"""Every installed strategy by its class name: ``from fulmen.strategies import DDPStrategy``.

Also the contract ``Strategy``. A class that is not installed says how to install it.
"""

from __future__ import annotations

from fulmen.contracts.strategy import Strategy
from fulmen.plugins import class_lookup

__all__ = ["Strategy"]

__getattr__, __dir__ = class_lookup(__name__, "strategy")
