"""How a process ends that waits for a rank that is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from fulmen_ddp.failures import RankError

GRACE_SECONDS = 3.0
"""How long a process may take to end by itself once another rank has failed."""
POLL_SECONDS = 0.1


@contextmanager
def watching(watch: Callable[[threading.Event, int], None]) -> Iterator[None]:
    """While the block runs, another thread looks after the other ranks: ``watch(over, number of this thread)``."""
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(over, threading.get_ident()), name="fulmen-ddp-ranks", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def stack_of(thread: int) -> str:
    """Where a thread is, as a traceback shows it."""
    frame = sys._current_frames().get(thread)
    return "" if frame is None else "".join(traceback.format_stack(frame))


def break_off(over: threading.Event, caller: int, reason: Callable[[], BaseException]) -> None:
    """End what the thread ``caller`` does, until ``over`` is set; where nothing reaches it, end the process.

    Exchanges between devices are aborted, then an exception is raised in the thread, which reaches it between two lines of
    Python. After that the process ends with ``reason`` on its standard error.
    """
    abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
    with contextlib.suppress(Exception):  # of torch, private: whatever it does, the thread must be reached
        if abort is not None:
            abort()
    sys.settrace(None)  # traced or profiled, CPython 3.11 spins here until the other thread wakes
    sys.setprofile(None)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caller), ctypes.py_object(RankError))
    if not over.wait(GRACE_SECONDS):
        error = reason()
        print(f"{error}\n{error.__cause__}", file=sys.stderr, flush=True)  # noqa: T201 - the last that this process says
        os._exit(1)
