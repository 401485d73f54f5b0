"""What every accelerator must do."""

from __future__ import annotations

from fulmen_cuda import CUDAAccelerator

from fulmen.testing.conformance import AcceleratorSuite


class TestCUDA(AcceleratorSuite):
    name = "cuda"

    def make(self, folder):
        return CUDAAccelerator()
