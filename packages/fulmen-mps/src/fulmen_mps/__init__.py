"""Train with fulmen on the GPU of a Mac.

>>> from fulmen_mps import MPSAccelerator
>>> accelerator = MPSAccelerator(memory_fraction=0.8)

Names are imported when they are first used: looking for plugins imports this package, and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_mps.accelerator import MPSAccelerator

__all__ = ["MPSAccelerator"]

__getattr__, __dir__ = attributes(__name__, {"MPSAccelerator": "accelerator"})
