"""What fulmen-xla provides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer accelerator, strategy and precisions."""
    accelerator = "fulmen_xla.accelerator:XLAAccelerator"
    registry.accelerator("xla", accelerator, summary="TPUs, through torch_xla", aliases=("tpu",), priority=30)
    registry.strategy("xla", "fulmen_xla.strategy:XLAStrategy", summary="one process or thread for each XLA device")
    for name, text in (("xla-bf16-mixed", "expensive operations in bfloat16"), ("xla-bf16-true", "everything in bfloat16")):
        registry.precision(name, "fulmen_xla.precision:XLAPrecision", summary=f"{text}, on XLA", arguments={"name": name})
