"""Time that all ranks agree on."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fulmen import Trainer

MOST_STEPS = 1000


class TimeOfRankZero:
    """Tells when an interval is over by the clock of rank 0, after the same step on every rank.

    Asking costs an exchange between the ranks, so it is asked at few steps: rank 0 says each time after how many steps to
    ask again, which is when half of the remaining time will have passed at the present speed.

    Args:
        seconds: The interval.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = self._asked = monotonic()
        self._wait = self._steps = 1

    def is_over(self, trainer: Trainer) -> bool:
        """Whether the interval has ended, which starts the next one. The same call after the same step on every rank."""
        self._steps -= 1
        if self._steps > 0:
            return False
        now = monotonic()
        per_step = (now - self._asked) / self._wait
        remaining = self.seconds - (now - self._began)
        over = remaining <= 0
        wait = (self.seconds if over else remaining) / 2 / max(per_step, 1e-9)
        answer = trainer.runtime.broadcast((over, max(1, min(MOST_STEPS, int(wait)))))
        self._steps = self._wait = int(answer[1])
        self._asked = now
        if answer[0]:
            self._began = now
        return bool(answer[0])
