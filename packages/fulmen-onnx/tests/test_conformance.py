"""The suite for exporters."""

from __future__ import annotations

import onnxruntime
import torch
from fulmen_onnx import ONNXExporter

from fulmen.testing.conformance import ExporterSuite


class TestONNX(ExporterSuite):
    name, suffix = "onnx", ".onnx"

    def make(self, folder):
        return ONNXExporter()

    def run(self, path, x):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
