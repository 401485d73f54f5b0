"""Keep the best checkpoints of a training, on disk or in an object store.

>>> from fulmen_checkpoint import ModelCheckpoint
>>> callback = ModelCheckpoint(monitor="val_loss", save_top_k=3)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_checkpoint.model_checkpoint import ModelCheckpoint
    from fulmen_checkpoint.places import complete_checkpoints

__all__ = ["ModelCheckpoint", "complete_checkpoints"]

__getattr__, __dir__ = attributes(__name__, {"ModelCheckpoint": "model_checkpoint", "complete_checkpoints": "places"})
