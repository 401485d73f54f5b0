"""Processes for one call, by ``multiprocessing``: this one starts and watches them, and takes no part itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from fulmen import ConfigurationError, Launcher
from fulmen_ddp import group, watch
from fulmen_ddp.channel import WHERE, Channel, ask_where
from fulmen_ddp.failures import Failure, RankError, ended, failure_in, first_of, report_of
from fulmen_ddp.place import LOOPBACK, Place

if TYPE_CHECKING:
    from fulmen_ddp.strategy import DDPStrategy

Result = TypeVar("Result")
GRACE_SECONDS = 4.0
"""How long the other ranks may take to end by themselves once one has failed."""
_stores: list[Any] = []
"""The store of the launch that goes on. No frame may hold it: a traceback would keep it, a process that is forked later would
inherit it, and to destroy it there waits for ever for a thread that only this process has."""
END_SECONDS = 10.0
"""How long a rank may take to end once its work is done."""
POLL_SECONDS = 0.2


@dataclass
class Worker:
    """One process and what is known of it."""

    rank: int
    process: Any
    connection: Connection
    finished: bool = False
    result: Any = None
    stack: str | None = None  # where it was when another rank failed


class ProcessLauncher(Launcher):
    """Starts all ranks of this node for one call, and brings back what rank 0 returns.

    Args:
        strategy: Whose ranks they are; it travels along.
        method: ``"spawn"``, ``"forkserver"`` or ``"fork"``.
    """

    def __init__(self, strategy: DDPStrategy, method: str) -> None:
        self.strategy, self.method = strategy, method

    @property
    def is_interactive_compatible(self) -> bool:
        """Where processes are forked."""
        return self.method == "fork"

    def launch(self, function: Callable[..., Result], *args: object) -> Result:
        """Run ``function(*args)`` in every process, and return what rank 0 returned.

        Raises:
            Exception: The first exception of any rank, with its traceback as the cause. All ranks have ended.
            ConfigurationError: Something cannot be sent to the processes.
        """
        work: Any = (self.strategy, function, args)
        if self.method != "fork":
            work = self._pickled(work)
        place = self.strategy.place
        workers: list[Worker] = []
        try:
            with forwarded_signals(workers, self.strategy.stop_timeout.total_seconds()) as end_by:
                self._start(work, workers)
                place = self._meeting_point(place)
                for worker in workers:
                    with contextlib.suppress(OSError):  # it has ended already, which is reported below
                        worker.connection.send((place.address, place.port, place.hosted))
                return supervise(workers, end_by)  # type: ignore[no-any-return]
        finally:
            end(workers)
            _stores.clear()

    def _pickled(self, work: Any) -> bytes:
        try:
            return pickle.dumps(work)
        except Exception as error:
            raise ConfigurationError(
                f"start_method={self.method!r} sends the trainer, the module and its data to new processes, and something in "
                f"them cannot be sent: {type(error).__name__}: {error}. Use strategy='ddp' in a script, which starts the "
                "program again instead, or define functions and classes at the top of a module"
            ) from error

    def _start(self, work: Any, workers: list[Worker]) -> None:
        context: Any = multiprocessing.get_context(self.method)
        first = self.strategy.place
        for local_rank in range(self.strategy.num_local):
            ours, theirs = context.Pipe()
            place = replace(first, local_rank=local_rank, global_rank=first.global_rank + local_rank)
            arguments = (work, place, theirs, os.getpid(), self.method)
            process = context.Process(target=run_rank, args=arguments, name=f"fulmen-rank-{place.global_rank}")
            process.start()
            theirs.close()
            workers.append(Worker(place.global_rank, process, ours))

    def _meeting_point(self, place: Place) -> Place:
        """Where the ranks find each other: a store in this process, which outlives them; among nodes, in rank 0."""
        if place.address is not None:
            return place
        _stores.append(dist.TCPStore(LOOPBACK, 0, None, True, self.strategy.timeout, wait_for_workers=False))  # type: ignore[attr-defined]
        return replace(place, address=LOOPBACK, port=_stores[0].port, hosted=True)


# ---- In the new process


def run_rank(work: Any, place: Place, connection: Connection, parent: int, method: str) -> None:
    """The life of a rank."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C reaches it once, through the process that started it
    # The server that forks for a process ends with it.
    watch.end_with(os.getppid() if method == "forkserver" else parent, at_once=True)
    watch.be_quiet(place.global_rank)
    channel = Channel(connection)
    try:
        address, port, hosted = connection.recv()
        channel.answer(threading.get_ident())
        place = replace(place, address=address, port=port, hosted=hosted)
        use_variables_and_threads(place, method)
        strategy, function, args = work if method == "fork" else pickle.loads(work)
        strategy.join(place)
        result = function(*args)
        message = pickle.dumps(("done", place.global_rank, result if place.global_rank == 0 else None))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the caller raises it
        with contextlib.suppress(OSError):
            channel.send(report_of(place.global_rank, error))
        return
    channel.send(message)
    group.leave()


