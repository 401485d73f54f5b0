"""One process that works on one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fulmen.contracts.accelerator import Accelerator
from fulmen.contracts.environment import ClusterEnvironment
from fulmen.contracts.strategy import Strategy
from fulmen.errors import ConfigurationError


class SingleDevice(Strategy):
    """One process, one device: every method is the contract's default."""

    name = "single_device"

    def connect(
        self, accelerator: Accelerator, devices: Sequence[torch.device], num_nodes: int, environment: ClusterEnvironment | None
    ) -> None:
        """Take the one device.

        Raises:
            ConfigurationError: There are several devices or nodes.
        """
        if len(devices) != 1 or num_nodes != 1:
            raise ConfigurationError(
                f"strategy 'single_device' works on one device of one node, and there are {len(devices)} on {num_nodes}; "
                "use strategy='ddp', or devices=1, num_nodes=1"
            )
        self._device = devices[0]

    @property
    def root_device(self) -> torch.device:
        """The device."""
        return self._device
