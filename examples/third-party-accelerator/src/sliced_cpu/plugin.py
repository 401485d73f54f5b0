"""What this package offers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the accelerator. ``"auto"`` takes the highest priority that is available; ``cpu`` has 0."""
    registry.accelerator(
        "sliced-cpu",
        "sliced_cpu.accelerator:SlicedCPUAccelerator",
        summary="the processor in slices of some threads each",
        priority=-1,
    )
