"""One process that works on one device."""

from __future__ import annotations

import pytest
import torch

from fulmen import ConfigurationError, PluginSet
from fulmen.builtin.cpu import CPUAccelerator
from fulmen.builtin.single_device import SingleDevice

CPU = torch.device("cpu")


def test_it_takes_the_one_device():
    strategy = PluginSet.discover().build("strategy", "single_device")
    strategy.connect(CPUAccelerator(), [CPU], 1, None)
    assert (strategy.name, strategy.root_device, strategy.world_size) == ("single_device", CPU, 1)


@pytest.mark.parametrize(("devices", "num_nodes"), [([CPU, CPU], 1), ([CPU], 2), ([], 1)])
def test_several_are_refused(devices, num_nodes):
    with pytest.raises(ConfigurationError) as caught:
        SingleDevice().connect(CPUAccelerator(), devices, num_nodes, None)
    assert str(caught.value) == (
        f"strategy 'single_device' works on one device of one node, and there are {len(devices)} on {num_nodes}; "
        "use strategy='ddp', or devices=1, num_nodes=1"
    )
