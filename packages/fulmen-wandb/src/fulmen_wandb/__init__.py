"""Keep fulmen trainings in Weights & Biases.

>>> from fulmen_wandb import WandbLogger
>>> logger = WandbLogger(project="digits", offline=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_wandb.logger import WandbLogger

__all__ = ["WandbLogger"]

__getattr__, __dir__ = attributes("fulmen_wandb", {"WandbLogger": "logger"})
