"""Which of several processes this one is: for what only the first of them may do."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_run = threading.local()  # of each thread its own: some strategies run their ranks in threads


def in_run_of(strategy: Any) -> None:
    """From now on the strategy of a run says which rank this is; ``None``: there is no run, and nobody says it."""
    _run.strategy = None if strategy is None else weakref.ref(strategy)


def is_rank_zero() -> bool:
    """Whether this process is the one that writes and logs.

    During a run, the strategy knows. Before, between and after runs, it is PyTorch's process group, and the variables of
    torchrun, SLURM and strategies that start the program again; a process of which nobody says anything is rank 0.
    """
    reference = getattr(_run, "strategy", None)
    strategy = None if reference is None else reference()
    if strategy is not None:
        return bool(strategy.global_rank == 0)
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def rank_zero_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """A decorator for functions and methods that do something on rank 0 only; on others they return ``None``.

    >>> @rank_zero_only
    ... def greet(name):
    ...     return f"hello {name}"
    >>> greet("world")
    'hello world'
    """

    @functools.wraps(function)
    def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_rank_zero() else None

    return on_rank_zero


class Nothing:
    """Stands where others write, on ranks that do not: whatever is called, asked or set on it does nothing.

    >>> run = Nothing()
    >>> run.config.update({"lr": 0.1}); run.summary["best"] = 1.0; [each for each in run.log_artifact("a").wait()]
    <Nothing>
    []
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling look for
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do nothing."""
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setattr__(self, name: str, value: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __delitem__(self, key: Any) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __contains__(self, item: Any) -> bool:
        return False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __repr__(self) -> str:
        return "<Nothing>"
