"""What leads from a process to the one that has started it, and questions back."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Iterable
from multiprocessing.connection import Connection

from fulmen_ddp.breaking import stack_of

WHERE = "where"
"""The question where a process is, and the first item of the answer."""


class Channel:
    """A connection on which several threads send."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: bytes) -> None:
        """Send a pickled message.

        Raises:
            OSError: Nobody listens.
        """
        with self._lock:
            self._connection.send_bytes(message)

    def answer(self, thread: int) -> None:
        """From now on, say where ``thread`` is whenever the other side asks."""
        threading.Thread(target=self._answer, args=(thread,), name="fulmen-ddp-where", daemon=True).start()

    def _answer(self, thread: int) -> None:
        with contextlib.suppress(EOFError, OSError):
            while self._connection.recv() == WHERE:
                self.send(pickle.dumps((WHERE, stack_of(thread))))


def ask_where(connections: Iterable[Connection]) -> None:
    """Ask processes where they are; those that can, answer."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.send(WHERE)