def use_variables_and_threads(place: Place, method: str) -> None:
    """Tell other libraries which rank this is, and share the processor among the ranks unless the user has done so."""
    ranks = {"RANK": place.global_rank, "LOCAL_RANK": place.local_rank, "NODE_RANK": place.node_rank}
    os.environ.update({name: str(value) for name, value in {**ranks, "WORLD_SIZE": place.world_size}.items()})
    if method == "fork":
        torch.set_num_threads(1)  # the pool of the process that was forked does not exist in this one
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.world_size))


# ---- In the process that started them


def supervise(workers: list[Worker], end_by: list[float]) -> Any:
    """Wait for all ranks; the result of the first. Where one fails, the others get a moment to end by themselves.

    Args:
        workers: The ranks.
        end_by: A time is added to it when they are asked to stop.

    Raises:
        Exception: The first failure that is not the echo of another.
    """
    failures: list[Failure] = []
    deadline = float("inf")
    while any(not worker.finished for worker in workers) and monotonic() < min(deadline, *end_by, float("inf")):
        running = {worker.connection: worker for worker in workers if not worker.finished}
        for connection in wait(list(running), POLL_SECONDS):
            listen(running[connection], failures)  # type: ignore[index]
        for worker in running.values():
            if not worker.finished and not worker.process.is_alive() and not worker.connection.poll():
                worker.finished = True
                failures.append(ended(worker.rank, worker.process.exitcode))
        if failures and deadline == float("inf"):
            deadline = monotonic() + GRACE_SECONDS
            ask_where(worker.connection for worker in workers if not worker.finished)
    stuck = {worker.rank: worker.stack for worker in workers if not worker.finished}
    if failures or stuck:
        raise first_of(failures or [Failure(rank, RankError(f"rank {rank} did not stop"), "") for rank in stuck], stuck)
    return workers[0].result


def listen(worker: Worker, failures: list[Failure]) -> None:
    """Take what a rank has sent."""
    try:
        message = pickle.loads(worker.connection.recv_bytes())
    except (EOFError, OSError):
        worker.process.join(1.0)
        failures.append(ended(worker.rank, worker.process.exitcode))
    else:
        if message[0] == WHERE:
            worker.stack = message[1]
            return
        if message[0] == "done":
            worker.result = message[2]
        else:
            failures.append(failure_in(message))
    worker.finished = True


def end(workers: list[Worker]) -> None:
    """Wait for processes whose work is done, and end the others with all that they have started."""
    deadline = monotonic() + (END_SECONDS if all(worker.finished for worker in workers) else 0)
    for worker in workers:
        worker.process.join(max(0.0, deadline - monotonic()))
        if worker.process.is_alive():
            watch.end_family(worker.process.pid)
            worker.process.join()
        worker.connection.close()


@contextmanager
def forwarded_signals(workers: list[Worker], limit: float) -> Iterator[list[float]]:
    """Pass Ctrl-C and SIGTERM on to the ranks, which stop after the step and save. A second Ctrl-C interrupts at once.

    Afterwards a SIGTERM that came is sent again, to whoever handled it before.

    Args:
        workers: The ranks.
        limit: Seconds that they may take after SIGTERM.

    Yields:
        A list with the time by which they must have ended, once SIGTERM has come.
    """
    received: list[int] = []
    end_by: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield end_by
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)
        if number == signal.SIGTERM and not end_by:
            end_by.append(monotonic() + limit)
        for worker in workers:
            if worker.process.is_alive():
                os.kill(worker.process.pid, number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end_by
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if signal.SIGTERM in received:
            end(workers)
            os.kill(os.getpid(), signal.SIGTERM)
