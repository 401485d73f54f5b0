"""How many batches an epoch has where ranks have different numbers of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch

from fulmen.data import last_batch
from fulmen.state import Run


def agree_on_length(run: Run) -> None:
    """Let all ranks expect the same number of batches: windows, schedules and validations follow from it."""
    loaders, strategy = run.loaders["train"], run.runtime.strategy
    if run.runtime.world_size == 1:
        return
    total = float(loaders.total)
    low, high = strategy.all_reduce(torch.tensor([-total, total], device=run.device), "max").tolist()  # synchronises
    if -low != high:
        agreed = high if strategy.uneven in ("pad", "join") or high == float("inf") else -low
        loaders.num_batches = [agreed if agreed == float("inf") else int(agreed)]
    loaders.is_sure = not strategy.agree(int(None in loaders.lengths))


def while_all(run: Run, batches: Iterator[Any]) -> Iterator[Any]:
    """``batches`` until one rank has no more: a step with fewer ranks would wait for them for ever.

    Where ranks do not know their number of batches, they agree before each, through the host.
    """
    if run.loaders["train"].is_sure:
        yield from batches
        return
    ended = object()
    while not run.runtime.strategy.agree(int((batch := next(batches, ended)) is ended)):
        yield batch


def while_any(run: Run, batches: Iterator[Any]) -> Iterator[Any]:
    """``batches`` until no rank has more: where this rank has none, its last one comes again."""
    loaders, strategy, done = run.loaders["train"], run.runtime.strategy, run.progress.batch
    ended = last = object()
    for index in count(done) if loaders.total == float("inf") else range(done, int(loaders.total)):
        batch = next(batches, ended)
        if not loaders.is_sure and not strategy.agree(int(batch is not ended)):
            return
        if batch is ended:
            strategy.own_batches = min(strategy.own_batches, index)
            batch = last_batch(run) if last is ended else last
        last = batch
        yield batch
