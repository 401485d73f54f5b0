"""Which devices are meant, and what an accelerator does by default."""

from __future__ import annotations

import pytest
import torch

from fulmen import Accelerator, ConfigurationError


class Four(Accelerator):
    """Four devices that need no hardware."""

    name = "meta"

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def num_available():
        return 4

    def setup_device(self, device):
        pass


DEVICES = [
    ("auto", [0, 1, 2, 3]),
    (-1, [0, 1, 2, 3]),
    ("-1", [0, 1, 2, 3]),
    (2, [0, 1]),
    ("2", [0, 1]),
    ([1, 3], [1, 3]),
    ((2,), [2]),
    ("1,3", [1, 3]),
    (" 3 , 0 ", [3, 0]),
    ("1,", [1]),
]


@pytest.mark.parametrize(("devices", "indices"), DEVICES, ids=range(len(DEVICES)))
def test_which_devices_are_meant(devices, indices):
    assert Four().parse_devices(devices) == indices


WRONG_DEVICES = [0, 5, -2, True, "", "all", "1;2", [], [4], [0, 0], [-1], [1.0], [True], "0,0", "9", "1--2"]


@pytest.mark.parametrize("devices", WRONG_DEVICES, ids=repr)
def test_wrong_devices_say_what_is_allowed(devices):
    with pytest.raises(ConfigurationError) as caught:
        Four().parse_devices(devices)
    assert str(caught.value) == (
        f"devices={devices!r} does not fit accelerator 'meta', which has 4; allowed are 'auto' or -1 (all), a count from 1 to "
        "4, or a list of different indices below 4"
    )


def test_an_accelerator_needs_little_more_than_its_devices():
    accelerator, device = Four(), torch.device("meta", 1)
    assert accelerator.devices([1]) == [device]
    assert (accelerator.stats(device), accelerator.random_state()) == ({}, {})
    assert accelerator.set_random_state({}) is accelerator.synchronize(device) is accelerator.teardown() is None
    assert accelerator.configure(deterministic=None, benchmark=None) is None
