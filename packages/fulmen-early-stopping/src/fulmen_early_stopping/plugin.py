"""What this package offers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the callback."""
    registry.callback(
        "early_stopping",
        "fulmen_early_stopping.early_stopping:EarlyStopping",
        summary="stops when a metric no longer improves",
    )
