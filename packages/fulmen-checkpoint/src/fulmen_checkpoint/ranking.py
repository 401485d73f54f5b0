"""Which checkpoints are kept, and which of them is the best. Plain numbers and names, no files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Ranking:
    """The files that are kept, in the order in which they were written.

    Attributes:
        mode: Whether ``"min"`` or ``"max"`` is better; without a monitor nothing is compared.
        size: How many to keep; -1: all.
        files: Path -> score; ``None``: it has none, because nothing is monitored.
        best: The path of the best score; without a monitor, the newest file. Empty before.
        earlier: The best of another folder, with its score: compared, but not kept here.
    """

    mode: Literal["min", "max"]
    size: int
    files: dict[str, float | None] = field(default_factory=dict)
    best: str = ""
    earlier: tuple[str, float] | None = None

    def copy(self) -> Ranking:
        """What can be gone back to."""
        return Ranking(self.mode, self.size, dict(self.files), self.best, self.earlier)

    def admits(self, score: float | None) -> bool:
        """Whether a file with that score is kept. One that is not a number is not, unless all files are."""
        if self.size == -1 or self.size == 0:
            return self.size == -1
        if score is None:
            return True
        if math.isnan(score):
            return False
        return len(self.files) < self.size or self.is_better(score, self.files[self.worst])

    def displaced(self, score: float | None) -> list[str]:
        """The files that leave when one with that score comes."""
        surplus = 0 if self.size == -1 else len(self.files) + 1 - self.size
        if surplus <= 0:
            return []
        if score is None:
            return list(self.files)[:surplus]
        order = list(self.files)
        return sorted(order, key=lambda path: (self._badness(self.files[path]), order.index(path)), reverse=True)[:surplus]

    def add(self, path: str, score: float | None) -> None:
        """Keep a file. A file of that name before is replaced."""
        replaced_best = self.files.pop(path, None) is not None and path == self.best
        self.files[path] = score
        if score is None:
            self.best = path
        elif replaced_best:
            self.find_best()
        elif not math.isnan(score) and (not self.best or self.is_better(score, self.best_score)):
            self.best = path

    def remove(self, path: str) -> None:
        """Keep a file no longer."""
        self.files.pop(path, None)
        if path == self.best:
            self.find_best()

    def find_best(self) -> None:
        """Compare all anew."""
        if any(score is None for score in self.files.values()):
            self.best = next(reversed(self.files))
            return
        earlier = [self.earlier] if self.earlier is not None else []
        scored = [*earlier, *((path, score) for path, score in self.files.items() if score is not None and score == score)]
        self.best = min(scored, key=lambda each: self._badness(each[1]))[0] if scored else ""

    @property
    def best_score(self) -> float | None:
        """The score of the best file."""
        if self.earlier is not None and self.best == self.earlier[0] and self.best not in self.files:
            return self.earlier[1]
        return self.files.get(self.best)

    @property
    def worst(self) -> str:
        """The path of the worst score, the next to go; empty without files that have one."""
        scored = [path for path, score in self.files.items() if score is not None]
        return max(scored, key=lambda path: self._badness(self.files[path])) if scored else ""

    def is_better(self, score: float, than: float | None) -> bool:
        """Whether a score is better. Equal is not better, and nothing is worse than what is not a number."""
        return self._badness(score) < self._badness(than)

    def _badness(self, score: float | None) -> tuple[bool, float]:
        if score is None or math.isnan(score):
            return (True, 0.0)
        return (False, score if self.mode == "min" else -score)
