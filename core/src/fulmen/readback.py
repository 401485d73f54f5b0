"""Read scalars from a device without waiting for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Readback:
    """Scalars on their way to the host.

    The copy is queued behind the work that makes the values, into pinned memory, and an event tells when it is done. On
    the host there is nothing to wait for.

    Args:
        values: Tensors with one element, on any devices, and plain numbers.
    """

    def __init__(self, values: Mapping[str, Tensor | float]) -> None:
        self._numbers: dict[str, float] = {}
        self._copies: list[tuple[list[str], Tensor, torch.Event | None]] = []
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, {})[name] = value
            else:
                self._numbers[name] = float(value)
        self._order = list(values)
        for device, tensors in by_device.items():
            self._start(device, tensors)

    def _start(self, device: torch.device, tensors: Mapping[str, Tensor]) -> None:
        wide = torch.float64 if all(tensor.dtype == torch.float64 for tensor in tensors.values()) else torch.float32
        stacked = torch.stack([tensor.reshape(()).to(wide) for tensor in tensors.values()])
        event = None
        if device.type != "cpu":
            stacked = stacked.to("cpu", non_blocking=True)
            event = torch.Event(device)
            event.record()
        self._copies.append((list(tensors), stacked, event))

    @property
    def ready(self) -> bool:
        """Whether :meth:`result` would return without waiting."""
        return all(event is None or event.query() for _, _, event in self._copies)

    def result(self) -> dict[str, float]:
        """The values as plain numbers, in the order given. Waits for the device where they have not arrived."""
        found = dict(self._numbers)
        for names, copy, event in self._copies:
            if event is not None:
                event.synchronize()  # the one place where metrics wait for a device
            found.update(zip(names, copy.tolist(), strict=True))
        return {name: found[name] for name in self._order}
