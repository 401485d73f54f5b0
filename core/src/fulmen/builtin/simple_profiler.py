"""How often each action of a run happens, and how long it takes."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident
from time import perf_counter

from torch import distributed

from fulmen.contracts.profiler import Profiler
from fulmen.errors import ConfigurationError


@dataclass(slots=True)
class Action:
    """What is known about an action."""

    calls: int = 0
    seconds: float = 0.0
    started: list[float] = field(default_factory=list)  # when the calls that have not ended did


class SimpleProfiler(Profiler):
    """Counts and times actions by name, in this process. Work that a device does later is not waited for.

    An action that runs inside itself counts as two calls, and the inner time for both. Figures add up over the runs of a
    trainer. Keeps two numbers per action, however long the run is.

    Args:
        dirpath: Write the table into this folder when a run ends. ``None``: the current one where ``filename`` is given.
        filename: The file; ``None``: ``"profile.txt"`` where ``dirpath`` is given. Without both, rank 0 prints to stderr;
            with them, rank ``n`` above 0 adds ``.rank<n>`` to the name.
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        self.path = None if dirpath is None and filename is None else Path(dirpath or ".", filename or "profile.txt")
        self._actions: dict[tuple[int, str], Action] = {}  # by thread: loaders may work in threads of their own
        self._first: float | None = None  # when the first action started

    @property
    def actions(self) -> dict[str, Action]:
        """What was measured of each action that has ended, in all threads."""
        found: dict[str, Action] = {}
        for (_, name), measured in list(self._actions.items()):
            if measured.calls:
                total = found.setdefault(name, Action())
                total.calls += measured.calls
                total.seconds += measured.seconds
        return found

    def start(self, action: str) -> None:
        """``action`` begins."""
        now = perf_counter()
        if self._first is None:
            self._first = now
        self._actions.setdefault((get_ident(), action), Action()).started.append(now)

    def stop(self, action: str) -> None:
        """``action`` ends: the call of it that started last in this thread.

        Raises:
            ConfigurationError: It was not started.
        """
        now = perf_counter()
        measured = self._actions.get((get_ident(), action))
        if measured is None or not measured.started:
            raise ConfigurationError(f"profiler.stop({action!r}) without profiler.start({action!r}) before it in this thread")
        measured.calls += 1
        measured.seconds += now - measured.started.pop()

    def summary(self) -> str:
        """A table of the actions that have ended, the longest first; the share is of the time since the first one started."""
        whole = 0.0 if self._first is None else perf_counter() - self._first
        rows = [["action", "calls", "mean ms", "total s", "share"]]
        for name, entry in sorted(self.actions.items(), key=lambda item: item[1].seconds, reverse=True):
            mean, share = 1e3 * entry.seconds / entry.calls, entry.seconds / whole
            rows.append([name, str(entry.calls), f"{mean:.3f}", f"{entry.seconds:.3f}", f"{share:.1%}"])
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        rows.insert(1, ["-" * width for width in widths])
        head = f"profile of {whole:.3f} s"
        return "\n".join([head, *("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)])

    def teardown(self) -> None:
        """A run ended: write or print the table. It overwrites that of an earlier run, whose figures it includes."""
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        if self.path is not None:
            path = self.path if rank == 0 else self.path.with_name(f"{self.path.name}.rank{rank}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{self.summary()}\n", encoding="utf-8")
        elif rank == 0:
            print(self.summary(), file=sys.stderr)  # noqa: T201 - what is asked for
