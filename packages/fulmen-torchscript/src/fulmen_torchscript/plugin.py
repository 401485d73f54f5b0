"""What this package offers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the formats."""
    registry.exporter(
        "torchscript", "fulmen_torchscript.script:TorchScriptExporter", summary="TorchScript, scripted or traced; deprecated"
    )
    registry.exporter(
        "torch_export",
        "fulmen_torchscript.program:TorchExportExporter",
        summary="torch.export: a program, or compiled by AOTInductor",
    )
