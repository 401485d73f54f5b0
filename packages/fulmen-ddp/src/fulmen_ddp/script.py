"""The program itself, started again for each other rank: this process is the first one, and watches the rest."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from fulmen import ConfigurationError, Launcher
from fulmen.errors import warn
from fulmen_ddp import watch
from fulmen_ddp.breaking import GRACE_SECONDS, POLL_SECONDS, break_off, watching
from fulmen_ddp.channel import WHERE, Channel, ask_where
from fulmen_ddp.environments import HOSTED, LAUNCHED
from fulmen_ddp.failures import (
    Failure,
    RankError,
    RankTraceback,
    ended,
    failure_in,
    failure_of,
    first_of,
    report_of,
    what_silent_ranks_did,
)  # fmt: skip
from fulmen_ddp.place import LOOPBACK, Place
from fulmen_ddp.start import script_command

if TYPE_CHECKING:
    from fulmen_ddp.strategy import DDPStrategy

Result = TypeVar("Result")
CHANNEL = "FULMEN_LAUNCHED_CHANNEL"
FAREWELL_SECONDS = 30.0
"""How long the other ranks may go on when this one has come to the end of the program."""


class ScriptLauncher(Launcher):
    """Runs a function in this process; the others come to the same call by themselves."""

    takes_part = True

    def __init__(self, strategy: DDPStrategy) -> None:
        self.strategy = strategy

    @property
    def is_interactive_compatible(self) -> bool:
        """There must be a program to start."""
        return False

    def launch(self, function: Callable[..., Result], *args: object) -> Result:
        """Start the program for the other ranks, at the first call, and run ``function(*args)`` here.

        Raises:
            Exception: The first exception of any rank, with its traceback as the cause. The other ranks have ended.
        """
        first, self.strategy.launcher = self.strategy.launcher, None
        try:
            if is_started_by_another():
                return run_as_child(function, args)
            return crew_of(self.strategy).run(function, args)
        finally:
            self.strategy.launcher = first


# ---- In the processes that were started


def is_started_by_another() -> bool:
    """Whether this process is one of those that the launcher has started."""
    return LAUNCHED in os.environ and os.environ[LAUNCHED] != str(os.getpid())


def run_as_child(function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    """Run ``function`` and tell the first process how it went."""
    rank, channel = int(os.environ["RANK"]), own_channel()
    channel.send(pickle.dumps(("begun",)))
    try:
        result = function(*args)
    except BaseException as error:
        with contextlib.suppress(OSError):
            channel.send(report_of(rank, error))
        raise
    with contextlib.suppress(OSError):  # the first process is done with the call too
        channel.send(pickle.dumps(("done",)))
    return result


_channel: list[Channel] = []


def own_channel() -> Channel:
    """What leads to the process that has started this one."""
    if not _channel:
        _channel.append(Channel(Connection(int(os.environ[CHANNEL]))))
        _channel[0].answer(threading.get_ident())
    return _channel[0]


def follow_parent() -> None:
    """In a process that was started by another: end with it, and leave warnings to it. For the strategy."""
    if is_started_by_another():
        watch.end_with(int(os.environ[LAUNCHED]))
        watch.be_quiet(int(os.environ["RANK"]))


# ---- In the process that has started them


class Crew:
    """The other processes of this node, as long as the program runs."""

    def __init__(self, strategy: DDPStrategy) -> None:
        place = strategy.place
        self.store: Any = None
        if place.address is None:
            self.store = dist.TCPStore(LOOPBACK, 0, None, True, strategy.timeout, wait_for_workers=False)  # type: ignore[attr-defined]
            place = replace(place, address=LOOPBACK, port=self.store.port, hosted=True)
        self.place = place
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.channels: dict[int, Connection] = {}
        self.calls: dict[int, list[int]] = {}  # by rank: calls begun and done
        self.failures: list[Failure] = []
        self.places: dict[int, str] = {}  # by rank: where it was when another failed
        self.count = 0  # calls of this process
        self.ended = False
        os.environ.update({**variables(place), LAUNCHED: str(os.getpid())})  # for trainers that are made later
        for local_rank in range(1, strategy.num_local):
            self._start(replace(place, local_rank=local_rank, global_rank=place.global_rank + local_rank))
        atexit.register(self.farewell)

    def _start(self, place: Place) -> None:
        command = script_command()
        assert command is not None  # the strategy has asked
        ours, theirs = Pipe()
        threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads_for(place))}
        channel = theirs.fileno()
        self.processes[place.global_rank] = subprocess.Popen(
            command,
            env={**os.environ, **threads, **variables(place), CHANNEL: str(channel)},
            stdin=subprocess.DEVNULL,
            pass_fds=[channel],
        )
        theirs.close()
        self.channels[place.global_rank], self.calls[place.global_rank] = ours, [0, 0]

    def run(self, function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
        """Run ``function`` here while the others do the same, and fail with the first of them."""
        if self.ended:
            raise RankError("the other ranks have ended after a failure; start the program again")
        self.count += 1
        try:
            with watching(self._watch):
                return function(*args)
        except BaseException as error:
            own = failure_of(self.place.global_rank, error)
            self._settle(own)
            self.end()
            first = next((failure for failure in self.failures if not failure.is_echo), None)
            if first is not None and own.is_echo:
                raise first_of([first])  # noqa: B904 - its cause is its own traceback
            silent = set(self.processes) - {failure.rank for failure in self.failures}
            if own.is_echo and silent and error.__cause__ is None:
                error.__cause__ = RankTraceback(what_silent_ranks_did({rank: self.places.get(rank) for rank in sorted(silent)}))
            raise

    def _listen(self) -> None:
        """Take what the others have sent, and notice those that are gone."""
        for rank, channel in list(self.channels.items()):
            try:
                while channel.poll():
                    self._take(rank, pickle.loads(channel.recv_bytes()))
            except (EOFError, OSError):
                pass
            status = self.processes[rank].poll()
            if status is not None and not any(failure.rank == rank for failure in self.failures):
                if status != 0 or self.calls[rank][1] < self.count:
                    self.failures.append(ended(rank, status, f"its call number {self.count} of the trainer was done"))

    def _take(self, rank: int, message: tuple[Any, ...]) -> None:
        if message[0] == "failed":
            self.failures.append(failure_in(message))
        elif message[0] == WHERE:
            self.places[rank] = message[1]
        else:
            self.calls[rank][message[0] == "done"] += 1

    def _watch(self, over: threading.Event, caller: int) -> None:
        """While the caller works: where another rank fails, see to it that the caller does not wait for it for ever."""
        while not over.wait(POLL_SECONDS):
            self._listen()
            if self.failures:
                break
        else:
            return
        if over.wait(GRACE_SECONDS):
            return
        self.end()  # closes their connections, so that exchanges through the host fail
        if over.wait(GRACE_SECONDS):
            return
        break_off(over, caller, lambda: first_of(self.failures))

    def _settle(self, own: Failure) -> None:
        """Wait a moment for what the others have to say: the failure of this process may be the echo of theirs."""
        if own.is_echo:
            ask_where(self.channels.values())
        until = monotonic() + GRACE_SECONDS / 2
        while monotonic() < until and not any(not failure.is_echo for failure in self.failures):
            self._listen()
            sleep(POLL_SECONDS)

    def end(self) -> None:
        """End the other processes."""
        self.ended = True
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def farewell(self) -> None:
        """At the end of the program: let the others come to theirs, unless they wait for this one."""
        until = monotonic() + FAREWELL_SECONDS
        while monotonic() < until and any(process.poll() is None for process in self.processes.values()):
            with contextlib.suppress(Exception):  # nobody hears it any more, and the others must be ended
                self._listen()
            if any(begun > self.count for begun, _ in self.calls.values()):
                break
            sleep(POLL_SECONDS)
        for rank, process in self.processes.items():
            status = process.poll()
            if not self.ended and status is not None and status < 0:
                warn("rank-ended", f"{ended(rank, status).text}, though no call of the trainer failed")
        self.end()


_crew: list[Crew] = []


def crew_of(strategy: DDPStrategy) -> Crew:
    """The other processes of this program, which are started at the first call.

    Raises:
        ConfigurationError: They were started for another number of devices.
    """
    if not _crew:
        _crew.append(Crew(strategy))
    crew = _crew[0]
    if strategy.place.world_size != crew.place.world_size:
        raise ConfigurationError(
            f"this program runs as {crew.place.world_size} processes already, and a trainer of {strategy.place.world_size} "
            "cannot join them: use the same devices and num_nodes for all trainers of a program"
        )
    strategy.join(crew.place)
    return crew


def variables(place: Place) -> dict[str, str]:
    """What tells a process, and other libraries in it, which rank it is."""
    found = {
        "RANK": place.global_rank,
        "WORLD_SIZE": place.world_size,
        "LOCAL_RANK": place.local_rank,
        "NODE_RANK": place.node_rank,
        "MASTER_ADDR": place.address,
        "MASTER_PORT": place.port,
        HOSTED: int(place.hosted),
    }
    return {name: str(value) for name, value in found.items()}


def threads_for(place: Place) -> int:
    """Threads of a rank, so that all of them together use the processor once."""
    return max(1, (os.cpu_count() or 1) // place.world_size)
