"""What fulmen-cuda provides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the accelerator."""
    target = "fulmen_cuda.accelerator:CUDAAccelerator"
    registry.accelerator("cuda", target, summary="NVIDIA GPUs", aliases=("gpu",), priority=20)
