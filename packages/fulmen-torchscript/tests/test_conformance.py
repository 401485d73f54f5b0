"""The suite for exporters, for each that this package offers."""

from __future__ import annotations

import pytest
import torch
from fulmen_torchscript import TorchExportExporter, TorchScriptExporter

from fulmen.testing.conformance import ExporterSuite


@pytest.mark.filterwarnings(r"ignore:\[torchscript-deprecated\]", r"ignore:`torch.jit.load` is:DeprecationWarning")
class TestTorchScript(ExporterSuite):
    name, suffix, needs_sample = "torchscript", ".pt", False

    def make(self, folder):
        return TorchScriptExporter()

    def run(self, path, x):
        return torch.jit.load(str(path))(x).detach()


class TestTorchExport(ExporterSuite):
    name, suffix = "torch_export", ".pt2"

    def make(self, folder):
        return TorchExportExporter()

    def run(self, path, x):
        return torch.export.load(path).module()(x).detach()
