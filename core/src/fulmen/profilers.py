"""Every installed profiler by its class name: ``from fulmen.profilers import SimpleProfiler``.

Also the contract ``Profiler``. A class that is not installed says how to install it.
"""

from __future__ import annotations

from fulmen.contracts.profiler import Profiler
from fulmen.plugins import class_lookup

__all__ = ["Profiler"]

__getattr__, __dir__ = class_lookup(__name__, "profiler")
