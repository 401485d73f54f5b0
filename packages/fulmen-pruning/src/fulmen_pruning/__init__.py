"""Prune the parameters of a model while it trains.

>>> from fulmen_pruning import ModelPruning
>>> callback = ModelPruning("l1_unstructured", amount=0.2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_pruning.pruning import ModelPruning

__all__ = ["ModelPruning"]

__getattr__, __dir__ = attributes(__name__, {"ModelPruning": "pruning"})
