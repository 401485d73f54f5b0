"""Mixed and half precision.

>>> from fulmen import Trainer
>>> trainer = Trainer(precision="bf16-mixed")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_precision.half import HalfPrecision
    from fulmen_precision.mixed import MixedPrecision, ScaledMixedPrecision

__all__ = ["HalfPrecision", "MixedPrecision", "ScaledMixedPrecision"]

__getattr__, __dir__ = attributes(
    __name__, {"HalfPrecision": "half", "MixedPrecision": "mixed", "ScaledMixedPrecision": "mixed"}
)
