"""Act by time, between steps, for the price of one look at the clock per step."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import monotonic


class Alarm:
    """Something to do every ``seconds``. With infinity: only when :meth:`ring_in` says so."""

    __slots__ = ("action", "clock", "due", "seconds")

    def __init__(self, clock: Clock, seconds: float, action: Callable[[], None]) -> None:
        self.clock, self.seconds, self.action, self.due = clock, seconds, action, monotonic() + seconds

    def ring_in(self, seconds: float) -> None:
        """Ring when so many seconds have passed from now, whenever it would have rung. Any thread or signal may call this."""
        self.clock.set(self, monotonic() + seconds)


class Clock:
    """All that happens by time in a run: redrawing, saving, validating, stopping.

    The loop compares :attr:`next_due` with the time after each batch, and calls :meth:`ring` when it has come. Without
    alarms it is ``None``, and no time is read.
    """

    def __init__(self) -> None:
        self.next_due: float | None = None
        self._alarms: list[Alarm] = []
        self._lock = threading.RLock()  # a thread or a signal may set an alarm while the loop puts another one forward

    def every(self, seconds: float, action: Callable[[], None]) -> Alarm:
        """Call ``action`` between two steps, whenever at least ``seconds`` have passed since the last time."""
        alarm = Alarm(self, seconds, action)
        self._alarms.append(alarm)
        self.set(alarm, alarm.due)
        return alarm

    def set(self, alarm: Alarm, due: float) -> None:
        """Let an alarm ring next at ``due``."""
        with self._lock:
            alarm.due = due
            self._find_next()

    def cancel(self, alarm: Alarm) -> None:
        """Forget an alarm."""
        with self._lock:
            self._alarms.remove(alarm)
            self._find_next()

    def ring(self, now: float) -> None:
        """Do what is due at ``now``."""
        self._ring([alarm for alarm in self._alarms if alarm.due <= now])

    def due(self, now: float) -> int:
        """The alarms that are due at ``now``, as bits: in a distributed run, one rank looks and all of them ring."""
        if self.next_due is None or now < self.next_due:
            return 0
        return sum(1 << index for index, alarm in enumerate(self._alarms) if alarm.due <= now)

    def ring_alarms(self, which: int) -> None:
        """Do what :meth:`due` found, by the order in which the alarms were set, which is the same on every rank."""
        self._ring([alarm for index, alarm in enumerate(self._alarms) if which >> index & 1])

    def _ring(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            alarm.due = math.inf
            alarm.action()
            with self._lock:
                if alarm.due == math.inf:  # the action, or a thread, has not said when to ring next
                    alarm.due = monotonic() + alarm.seconds  # measured from the end: a slow action cannot pile up
        with self._lock:
            self._find_next()

    def _find_next(self) -> None:
        while True:
            soonest = self._soonest()
            self.next_due = None if soonest == math.inf else soonest
            if self._soonest() == soonest:  # else a signal has set an alarm just now
                return

    def _soonest(self) -> float:
        return min((alarm.due for alarm in self._alarms), default=math.inf)
