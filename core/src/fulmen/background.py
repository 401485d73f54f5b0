"""Write beside the training: copy what is to be saved, and let a thread write the copy, one at a time.

A thread, not a process: what takes long (copying, checksums, the disk) holds no interpreter lock, a process would cost
its own copy of Python and torch, and a thread is never left behind by a process that is killed.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.errors import CheckpointError, warn

if TYPE_CHECKING:
    from fulmen.clock import Clock
    from fulmen.runtime import Runtime

Payload = dict[str, Any]
_FORK_WARNING = r"This process \(pid=\d+\) is multi-threaded, use of fork"
_KEPT = 8  # copies that a buffer is kept for without being used


class Staging:
    """Copies of everything in a checkpoint, in host memory that is reused from one checkpoint to the next.

    Tensors of a CUDA device are copied into pinned memory. The copy is queued between the work that is there and the work
    that follows, so that the host does not wait, and nobody can change a weight before it is copied. Other devices are
    waited for.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], tuple[int, Tensor]] = {}
        self._seen: dict[tuple[Any, ...], Tensor] = {}
        self._devices: set[torch.device] = set()
        self._copies = 0

    def copy(self, payload: Payload) -> tuple[Payload, list[torch.Event]]:
        """The copy, and what to wait for before it is read. The copy before is overwritten."""
        self._copies += 1
        self._seen, self._devices = {}, set()
        copied = self._copy(payload, ())
        oldest = self._copies - _KEPT  # checkpoints of weights only may alternate with whole ones
        self._buffers = {key: found for key, found in self._buffers.items() if found[0] > oldest}
        self._seen = {}
        events = []
        for device in self._devices:
            event = torch.Event(device)
            event.record()
            events.append(event)
        return copied, events

    @property
    def num_bytes(self) -> int:
        """Host memory that the copies take."""
        return sum(buffer.untyped_storage().nbytes() for _, buffer in self._buffers.values())

    def _copy(self, value: Any, where: tuple[Any, ...]) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return self._copy_tensor(value, where)
        if isinstance(value, dict):
            copied = kind()
            for key, item in value.items():
                copied[key] = self._copy(item, (*where, key))
            for name, item in getattr(value, "__dict__", {}).items():  # the versions of modules in a state_dict
                setattr(copied, name, self._copy(item, (*where, name)))
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
        buffer = self._buffers[key][1] if key in self._buffers else None
        if buffer is None:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=quick)
        buffer.copy_(tensor, non_blocking=quick)
        if quick:
            self._devices.add(tensor.device)
        self._buffers[key] = self._copies, buffer
        self._seen[same] = buffer
        return buffer


class BackgroundWriter:
    """Writes for everyone in a run who saves, so that there is one copy and one thread, whoever uses them.

    A save that is asked for while the one before is still being written waits for it: files appear in the order in which
    they were asked for, and memory is that of one copy. Who would rather save later asks :attr:`busy`.

    Rank 0 copies and writes. The methods are called on all ranks alike, except :meth:`close`; all of them take note of
    how a write ended, and all raise its failure.

    Args:
        clock: Rung when a write ends, so that the loop takes note of it after the step that goes on.
        runtime: For the ranks.

    Attributes:
        blocked_seconds: How long the training stood still so far: copying, and waiting for what was being written.
    """

    def __init__(self, clock: Clock, runtime: Runtime) -> None:
        self.staging = Staging()
        self.blocked_seconds = 0.0
        self._runtime = runtime
        self._alarm = clock.every(math.inf, self.finish)
        self._thread: threading.Thread | None = None
        self._finished: Callable[[CheckpointError | None], None] | None = None
        self._failure: BaseException | None = None
        self._what = ""

    @property
    def busy(self) -> bool:
        """Whether something is being written now. Only rank 0 knows."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        payload: Payload,
        write: Callable[[Payload], None],
        finished: Callable[[CheckpointError | None], None],
        what: str,
    ) -> None:
        """Copy ``payload``, and hand the copy to ``write`` in the thread.

        Where the copy does not fit in memory, this warns and writes at once.

        Args:
            payload: What to write; may be changed when this returns.
            write: Writes it, on rank 0.
            finished: Called with the failure, or ``None``, on all ranks: between two steps soon after the end, or by the
                next call of a method. The failure is raised after that.
            what: What is written, for the message of a failure.
        """
        self.finish()
        if not self._runtime.is_global_zero:
            self._finished, self._what = finished, what
            return
        began = time.monotonic()
        try:
            copied, events = self.staging.copy(payload)
        except (MemoryError, RuntimeError) as error:  # torch raises a RuntimeError where memory is short
            warn("no-memory-for-copy", f"no copy of the state for {what}: {error}. Training waits while it is written")
            self.staging = Staging()
            copied, events = payload, []
        self._finished, self._what, self._failure = finished, what, None
        self._alarm.ring_in(math.inf)  # what rang for the job before was taken note of
        if sys.version_info >= (3, 12):  # warns where worker processes are forked meanwhile; they need no lock of this thread
            warnings.filterwarnings("ignore", _FORK_WARNING, DeprecationWarning)
        self._thread = threading.Thread(target=self._run, args=(write, copied, events), name="fulmen-writer")
        self._thread.start()
        if copied is payload:
            self._thread.join()
        self.blocked_seconds += time.monotonic() - began

    def write_now(
        self,
        payload: Payload,
        write: Callable[[Payload], None],
        finished: Callable[[CheckpointError | None], None],
        what: str,
    ) -> None:
        """The same without a copy and a thread: when this returns, it is written. The training waits."""
        failure: BaseException | None = None
        began = time.monotonic()
        if self._runtime.is_global_zero:
            try:
                write(payload)
            except Exception as error:  # noqa: BLE001  raised below, on all ranks
                failure = error
        self.blocked_seconds += time.monotonic() - began
        self._conclude(failure, finished, what)

    def finish(self, alone: bool = False) -> None:
        """Wait until all is written, and raise what failed.

        Args:
            alone: Whether the other ranks are not asked: they may not come this far.
        """
        if self._finished is None:
            return
        finished, self._finished = self._finished, None
        if self._thread is not None:
            began, thread, self._thread = time.monotonic(), self._thread, None
            try:
                thread.join()
            except BaseException:  # Ctrl-C while waiting: it is still being written
                self._thread, self._finished = thread, finished
                raise
            self.blocked_seconds += time.monotonic() - began
        failure, self._failure = self._failure, None
        self._conclude(failure, finished, self._what, alone)

    def close(self) -> None:
        """Wait for what is being written, raise what failed, and free the copies. Any rank alone may call this."""
        try:
            self.finish(alone=True)
        finally:
            self.staging = Staging()

    def _run(self, write: Callable[[Payload], None], copied: Payload, events: list[torch.Event]) -> None:
        try:
            for event in events:
                event.synchronize()  # the one place where a save waits for a device, and the training does not
            write(copied)
        except BaseException as error:  # noqa: BLE001  raised by the next step
            self._failure = error
        finally:
            self._alarm.ring_in(0.0)

    def _conclude(
        self,
        failure: BaseException | None,
        finished: Callable[[CheckpointError | None], None],
        what: str,
        alone: bool = False,
    ) -> None:
        error = failure if failure is None or isinstance(failure, CheckpointError) else _described(failure, what)
        if self._runtime.world_size > 1 and not alone:
            text = self._runtime.broadcast(None if error is None else str(error))
            error = CheckpointError(text) if text is not None and error is None else error
        finished(error)
        if error is not None:
            raise error


def _described(failure: BaseException, what: str) -> CheckpointError:
    error = CheckpointError(f"could not save {what}: {type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error
