"""The processor as an accelerator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fulmen.contracts.accelerator import Accelerator
from fulmen.errors import ConfigurationError


class CPUAccelerator(Accelerator):
    """The processor. A device is a process: ``devices=2`` trains with two processes where the strategy allows it."""

    name = "cpu"

    @staticmethod
    def is_available() -> bool:
        """Always."""
        return True

    @staticmethod
    def num_available() -> int:
        """One: a process uses all cores already."""
        return 1

    def setup_device(self, device: torch.device) -> None:
        """Nothing to do."""

    def parse_devices(self, devices: int | str | Sequence[int]) -> list[int]:
        """The indices of the processes.

        Args:
            devices: ``"auto"`` for one, or a count.

        Raises:
            ConfigurationError: It is neither.
        """
        count = int(devices) if isinstance(devices, str) and devices.isdigit() else devices
        if count == "auto":
            return [0]
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigurationError(
                f"devices={devices!r} does not fit accelerator 'cpu'; allowed are 'auto' (one process) "
                "and a number of processes from 1"
            )
        return list(range(count))

    def devices(self, indices: Iterable[int]) -> list[torch.device]:
        """The same device for each process."""
        return [torch.device("cpu") for _ in indices]
