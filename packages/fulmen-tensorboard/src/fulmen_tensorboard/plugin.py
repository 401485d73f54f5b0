"""What this package offers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the logger and the callback."""
    registry.logger("tensorboard", "fulmen_tensorboard.logger:TensorBoardLogger", summary="event files for TensorBoard")
    registry.callback(
        "histograms", "fulmen_tensorboard.histograms:HistogramMonitor", summary="weights and gradients to TensorBoard"
    )
