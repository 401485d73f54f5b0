"""What this package offers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the precisions, also under the short names of older scripts."""
    registry.precision(
        "bf16-mixed",
        "fulmen_precision.mixed:MixedPrecision",
        summary="parameters in single precision, matrix products in bfloat16",
        aliases=("bf16",),
    )
    registry.precision(
        "16-mixed",
        "fulmen_precision.mixed:ScaledMixedPrecision",
        summary="parameters in single precision, matrix products in float16, scaled gradients",
        aliases=("16",),
    )
    registry.precision("16-true", "fulmen_precision.half:HalfPrecision", summary="parameters and computation in float16")
