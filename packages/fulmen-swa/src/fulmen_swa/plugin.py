"""What this package offers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the callbacks."""
    registry.callback(
        "swa", "fulmen_swa.swa:StochasticWeightAveraging", summary="averages the weights of the last epochs (SWA)"
    )
    registry.callback("ema", "fulmen_swa.ema:EMAWeightAveraging", summary="exponential moving average of the weights (EMA)")
