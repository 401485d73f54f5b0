"""What is done at a moment, once it is decided: the same on every rank, and in a thread where that is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fulmen_checkpoint.places import Place


@dataclass
class Plan:
    """What rank 0 decided to do now, for all ranks."""

    path: str = ""
    """The file to keep; empty: none."""
    score: float | None = None
    """Its score; ``None`` without a monitor."""
    drop: list[str] = field(default_factory=list)
    """Files to remove when the new one is complete."""
    last: str = ""
    """The file of the newest state; empty: not now."""
    measured: int | None = None
    """Training batches done when the score was measured; ``None``: nothing was looked at."""
    error: str = ""
    """Why nothing can be saved."""
    missing: str = ""
    """Why the metric cannot decide."""

    def carry_out(self, payload: dict[str, Any], place: Place, link: bool, linked_from: str) -> None:
        """Write the new file, then the newest state, and only then remove what has to go.

        Args:
            payload: The checkpoint.
            place: Where.
            link: Whether the newest state is a symbolic link where it equals the new file.
            linked_from: The path that may be such a link to a file that goes, and takes its place then.

        Raises:
            CheckpointError: Something cannot be written or removed; what was there before is untouched.
        """
        if self.path:
            place.write(payload, self.path)
        if self.last and self.path:
            place.repeat(self.path, self.last, link)
        elif self.last:
            place.write(payload, self.last)
        for path in self.drop:
            place.remove(path, linked_from)
