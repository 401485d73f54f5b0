"""Train with fulmen on TPUs, through torch_xla.

>>> from fulmen_xla import XLAStrategy
>>> strategy = XLAStrategy()

Names are imported when they are first used: looking for plugins imports this package, and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_xla.accelerator import XLAAccelerator
    from fulmen_xla.precision import XLAPrecision
    from fulmen_xla.strategy import XLAStrategy

__all__ = ["XLAAccelerator", "XLAPrecision", "XLAStrategy"]

__getattr__, __dir__ = attributes(
    __name__, {"XLAAccelerator": "accelerator", "XLAPrecision": "precision", "XLAStrategy": "strategy"}
)
