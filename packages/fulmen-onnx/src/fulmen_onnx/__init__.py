"""Export a module to ONNX.

>>> path = module.to_onnx("model.onnx", torch.randn(1, 3), dynamic_shapes={"x": {0: "batch"}})  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_onnx.exporter import ONNXExporter
    from fulmen_onnx.report import read_report

__all__ = ["ONNXExporter", "read_report"]

__getattr__, __dir__ = attributes(__name__, {"ONNXExporter": "exporter", "read_report": "report"})
