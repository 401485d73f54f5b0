"""Every installed logger by its class name: ``from fulmen.loggers import CSVLogger``.

Also the contract ``Logger``. A class that is not installed says how to install it.
"""

from __future__ import annotations

from fulmen.contracts.logger import Logger
from fulmen.plugins import class_lookup

__all__ = ["Logger"]

__getattr__, __dir__ = class_lookup(__name__, "logger")
