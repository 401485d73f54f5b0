"""What every accelerator must do."""

from __future__ import annotations

from fulmen_xla import XLAAccelerator

from fulmen.testing.conformance import AcceleratorSuite


class TestXLA(AcceleratorSuite):
    name = "xla"
    has_indices = False  # all or one

    def make(self, folder):
        return XLAAccelerator()
