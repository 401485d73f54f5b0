"""Processes that torchrun, SLURM or another scheduler has started: each watches the others while it works."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from fulmen import Launcher
from fulmen_ddp import group
from fulmen_ddp.board import Board
from fulmen_ddp.breaking import GRACE_SECONDS, POLL_SECONDS, break_off, stack_of, watching
from fulmen_ddp.failures import RankTraceback, failure_of, first_of, what_silent_ranks_did

if TYPE_CHECKING:
    from fulmen_ddp.strategy import DDPStrategy

Result = TypeVar("Result")


class ExternalLauncher(Launcher):
    """Runs a function here; the other processes come to the same call by themselves."""

    starts_processes = False
    takes_part = True

    def __init__(self, strategy: DDPStrategy) -> None:
        self.strategy = strategy

    @property
    def is_interactive_compatible(self) -> bool:
        """There is a scheduler, and a program that it starts."""
        return False

    def launch(self, function: Callable[..., Result], *args: object) -> Result:
        """Run ``function(*args)``, and hear of it where another rank fails.

        Raises:
            Exception: That of this rank; where it only lost another one, what is known of that.
        """
        first, self.strategy.launcher = self.strategy.launcher, None
        try:
            with watching(watch):
                return function(*args)
        except BaseException as error:
            raised = explained(error, self.strategy.global_rank)
            record(raised)
            if raised is error:
                raise
            raise raised  # noqa: B904 - its cause is its own traceback
        finally:
            self.strategy.launcher = first


def watch(over: threading.Event, caller: int) -> None:
    """While the thread ``caller`` works: where another rank has failed, see to it that this one does not wait for ever."""
    board: Board | None = None
    try:
        while not over.wait(POLL_SECONDS):
            joined = group.board()
            if joined is not None and (board is None or board.name != joined.name):
                board = joined.again()
            if board is not None and board.has_failures():
                break
        else:
            return
        board.write(f"where/{board.rank}", stack_of(caller))
        failures = board.failures()
    except RuntimeError:
        return  # the store is gone, and rank 0 with it: exchanges fail by themselves
    if not over.wait(GRACE_SECONDS):
        break_off(over, caller, lambda: first_of(failures))


def explained(error: BaseException, rank: int) -> BaseException:
    """Tell the others how this rank failed; the exception to raise, which is about the first failure where that is known."""
    board, own = group.board(), failure_of(rank, error)
    if board is None:
        return error
    with contextlib.suppress(RuntimeError):  # the store is gone
        board.report(own)
        if not own.is_echo:
            if board.is_host:
                _wait(lambda: len(board.by_rank("where")) + 1 >= board.size)  # the store ends with this process
            return error
        _wait(lambda: not board.failures()[0].is_echo or len(_heard(board)) == board.size)
        first = board.failures()[0]
        if not first.is_echo and first.rank != rank:
            return first_of([first])
        _note_silent(board, error)
    return error


def _heard(board: Board) -> set[int]:
    return {failure.rank for failure in board.failures()} | set(board.by_rank("where"))


def _note_silent(board: Board, error: BaseException) -> None:
    """Say what ranks did that neither failed nor said why: the others waited for them."""
    failed, places = {failure.rank for failure in board.failures()}, board.by_rank("where")
    silent = {rank: places.get(rank) for rank in range(board.size) if rank not in failed}
    if silent and error.__cause__ is None:
        error.__cause__ = RankTraceback(what_silent_ranks_did(silent))


def _wait(reached: Callable[[], bool]) -> None:
    until = monotonic() + GRACE_SECONDS
    while monotonic() < until and not reached():
        sleep(POLL_SECONDS)


def record(error: BaseException) -> None:
    """Write the file from which torchrun tells the first failure; without torchrun there is none."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
