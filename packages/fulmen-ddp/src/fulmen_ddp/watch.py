"""No orphans: a process that another has started ends when that one is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import warnings

from fulmen import FulmenWarning

POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1
_watching: list[int] = []


def end_with(parent: int, at_once: bool = False) -> None:
    """End this process as soon as the process ``parent`` is gone: a thread looks after it.

    Args:
        parent: Its number.
        at_once: On Linux, also ask the kernel to do it: it does so where this process is stuck, too, and already when the
            thread ends that has started this process.
    """
    if at_once and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if parent not in _watching:
        _watching.append(parent)
        threading.Thread(target=_watch, args=(parent,), name="fulmen-ddp-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    end_family(os.getpid())
    os._exit(1)


def end_family(leader: int) -> None:
    """End a process and those that it has started, where it leads a process group of its own; else the process alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg") and os.getpgid(leader) == leader:
            os.killpg(leader, signal.SIGKILL)
        else:
            os.kill(leader, getattr(signal, "SIGKILL", signal.SIGTERM))


def be_quiet(rank: int) -> None:
    """Leave warnings to rank 0: the others would say the same."""
    if rank:
        warnings.filterwarnings("ignore", category=FulmenWarning)
