"""Every installed logger by its class name: ``from fulmen.loggers import CSVLogger``.

Also the contract ``Logger``, and ``rank_zero_only`` for methods that write. A class that is not installed says how to install
it.
"""

from __future__ import annotations

from fulmen.contracts.logger import Logger
from fulmen.contracts.ranks import rank_zero_only
from fulmen.plugins import class_lookup

__all__ = ["Logger", "rank_zero_only"]

__getattr__, __dir__ = class_lookup(__name__, "logger")
