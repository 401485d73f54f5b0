"""What every strategy must do, with two devices that the processor plays."""

from __future__ import annotations

from fulmen_dp import DataParallelStrategy

from fulmen.testing.conformance import StrategySuite


class TestDP(StrategySuite):
    name = "dp"
    devices = 2
    tolerance = 1e-4  # this training makes 1e-5 out of a difference of one unit in the last place; in doubles it is 2e-14

    def make(self, folder):
        return DataParallelStrategy()
