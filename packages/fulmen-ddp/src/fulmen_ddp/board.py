"""What ranks tell each other beside their exchanges, in the store where they have met: it works where an exchange hangs."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from fulmen_ddp.failures import Failure, RankError

CONNECT_SECONDS = 10.0


class Board:
    """A connection to the store, and what is written there.

    One connection serves one thread: while it waits for an answer, others wait for it.

    Args:
        store: The connection.
        address: Host and port of the store.
        name: Of these ranks in this store, which may have served others before.
        rank: Of this process.
        size: How many ranks there are.
        is_host: Whether the store ends with this process.
    """

    def __init__(self, store: Any, address: tuple[str, int], name: str, rank: int, size: int, is_host: bool) -> None:
        self.address, self.name, self.rank, self.size, self.is_host = address, name, rank, size, is_host
        self._keys = dist.PrefixStore(f"fulmen/{name}", store)  # type: ignore[attr-defined]

    def again(self) -> Board:
        """The same by another connection, for another thread.

        Raises:
            RuntimeError: The store is gone.
        """
        limit = timedelta(seconds=CONNECT_SECONDS)
        store = dist.TCPStore(*self.address, None, False, limit, wait_for_workers=False)  # type: ignore[attr-defined]
        return Board(store, self.address, self.name, self.rank, self.size, self.is_host)

    def add(self, key: str, amount: int = 1) -> int:
        """Count something; the count of all ranks so far."""
        return int(self._keys.add(key, amount))

    def write(self, key: str, text: str) -> None:
        """Say something."""
        self._keys.set(key, text)

    def read(self, key: str) -> str | None:
        """What was said; ``None``: nothing yet."""
        return self._keys.get(key).decode() if self._keys.check([key]) else None

    def by_rank(self, key: str) -> dict[int, str]:
        """What each rank has said, where it has said something."""
        texts = {rank: self.read(f"{key}/{rank}") for rank in range(self.size)}
        return {rank: text for rank, text in texts.items() if text is not None}

    # ---- Failures

    def report(self, failure: Failure) -> None:
        """Say how this rank failed. Plain text: nothing that comes from the network is run."""
        self.write(
            f"failure/{self.rank}",
            json.dumps([f"{type(failure.error).__name__}: {failure.error}", failure.text, failure.is_echo]),
        )
        self.add("failures")

    def has_failures(self) -> bool:
        """Whether any rank has failed."""
        return bool(self._keys.check(["failures"]))

    def failures(self) -> list[Failure]:
        """How ranks have failed, those first that were not the echo of another."""
        found = []
        for rank, text in self.by_rank("failure").items():
            line, traceback, is_echo = json.loads(text)
            found.append(Failure(rank, RankError(f"rank {rank} failed: {line}"), traceback, is_echo))
        return sorted(found, key=lambda failure: failure.is_echo)
