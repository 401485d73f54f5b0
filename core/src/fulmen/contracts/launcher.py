"""How the processes of a run come to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Launcher(ABC):
    """Starts the processes that a strategy needs and runs a function in each of them."""

    starts_processes: bool = True
    """Whether :meth:`launch` starts the other processes; ``False`` where they are there already."""

    takes_part: bool = False
    """Whether the process that calls :meth:`launch` is one of those in which the function runs."""

    @property
    @abstractmethod
    def is_interactive_compatible(self) -> bool:
        """Whether it works where the main program cannot be run again, as in a notebook."""

    @abstractmethod
    def launch(self, function: Callable[..., Result], *args: object) -> Result:
        """Run ``function(*args)`` in every process and return what rank 0 returned.

        Raises:
            Exception: The first exception of any process, with its traceback; the other processes are ended.
        """
