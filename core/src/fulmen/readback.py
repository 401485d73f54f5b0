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
        together: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                together.setdefault((value.device, _without_loss(value.dtype)), {})[name] = value
            else:
                self._numbers[name] = float(value)
        self._order = list(values)
        for (device, dtype), tensors in together.items():
            self._start(device, dtype, tensors)

    def _start(self, device: torch.device, dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> None:
        stacked = torch.stack([tensor.reshape(()).to(dtype) for tensor in tensors.values()])
        event = None
        if device.type != "cpu":
            stacked, event = _queued(stacked)
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
            found.update(zip(names, map(float, copy.tolist()), strict=True))
        return {name: found[name] for name in self._order}


def _queued(values: Tensor) -> tuple[Tensor, torch.Event | None]:
    """The copy of ``values`` on the host and the event that tells when it is complete.

    Where the device has no events there is none, and this waits: at logging steps.
    """
    copy = values.to("cpu", non_blocking=True)
    try:
        event = torch.Event(values.device)
        event.record()
    except (NotImplementedError, RuntimeError):  # a device without events
        return values.cpu(), None
    return copy, event


def _without_loss(dtype: torch.dtype) -> torch.dtype:
    """The format in which values of ``dtype`` travel: not all devices have double precision, so no wider than needed."""
    if dtype.is_floating_point:
        return torch.float64 if dtype == torch.float64 else torch.float32
    return torch.int64
