"""Turn a trained module into a file that runs without fulmen."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.contracts.module import Module


class Exporter(ABC):
    """One format."""

    @abstractmethod
    def export(self, module: Module, path: str | os.PathLike[str], input_sample: Any = None, **options: Any) -> Path:
        """Write ``module`` to ``path``.

        Args:
            module: In evaluation mode and without gradients; both are put back afterwards.
            path: The file to write.
            input_sample: Arguments of ``forward`` as a tensor, tuple or mapping; ``None`` takes
                ``module.example_input_array``.
            **options: Of the format.

        Returns:
            The file that was written.
        """
