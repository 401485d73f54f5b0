"""Stop a training when a metric no longer improves.

>>> from fulmen_early_stopping import EarlyStopping
>>> callback = EarlyStopping("val_loss", patience=5)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_early_stopping.early_stopping import EarlyStopping, EarlyStoppingReason

__all__ = ["EarlyStopping", "EarlyStoppingReason"]

__getattr__, __dir__ = attributes(__name__, {"EarlyStopping": "early_stopping", "EarlyStoppingReason": "early_stopping"})
