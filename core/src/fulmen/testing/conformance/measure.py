"""What a part costs, counted and not timed: calls, lines, bytes written, and waiting for the device."""

from __future__ import annotations

import cProfile
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from fulmen import Callback


class Counter(Protocol):
    """Counts something from ``start`` to ``stop``."""

    count: int

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; the figure is in ``count``."""


class Calls:
    """Function calls, as cProfile counts them: those of C functions too."""

    def __init__(self) -> None:
        self.count, self._profile = 0, cProfile.Profile()

    def start(self) -> None:
        """Begin."""
        self._profile.enable()

    def stop(self) -> None:
        """End."""
        self._profile.disable()
        self.count = sum(entry.callcount for entry in self._profile.getstats())


class Lines:
    """Lines of Python that are run, each round of a loop counted: what goes over a history shows here."""

    def __init__(self) -> None:
        self.count, self._before = 0, sys.gettrace()

    def start(self) -> None:
        """Begin."""
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def stop(self) -> None:
        """End."""
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.count += 1
        return self._trace


class Traffic:
    """Bytes that this process reads from and writes to files. Stays 0 where the system does not tell."""

    PATH = Path("/proc/self/io")

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> None:
        """Begin."""
        self.count = -self._bytes()

    def stop(self) -> None:
        """End."""
        self.count += self._bytes()

    def _bytes(self) -> int:
        if not self.PATH.exists():
            return 0
        fields = dict(line.split(": ") for line in self.PATH.read_text(encoding="ascii").splitlines())
        return int(fields["rchar"]) + int(fields["wchar"])


READS = {
    *("item", "tolist", "cpu", "numpy", "equal", "allclose", "nonzero", "is_nonzero", "argwhere", "unique", "masked_select"),
    *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__", "__format__", "__repr__", "__contains__"),
}
"""Operations on a tensor that cannot return before the device has computed it."""


class DeviceReads(TorchFunctionMode):
    """Operations that wait for the device: ``.item()``, ``float(tensor)``, ``if tensor:``, ``.cpu()``, ``print(tensor)``, ...

    On the processor they cost nothing, so no clock shows them; on a GPU each one empties its queue. Hence they are counted
    where PyTorch is asked for them. ``places`` says where that was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.places: list[str] = []

    def start(self) -> None:
        """Begin."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """End."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS or (name == "to" and _to_host(*args[1:], **(kwargs or {}))) or _synchronizes(func):
            self.count += 1
            self.places.append(f"{name} at {_caller()}")
        return func(*args, **(kwargs or {}))


def _to_host(*args: Any, non_blocking: bool = False, **kwargs: Any) -> bool:
    targets = [str(value) for value in (*args, *kwargs.values()) if isinstance(value, (str, torch.device))]
    return not non_blocking and any(target == "cpu" for target in targets)


def _synchronizes(func: Any) -> bool:
    return getattr(func, "__name__", "") == "synchronize"


def _caller() -> str:
    """The innermost line outside torch and this file."""
    inside = (str(Path(torch.__file__).parent), __file__)
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(inside)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}"


class Between(Callback):
    """Has a counter count from the end of one training batch to the end of another, after everyone else's hooks."""

    runs_last = True

    def __init__(self, counter: Counter, first: int, last: int) -> None:
        self.counter, self.first, self.last = counter, first, last

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Start or stop the counter."""
        if batch_idx == self.first:
            self.counter.start()
        if batch_idx == self.last:
            self.counter.stop()


def counted(counter: Counter, action: Callable[[], Any]) -> int:
    """What ``counter`` counts while ``action()`` runs."""
    counter.start()
    try:
        action()
    finally:
        counter.stop()
    return counter.count


@contextmanager
def full_disk(size: int = 0) -> Iterator[None]:
    """Let this process write no file beyond ``size`` bytes, as on a disk that is full: a real limit of the system.

    Raises:
        ImportError: The system has no such limits (Windows).
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writes_bytecode, sys.dont_write_bytecode = not sys.dont_write_bytecode, True  # Python would leave a part of the file
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = not writes_bytecode
