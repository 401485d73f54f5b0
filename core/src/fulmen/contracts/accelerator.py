"""One kind of device: which are there, how one is made ready, what it can tell about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from fulmen.errors import ConfigurationError


class Accelerator(ABC):
    """A kind of device. One instance serves a run; it holds no module and no data.

    A new kind needs no change in the core: subclass this, and register it as a provider (see the plugin tutorial).
    """

    name: str
    """The name it is registered under, and the ``type`` of its ``torch.device``."""

    default_strategy: str | None = None
    """The strategy that ``"auto"`` means here; ``None``: one process for one device, else ``"ddp"``."""

    supports_float64: bool = True
    """Whether the device computes in double precision; sums of metrics use it where it does."""

    supports_inference_mode: bool = True
    """Whether modules can be evaluated under ``torch.inference_mode``; elsewhere it is done without gradients only."""

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Whether at least one such device can be used now. Must be quick and must not start a device context."""

    @staticmethod
    @abstractmethod
    def num_available() -> int:
        """How many such devices ``devices="auto"`` would use."""

    @staticmethod
    def advice() -> str:
        """Why there may be no device and what to do about it, as a clause for the error; empty where nothing is known."""
        return ""

    @abstractmethod
    def setup_device(self, device: torch.device) -> None:
        """Make ``device`` the current one of this process. Called once per process, before anything is moved."""

    def teardown(self) -> None:
        """Free what :meth:`setup_device` took."""

    def parse_devices(self, devices: int | str | Sequence[int]) -> list[int]:
        """The device indices that ``devices`` asks for.

        Args:
            devices: ``"auto"`` or ``-1`` for all, a count (``2`` or ``"2"``), or indices (``[1, 3]`` or ``"1,3"``).

        Raises:
            ConfigurationError: It is none of these, or asks for more than there are.
        """
        found = self.num_available()
        wanted = _device_indices(devices, found)
        if wanted is None or not wanted or len(set(wanted)) != len(wanted) or not all(0 <= i < found for i in wanted):
            raise ConfigurationError(
                f"devices={devices!r} does not fit accelerator {self.name!r}, which has {found}; allowed are 'auto' or -1 "
                f"(all), a count from 1 to {found}, or a list of different indices below {found}"
            )
        return wanted

    def devices(self, indices: Iterable[int]) -> list[torch.device]:
        """The devices with these indices."""
        return [torch.device(self.name, index) for index in indices]

    def configure(self, *, deterministic: bool | str | None, benchmark: bool | None) -> None:
        """Set backend switches for a run.

        Args:
            deterministic: ``True`` or ``"warn"`` where only reproducible algorithms may be used.
            benchmark: Whether the backend may time algorithms and keep the fastest; ``None`` leaves it alone.
        """

    def batches(self, batches: Iterator[Any], move: Callable[[Any], Any], ahead: bool) -> Iterator[Any]:
        """``batches`` in their order, each moved by ``move``. Override to copy while the device computes.

        Called where overridden, once per pass over a loader, unless the user moves batches with a
        ``transfer_batch_to_device`` of their own. What the user does before and after the move is done around it.

        Args:
            batches: The batches on the host.
            move: Copies one to the device of this process, on the current stream, without waiting.
            ahead: Whether a batch may be taken before it is asked for. ``False``: that would show after a resume, because
                loading one draws random numbers of this process, or moves a position that the trainer does not keep.
        """
        return map(move, batches)

    def stats(self, device: torch.device) -> dict[str, float]:
        """Figures about ``device`` such as ``{"memory_allocated_bytes": ...}``; read without synchronising."""
        return {}

    def random_state(self) -> dict[str, Any]:
        """The state of the device's random number generators, as plain data; the host's are kept by fulmen."""
        return {}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`random_state` gave."""

    def synchronize(self, device: torch.device) -> None:
        """Wait until ``device`` has done all its work. Only profilers and benchmarks call this."""


def _device_indices(devices: int | str | Sequence[int], found: int) -> list[int] | None:
    if isinstance(devices, bool):
        return None
    if isinstance(devices, str):
        text = devices.strip()
        if text == "auto":
            return list(range(found))
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not all(part.lstrip("-").isdigit() for part in parts):
            return None
        devices = int(text) if "," not in text and parts else [int(part) for part in parts]
    if isinstance(devices, int):
        return list(range(found if devices == -1 else devices))
    return list(devices) if all(type(index) is int for index in devices) else None
