"""Show a person how far a run is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fulmen.contracts.callback import Callback

if TYPE_CHECKING:
    from fulmen.trainer import Trainer


class ProgressBar(Callback, ABC):
    """A display that is redrawn by time, never by step. At most one is active in a trainer."""

    refresh_seconds: float = 0.2
    """How long to wait between two redraws."""

    @abstractmethod
    def redraw(self, trainer: Trainer) -> None:
        """Show ``trainer``'s position and ``trainer.progress_bar_metrics``. Called between steps, when it is time."""

    @abstractmethod
    def print(self, text: str) -> None:
        """Write a line without tearing the display."""
