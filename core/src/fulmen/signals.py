"""Turn signals into requests: the handler sets a flag, and the loop acts between steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fulmen.state import Run


@contextmanager
def signals_stop(run: Run) -> Iterator[None]:
    """While the block runs, Ctrl-C and SIGTERM ask ``run`` to stop after the current step; a second Ctrl-C interrupts it.

    Afterwards the handlers are as before, and a SIGTERM that came is sent again: to whoever handled it before, or to end
    the process with the status that schedulers expect. Outside the main thread, signals cannot be handled and are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        run.request_stop(f"stopped by {name}", now=True)

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if signal.SIGTERM in received:
            os.kill(os.getpid(), signal.SIGTERM)
