"""A new accelerator for fulmen: the processor in slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sliced_cpu.accelerator import SlicedCPUAccelerator

__all__ = ["SlicedCPUAccelerator"]


def __getattr__(name: str) -> Any:
    """Import the class when somebody asks for it: looking for plugins imports this file."""
    if name == "SlicedCPUAccelerator":
        from sliced_cpu.accelerator import SlicedCPUAccelerator

        return SlicedCPUAccelerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
