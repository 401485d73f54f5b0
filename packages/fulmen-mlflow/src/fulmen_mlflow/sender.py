"""A bounded queue and the thread that empties it, so that no training step waits for a server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["metrics", "params", "tags", "text", "artifact", "status"]
MOST_METRICS, MOST_WAITING = 1000, 100_000  # per request, as MLflow allows; and in memory, some 20 MB
LINGER_SECONDS, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 0.5, 30.0


class Away(Exception):  # noqa: N818 - a state of the server, not a mistake
    """The destination cannot be reached now; what it was to get can be sent later."""


class Refused(Exception):  # noqa: N818 - an answer of the server
    """The destination will never take anything of this run."""


@dataclass
class Command:
    """One thing to tell the destination, as plain data."""

    kind: Kind
    data: list[Any]

    @property
    def size(self) -> int:
        """How many metrics it holds; other commands count as one."""
        return len(self.data) if self.kind == "metrics" else 1


class Sender:
    """Delivers commands in order from a thread of its own. Of metrics that wait, as many as allowed go in one request.

    Args:
        deliver: Sends commands of one kind. Raises :class:`Away` to be called again later, :class:`Refused` where nothing will
            ever be taken, and anything else where only these commands are wrong.
        linger_seconds: How long a row waits for others to join it.
    """

    def __init__(self, deliver: Callable[[list[Command]], None], linger_seconds: float = LINGER_SECONDS) -> None:
        self._deliver, self._linger = deliver, linger_seconds
        self._changed = threading.Condition()
        self._waiting: deque[Command] = deque()
        self._size = 0
        self._urgent = self._closing = False
        self._thread: threading.Thread | None = None
        self.away_since: float | None = None  # time.monotonic() of the first attempt that failed
        self.reason: Exception | None = None  # why it is away, or why it refused
        self.refused = False
        self.problems: list[tuple[str, Exception]] = []  # kinds of commands that were dropped, and why; for the owner to report

    def put(self, command: Command) -> bool:
        """Queue a command, without waiting. ``False`` where it is not taken: the queue is full, or everything is refused."""
        with self._changed:
            if self.refused or self._size + command.size > MOST_WAITING:
                return False
            self._waiting.append(command)
            self._size += command.size
            if self._thread is None or not self._thread.is_alive():
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="fulmen-mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def flush(self, timeout: float, *, patient: bool = False) -> bool:
        """Wait until everything is delivered; whether it is.

        Args:
            timeout: Seconds at most.
            patient: Also wait for a destination that is away.
        """
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not self._waiting or self.refused or (self.away_since is not None and not patient), timeout
            )
            self._urgent = False
            return not self._waiting

    def left(self) -> list[Command]:
        """What is not delivered yet."""
        with self._changed:
            return list(self._waiting)

    def close(self) -> None:
        """End the thread, and forget what it has not delivered."""
        with self._changed:
            self._waiting.clear()
            self._size, self._closing = 0, True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None and self.away_since is None:
            thread.join(5.0)  # it has nothing to do; one that hangs in a request is a daemon, and ends with the process

    # ---- In the thread

    def _run(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while batch := self._next():
            try:
                self._deliver(batch)
            except Away as error:
                self._mark_away(error)
                self._pause(delay)
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)
                continue
            except Refused as error:
                with self._changed:
                    self.refused, self.reason = True, error
                    self._changed.notify_all()
                return
            except Exception as error:  # noqa: BLE001 - reported by the owner, in the user's thread
                self.problems.append((batch[0].kind, error))
            delay = FIRST_RETRY_SECONDS
            self._done(batch)

    def _next(self) -> list[Command]:
        """The commands to deliver together; waits for some. Empty where the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            if self._waiting and self._waiting[0].kind == "metrics":
                self._changed.wait_for(lambda: self._urgent or self._closing or self._size >= MOST_METRICS, self._linger)
            batch: list[Command] = []
            size = 0
            for command in self._waiting:
                size += command.size
                if batch and (command.kind != "metrics" or batch[0].kind != "metrics" or size > MOST_METRICS):
                    break
                batch.append(command)
            return batch

    def _done(self, batch: list[Command]) -> None:
        with self._changed:
            self.away_since = None
            for command in batch:
                if self._waiting and self._waiting[0] is command:  # not taken away by close() meanwhile
                    self._waiting.popleft()
                    self._size -= command.size
            self._changed.notify_all()

    def _mark_away(self, error: Away) -> None:
        with self._changed:
            self.away_since = self.away_since or time.monotonic()
            self.reason = error
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)
