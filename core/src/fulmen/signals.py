"""Turn signals into requests: a handler sets a flag, and the loop acts between steps.

Ctrl-C, SIGTERM and SIGUSR1 stop a training after the step, SIGUSR2 has it save and go on. docs/checkpoints.md has the table.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from fulmen.contracts.callback import Checkpoint
from fulmen.errors import warn
from fulmen.state import Run

Handler = Callable[[int, "FrameType | None"], Any]
ALWAYS = ("SIGINT", "SIGTERM")
IF_FREE = ("SIGUSR1", "SIGUSR2")  # the program may use these for something else; Windows does not have them


@contextmanager
def signals_stop(run: Run) -> Iterator[None]:
    """While the block runs, signals stop ``run`` after the current step, or have it save; a second Ctrl-C interrupts it.

    Afterwards the handlers are as before, and a signal that came, but for Ctrl-C, is sent again: to whoever handled it before,
    or to end the process with the status that schedulers expect. A training that SIGUSR1 stopped is queued again before.
    Outside the main thread, signals cannot be handled and are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    save = run.clock.every(math.inf, partial(save_now, run))

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        run.request_stop(f"stopped by {name}", now=True)
        if run.phase == "validate":
            save.ring_in(0.0)  # it goes on to its end, and who cannot wait for that loses nothing

    before = handle({"SIGUSR2": lambda number, frame: save.ring_in(0.0)}, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        pass_on(run, received)


def handle(special: dict[str, Handler], others: Handler) -> dict[int, Any]:
    """Take the signals that are ours to take, and say who handled them before."""
    free = [name for name in IF_FREE if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL]
    return {
        number: signal.signal(number, special.get(name, others))
        for name in (*ALWAYS, *free)
        for number in [int(getattr(signal, name))]
    }


def pass_on(run: Run, received: list[int]) -> None:
    """Have a job queued again that SIGUSR1 stopped, and send signals again that came while they were handled here."""
    if run.status == "interrupted":
        environment, asked = run.runtime.environment, getattr(signal, "SIGUSR1", None) in received
        requeued = run.runtime.is_global_zero and asked and environment is not None and environment.requeue()
        run.runtime.broadcast(requeued)  # a rank that ends before that may end them all
    for number in dict.fromkeys(received):
        if number != signal.SIGINT:
            os.kill(os.getpid(), number)


def save_now(run: Run) -> None:
    """Save where the training stands, as SIGUSR2 asks. The same call on every rank."""
    savers = [callback for callback in run.callbacks if isinstance(callback, Checkpoint)]
    able = [saver for saver in savers if type(saver).save is not Checkpoint.save]
    for saver in able:
        saver.save(run.trainer)
    if not able and not run.stop_now:
        warn("nothing-saves", "SIGUSR2 asks for a checkpoint, and this trainer has no callback that saves one")
