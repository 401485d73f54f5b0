"""How processes come together in a store that may hold what others have left there."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from fulmen_ddp.failures import RankError

START_SECONDS = 120.0
"""How long processes may take to start, at least: ``timeout_s``, where it is shorter, is for noticing hangs."""
POLL_SECONDS = 0.02
ROSTER = "fulmen/roster"


def meet(store: Any, rank: int, size: int, timeout: timedelta) -> str:
    """Wait until every process is here; a name that all of them get and nobody had before.

    torchrun keeps its store when it starts processes anew, with the addresses of those that are dead. A process that finds
    such an address waits for ever. So each rank writes a word of its own, rank 0 lists the words that it finds under a new
    name, and each rank confirms the list that has its word. When all have confirmed the same list, it is theirs.

    Raises:
        RankError: Some did not come.
    """
    word, until = uuid.uuid4().hex, monotonic() + timeout.total_seconds()
    store.set(f"fulmen/word/{rank}", word)
    name, words = "", [""] * size
    while monotonic() < until:
        if rank == 0:
            found = [read(store, f"fulmen/word/{each}") for each in range(size)]
            if "" not in found and found != words:
                name, words = uuid.uuid4().hex, found
                store.set(ROSTER, json.dumps([name, words]))
        elif read(store, ROSTER):
            name, words = json.loads(read(store, ROSTER))
        if len(words) == size and words[rank] == word:
            store.set(f"fulmen/{name}/confirmed/{rank}", "")
            if rank == 0 and store.check([f"fulmen/{name}/confirmed/{each}" for each in range(size)]):
                store.set(f"fulmen/{name}/begin", "")
            if store.check([f"fulmen/{name}/begin"]):
                return name
        sleep(POLL_SECONDS)
    missing = [str(each) for each in range(size) if not read(store, f"fulmen/word/{each}")]
    raise RankError(
        f"after {timeout.total_seconds():g} s, not all processes were here"
        + (f"; there was no word from rank {', '.join(missing)}" if missing else "")
    )


def read(store: Any, key: str) -> str:
    """What is written; empty where nothing is."""
    return store.get(key).decode() if store.check([key]) else ""
