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
        "checkpoint",
        "fulmen_checkpoint.model_checkpoint:ModelCheckpoint",
        summary="keeps the best checkpoints by a metric, or the newest",
    )
