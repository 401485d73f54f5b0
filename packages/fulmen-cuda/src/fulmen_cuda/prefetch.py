"""Batches that are copied to the GPU while it computes.

The copy of a batch runs on a stream of its own; the stream that computes waits for it, the host does not. Where a batch may
be taken ahead, the copy of the next one is started before this one is used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fulmen.contracts.data_hooks import map_tensors

Move = Callable[[Any], Any]


def prefetched(batches: Iterator[Any], start: Callable[[Any], Any], finish: Callable[[Any], Any], ahead: int) -> Iterator[Any]:
    """``batches`` in their order, started up to ``ahead`` batches before they are asked for.

    Args:
        batches: The batches.
        start: Begins to move a batch; its result goes to ``finish``.
        finish: Called when the batch is asked for; gives the batch.
        ahead: How many are started early. An exception of a loader is raised when its batch is asked for, not earlier.
    """
    waiting: deque[Any] = deque()
    failure: Exception | None = None
    ended = False
    while True:
        while not ended and len(waiting) <= ahead:
            try:
                waiting.append(start(next(batches)))
            except StopIteration:
                ended = True
            except Exception as error:  # noqa: BLE001  raised below, when its turn comes
                failure, ended = error, True
        if not waiting:
            if failure is not None:
                raise failure
            return
        yield finish(waiting.popleft())


class SideStream:
    """Copies batches to a GPU on a stream of its own.

    Args:
        move: Copies a batch on the current stream, without waiting.
        pin: Copy what is not in pinned memory there first, so that the host does not wait for the copy to the GPU.
        device: The GPU; ``None``: the current one.
    """

    def __init__(self, move: Move, pin: bool, device: torch.device | None = None) -> None:
        self.move, self.pin = move, pin
        self.stream = torch.cuda.Stream(device)

    def start(self, batch: Any) -> tuple[Any, torch.cuda.Event | None]:
        """Begin to copy; the batch on the device, and the event that tells when it is complete."""
        if not knows(batch):
            return self.move(batch), None
        if self.pin:
            batch = pinned_batch(batch)
        with torch.cuda.stream(self.stream):
            return self.move(batch), self.stream.record_event()

    def finish(self, started: tuple[Any, torch.cuda.Event | None]) -> Any:
        """The batch; what is computed from now on waits for its copy, on the device."""
        batch, event = started
        if event is not None:
            current = torch.cuda.current_stream(self.stream.device)
            current.wait_event(event)
            # The memory belongs to the side stream: it must not be given to a later batch while this stream still reads it.
            map_tensors(batch, lambda tensor: tensor.record_stream(current))
        return batch


def knows(batch: Any) -> bool:
    """Whether ``batch`` is made of plain tensors only, whose memory can be kept as long as another stream needs it."""
    others: list[Any] = []
    map_tensors(batch, lambda value: others.append(value) if not _is_plain(value) else None)
    return not others


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_nested


def pinned_batch(batch: Any) -> Any:
    """``batch`` with its plain tensors on the host in pinned memory."""
    return map_tensors(batch, lambda value: _pinned(value) if _is_plain(value) else value)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor
