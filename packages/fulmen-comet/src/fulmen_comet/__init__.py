"""Keep fulmen trainings in Comet experiments.

>>> from fulmen_comet import CometLogger
>>> logger = CometLogger(project="digits", online=False)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_comet.logger import CometLogger

__all__ = ["CometLogger"]

__getattr__, __dir__ = attributes(__name__, {"CometLogger": "logger"})
