"""Export a module with ``torch.export``, as a program or compiled, or as TorchScript.

>>> path = module.to_torch_export("model.pt2", torch.randn(1, 3))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_torchscript.program import TorchExportExporter
    from fulmen_torchscript.script import TorchScriptExporter

__all__ = ["TorchExportExporter", "TorchScriptExporter"]

__getattr__, __dir__ = attributes(__name__, {"TorchExportExporter": "program", "TorchScriptExporter": "script"})
