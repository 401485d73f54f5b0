"""What every accelerator must do."""

from __future__ import annotations

from fulmen_mps import MPSAccelerator

from fulmen.testing.conformance import AcceleratorSuite


class TestMPS(AcceleratorSuite):
    name = "mps"

    def make(self, folder):
        return MPSAccelerator()
