"""Processes and threads for XLA devices, by ``torch_xla.launch``."""

from __future__ import annotations

import os
import pickle
import random
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fulmen import FulmenError, Launcher
from fulmen_xla import library

Result = TypeVar("Result")
_ONE_AT_A_TIME = threading.Lock()


class XLALauncher(Launcher):
    """Runs a function on each device: torch_xla starts one process per chip, and where a chip has several devices, threads.

    Each device works on a copy of the function's object and arguments. What rank 0 returns, or the first exception of any
    rank, comes back through a local socket that only these processes know the key of.

    Args:
        start_method: ``"spawn"`` or ``"fork"``.
    """

    def __init__(self, start_method: str) -> None:
        self.start_method = start_method

    @property
    def is_interactive_compatible(self) -> bool:
        """Forked processes need no program to run again."""
        return self.start_method == "fork"

    def launch(self, function: Callable[..., Result], *args: object) -> Result:
        """Run ``function(*args)`` on every device, and return what rank 0 returned.

        Raises:
            Exception: The first exception of any rank, with its traceback as a note; the other ranks are ended.
        """
        key = secrets.token_bytes(16)
        answers: list[Any] = []
        with Listener(authkey=key) as listener:
            receiver = threading.Thread(target=_receive, args=(listener, answers), daemon=True)
            receiver.start()
            failure: BaseException | None = None
            try:
                job = pickle.dumps((function, args)), host_state(), listener.address, key
                library.root().launch(_work, args=job, start_method=self.start_method)
            except BaseException as error:  # noqa: BLE001  what a rank said is told instead, where it said something
                failure = error
            finally:
                _send(listener.address, key, ("end", None))
                receiver.join()
        return cast(Result, outcome(answers, failure))


def outcome(answers: list[Any], failure: BaseException | None) -> Any:
    """The result of rank 0, or the first error of any rank, or that of the launch."""
    errors = [each for kind, each in answers if kind == "error"]
    if errors:
        error, text = errors[0]
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"in another process:\n{text}")
        raise error from failure
    if failure is not None:
        raise failure
    results = [each for kind, each in answers if kind == "result"]
    if not results:
        raise FulmenError("the processes on XLA devices ended without a result of rank 0")
    return results[0]


def _receive(listener: Listener, answers: list[Any]) -> None:
    while True:
        try:
            with listener.accept() as connection:
                kind, value = pickle.loads(connection.recv_bytes())  # the sender is a process of ours: it knew the key
        except (AuthenticationError, EOFError, ConnectionError):  # somebody else, or a process that died while it spoke
            continue
        if kind == "end":
            return
        answers.append((kind, value))


def _send(address: Any, key: bytes, message: tuple[str, Any]) -> None:
    with Client(address, authkey=key) as connection:
        connection.send_bytes(pickle.dumps(message))  # not send: that shares memory, which ends with the process


def _work(index: int, job: bytes, state: Any, address: Any, key: bytes) -> None:
    """On each device, in a process or a thread: ``index`` is its rank."""
    try:
        with _ONE_AT_A_TIME:  # threads share the generators of the host
            function, args = pickle.loads(job)  # made by our own process
            set_host_state(state)
        result = function(*args)
        if index == 0:
            _send(address, key, ("result", result))
    except BaseException as error:  # noqa: BLE001  the others wait for this rank: all of them must end now
        try:
            _send(address, key, ("error", (error, traceback.format_exc())))
        finally:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def host_state() -> tuple[Any, Tensor]:
    """The random states of the host, which new processes start with."""
    return random.getstate(), torch.get_rng_state()


def set_host_state(state: tuple[Any, Tensor]) -> None:
    """Put them in place."""
    random.setstate(state[0])
    torch.set_rng_state(state[1])


def to_bytes(value: Any) -> bytes:
    """A value for another rank of the same job."""
    return pickle.dumps(value)


def from_bytes(data: bytes) -> Any:
    """What :func:`to_bytes` made."""
    return pickle.loads(data)
