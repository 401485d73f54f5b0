"""What this package offers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry


@hookimpl
def register(registry: Registry) -> None:
    """Offer the logger."""
    registry.logger("comet", "fulmen_comet.logger:CometLogger", summary="Comet experiments, online or offline")
