"""What a rank says when it fails, and how the caller hears of it."""

from __future__ import annotations

import pickle
import re
import signal
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from fulmen import ModuleError

_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|gloo|nccl|socket|store|process group", re.IGNORECASE
)


class RankError(ModuleError):
    """A rank ended without saying why, or with an exception that cannot be sent to another process."""


class RankTraceback(Exception):  # noqa: N818 - it is shown as the cause of an exception
    """The traceback of a rank, as text; the cause of the exception that the caller gets."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass
class Failure:
    """How a rank failed. ``is_echo``: it lost its connection, probably because another rank failed before."""

    rank: int
    error: BaseException
    text: str
    is_echo: bool = False


def failure_of(rank: int, error: BaseException) -> Failure:
    """The failure of this process."""
    return Failure(rank, error, "".join(traceback.format_exception(type(error), error, error.__traceback__)), _is_echo(error))


def report_of(rank: int, error: BaseException) -> bytes:
    """An exception and its traceback for another process."""
    own = failure_of(rank, error)
    return pickle.dumps(("failed", rank, _portable(error), own.text, own.is_echo))


def failure_in(report: tuple[Any, ...]) -> Failure:
    """The failure that a rank has reported."""
    _, rank, portable, text, is_echo = report
    try:
        error = pickle.loads(portable) if portable is not None else None
    except Exception:  # noqa: BLE001 - an exception whose constructor takes other arguments
        error = None
    if not isinstance(error, BaseException):
        error = RankError(f"rank {rank} failed: {text.strip().splitlines()[-1]}")
    return Failure(rank, error, text, is_echo)


def _portable(error: BaseException) -> bytes | None:
    try:
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001 - it holds something that stays in its process
        return None


def _is_echo(error: BaseException) -> bool:
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError, ConnectionError, RankError)):
        return True
    return type(error) is RuntimeError and bool(_LOST.search(str(error)))


def ended(rank: int, status: int | None, unfinished: str = "its work was done") -> Failure:
    """The failure of a process that ended without a word."""
    if status is not None and status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        text = f"rank {rank} was ended by {name}{hint}"
    else:
        text = f"rank {rank} ended with status {status} before {unfinished}"
    return Failure(rank, RankError(text), text)


def first_of(failures: Sequence[Failure], places: Mapping[int, str | None] | None = None) -> BaseException:
    """The exception to raise: the first failure that is not the echo of another, with its traceback as the cause.

    Args:
        failures: In the order in which they were heard of.
        places: What ranks did that said nothing until they were ended, ``None`` where nobody knows: where all others lost
            them, they hung.
    """
    chosen = next((failure for failure in failures if not failure.is_echo), failures[0])
    text = f"rank {chosen.rank}:\n{chosen.text}"
    if chosen.is_echo and places:
        text += f"\n{what_silent_ranks_did(places)}"
    chosen.error.__cause__ = RankTraceback(text)
    return chosen.error


def what_silent_ranks_did(places: Mapping[int, str | None]) -> str:
    """For people, about ranks that the others waited for."""
    lines = [f"no word from rank {rank}" if not stack else f"rank {rank} was here:\n{stack}" for rank, stack in places.items()]
    return "\n".join(lines)
