"""The processor in slices: a device is a number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from fulmen import Accelerator, ConfigurationError


class SlicedCPUAccelerator(Accelerator):
    """Trains on a slice of the processor, and leaves the rest of it to others.

    Args:
        threads: How many threads a slice has.

    Raises:
        ConfigurationError: ``threads`` is below 1.
    """

    name = "sliced-cpu"

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise ConfigurationError(f"threads={threads} is not allowed; a slice has at least 1")
        self.threads = threads
        self._before: int | None = None  # the threads of the process, while a slice is in use

    @staticmethod
    def is_available() -> bool:
        """Whether there is a slice. Quick, and asked of the class: nothing is chosen yet."""
        return SlicedCPUAccelerator.num_available() > 0

    @staticmethod
    def num_available() -> int:
        """What ``SLICED_CPU_COUNT`` says, else one slice for each core."""
        text = os.environ.get("SLICED_CPU_COUNT", "")
        if text and not text.isdecimal():
            raise ConfigurationError(f"SLICED_CPU_COUNT={text!r} must be a whole number from 0")
        return int(text) if text else os.cpu_count() or 1

    def devices(self, indices: Iterable[int]) -> list[torch.device]:
        """PyTorch has one device for the processor, whatever the slice."""
        return [torch.device("cpu") for _ in indices]

    def setup_device(self, device: torch.device) -> None:
        """Keep to the threads of a slice."""
        if self._before is None:
            self._before = torch.get_num_threads()
        torch.set_num_threads(self.threads)

    def teardown(self) -> None:
        """Give the other threads back. May come without a set-up, and twice."""
        if self._before is not None:
            torch.set_num_threads(self._before)
            self._before = None

    def stats(self, device: torch.device) -> dict[str, float]:
        """The load of the machine in the last minute, per core."""
        return {"load_per_core": os.getloadavg()[0] / (os.cpu_count() or 1)} if hasattr(os, "getloadavg") else {}
