"""The processor as an accelerator."""

from __future__ import annotations

import pytest
import torch

from fulmen import ConfigurationError, PluginSet
from fulmen.builtin.cpu import CPUAccelerator


@pytest.mark.parametrize(("devices", "indices"), [("auto", [0]), (1, [0]), (3, [0, 1, 2]), ("2", [0, 1])])
def test_a_device_is_a_process(devices, indices):
    accelerator = CPUAccelerator()
    assert accelerator.parse_devices(devices) == indices
    assert accelerator.devices(indices) == [torch.device("cpu")] * len(indices)


@pytest.mark.parametrize("devices", [0, -1, "-1", [0], "0,1", True, 1.0, None, ""], ids=repr)
def test_wrong_devices_say_what_is_allowed(devices):
    with pytest.raises(ConfigurationError) as caught:
        CPUAccelerator().parse_devices(devices)
    assert str(caught.value) == (
        f"devices={devices!r} does not fit accelerator 'cpu'; allowed are 'auto' (one process) and a number of processes from 1"
    )


def test_it_is_always_there():
    accelerator = PluginSet.discover().build("accelerator", "cpu")
    assert (accelerator.name, accelerator.is_available(), accelerator.num_available()) == ("cpu", True, 1)
    assert accelerator.setup_device(torch.device("cpu")) is None
    assert accelerator.supports_float64
