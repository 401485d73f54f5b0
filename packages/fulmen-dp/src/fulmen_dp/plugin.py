"""What fulmen-dp provides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the strategy."""
    registry.strategy("dp", "fulmen_dp.strategy:DataParallelStrategy", summary="one process, each batch split over devices")
