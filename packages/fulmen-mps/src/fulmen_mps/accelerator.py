"""The GPU of a Mac with Apple silicon, through Metal."""

from __future__ import annotations

import sys
from typing import Any

import torch

from fulmen import Accelerator, ConfigurationError


class MPSAccelerator(Accelerator):
    """The GPU of a Mac. There is one.

    It has no double precision. Operations that Metal lacks raise an error, unless ``PYTORCH_ENABLE_MPS_FALLBACK=1`` was set
    before the program started.

    Args:
        memory_fraction: How much of the memory that Metal recommends may be used: from 0, which is no limit, to 2. ``None``
            leaves PyTorch's setting. Stays after the run: PyTorch does not tell what it was before.

    Raises:
        ConfigurationError: ``memory_fraction`` is out of range.
    """

    name = "mps"
    supports_float64 = False

    def __init__(self, memory_fraction: float | None = None) -> None:
        number = isinstance(memory_fraction, (int, float)) and not isinstance(memory_fraction, bool)
        if memory_fraction is not None and not (number and 0 <= memory_fraction <= 2):
            raise ConfigurationError(
                f"memory_fraction={memory_fraction!r} is not allowed; allowed: a number from 0 (no limit) to 2, and None"
            )
        self.memory_fraction = memory_fraction

    # ---- What there is

    @staticmethod
    def is_available() -> bool:
        """Whether this torch is built for Metal and the system has it."""
        return torch.backends.mps.is_available()

    @staticmethod
    def num_available() -> int:
        """One, or none."""
        return int(torch.backends.mps.is_available())

    @staticmethod
    def advice() -> str:
        """Why there may be none."""
        if sys.platform != "darwin":
            return f"it is for Macs, and this is {sys.platform}"
        if not torch.backends.mps.is_built():
            return f"torch {torch.__version__} is built without MPS: install the build for Apple silicon"
        return "it needs macOS 12.3 and Apple silicon or an AMD GPU"

    # ---- A run

    def setup_device(self, device: torch.device) -> None:
        """Limit the memory where asked. The device needs no choosing."""
        if self.memory_fraction is not None:
            torch.mps.set_per_process_memory_fraction(float(self.memory_fraction))

    def teardown(self) -> None:
        """Give memory that is not used any more to others."""
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()

    # ---- Figures and random numbers

    def stats(self, device: torch.device) -> dict[str, float]:
        """Bytes in tensors, and bytes that Metal's driver has given out. The device is not waited for."""
        return {
            "memory_allocated_bytes": torch.mps.current_allocated_memory(),
            "memory_driver_bytes": torch.mps.driver_allocated_memory(),
        }

    def random_state(self) -> dict[str, Any]:
        """The state of the device's generator."""
        return {"mps": torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Put it back. A state that was made without this device changes nothing."""
        if "mps" in state:
            torch.mps.set_rng_state(state["mps"].cpu())

    def synchronize(self, device: torch.device) -> None:
        """Wait until the device has done all its work."""
        torch.mps.synchronize()
