"""Write in a thread what was copied before, one checkpoint at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class Staging:
    """Copies of everything in a checkpoint, in host memory that is reused from one checkpoint to the next.

    Tensors of a CUDA device are copied into pinned memory behind the work that is queued there, so that the caller does not
    wait; other devices are waited for.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._used: dict[tuple[Any, ...], Tensor] = {}
        self._seen: dict[tuple[Any, ...], Tensor] = {}
        self._devices: set[torch.device] = set()

    def copy(self, payload: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Event]]:
        """The copy, and what to wait for before it is read.

        Call it only when nobody reads the copy before.
        """
        self._used, self._seen, self._devices = {}, {}, set()
        copied = self._copy(payload, ())
        self._buffers = self._used  # what this checkpoint has no use for is freed
        self._used, self._seen = {}, {}
        events = []
        for device in self._devices:
            event = torch.Event(device)
            event.record()
            events.append(event)
        return copied, events

    @property
    def num_bytes(self) -> int:
        """Host memory that the copies take."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self._buffers.values())

    def _copy(self, value: Any, where: tuple[Any, ...]) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return self._copy_tensor(value, where)
        if isinstance(value, dict):
            copied = kind()
            for key, item in value.items():
                copied[key] = self._copy(item, (*where, key))
            return copied
        if kind in (list, tuple):
            return kind(self._copy(item, (*where, index)) for index, item in enumerate(value))
        return set(value) if kind is set else value  # what is neither is immutable, or refused when it is written

    def _copy_tensor(self, tensor: Tensor, where: tuple[Any, ...]) -> Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.detach().to("cpu", copy=True)  # synchronises: rare, and without a buffer to reuse
        tensor = tensor.detach()
        same = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and same in self._seen:
            return self._seen[same]  # tied weights stay tied
        quick = tensor.device.type == "cuda"
        key = (where, tensor.dtype, tensor.shape, tensor.stride(), quick)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=quick)
        buffer.copy_(tensor, non_blocking=quick)
        if quick:
            self._devices.add(tensor.device)
        self._used[key] = self._seen[same] = buffer
        return buffer


class Writer:
    """Runs one job at a time in a thread."""

    def __init__(self) -> None:
        self.staging = Staging()
        self.blocked_seconds = 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job was started whose end nobody has taken note of."""
        return self._job is not None

    @property
    def done(self) -> bool:
        """Whether such a job has ended. Never waits."""
        return self._job is not None and self._job.done()

    def start(self, payload: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Copy ``payload`` and hand it to ``write`` in the thread. The job before must have been finished."""
        began = time.monotonic()
        copied, events = self.staging.copy(payload)
        self.blocked_seconds += time.monotonic() - began
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="fulmen-checkpoint")

        def run() -> None:
            for event in events:
                event.synchronize()
            write(copied)

        self._job = self._pool.submit(run)

    def finish(self) -> BaseException | None:
        """Wait for the job, if there is one; what it raised."""
        if self._job is None:
            return None
        began, job, self._job = time.monotonic(), self._job, None
        failure = job.exception()
        self.blocked_seconds += time.monotonic() - began
        return failure

    def close(self) -> None:
        """Let go of the thread and the copies."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self.staging = None, Staging()
