"""Act by time, between steps, for the price of one look at the clock per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic


@dataclass(slots=True)
class Alarm:
    """Something to do every ``seconds``."""

    seconds: float
    action: Callable[[], None]
    due: float


class Clock:
    """All that happens by time in a run: redrawing, saving, validating, stopping.

    The loop compares :attr:`next_due` with the time after each batch, and calls :meth:`ring` when it has come. Without
    alarms it is ``None``, and no time is read.
    """

    def __init__(self) -> None:
        self.next_due: float | None = None
        self._alarms: list[Alarm] = []

    def every(self, seconds: float, action: Callable[[], None]) -> Alarm:
        """Call ``action`` between two steps, whenever at least ``seconds`` have passed since the last time."""
        alarm = Alarm(seconds, action, monotonic() + seconds)
        self._alarms.append(alarm)
        self._reset()
        return alarm

    def cancel(self, alarm: Alarm) -> None:
        """Forget an alarm."""
        self._alarms.remove(alarm)
        self._reset()

    def ring(self, now: float) -> None:
        """Do what is due at ``now``."""
        for alarm in [alarm for alarm in self._alarms if alarm.due <= now]:
            alarm.action()
            alarm.due = monotonic() + alarm.seconds  # measured from the end: a slow action cannot pile up
        self._reset()

    def due(self, now: float) -> int:
        """The alarms that are due at ``now``, as bits: in a distributed run, one rank looks and all of them ring."""
        if self.next_due is None or now < self.next_due:
            return 0
        return sum(1 << index for index, alarm in enumerate(self._alarms) if alarm.due <= now)

    def ring_alarms(self, which: int) -> None:
        """Do what :meth:`due` found, by the order in which the alarms were set, which is the same on every rank."""
        for alarm in [alarm for index, alarm in enumerate(self._alarms) if which >> index & 1]:
            alarm.action()
            alarm.due = monotonic() + alarm.seconds
        self._reset()

    def _reset(self) -> None:
        self.next_due = min((alarm.due for alarm in self._alarms), default=None)
