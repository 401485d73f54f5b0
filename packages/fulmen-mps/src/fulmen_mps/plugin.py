"""What fulmen-mps provides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the accelerator."""
    registry.accelerator("mps", "fulmen_mps.accelerator:MPSAccelerator", summary="the GPU of a Mac", priority=10)
