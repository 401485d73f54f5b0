"""Which samples a rank gets and in which order, from any position on, and how their random numbers are seeded."""

from __future__ import annotations

import copy
import random
import sys
import zlib
from collections.abc import Iterator
from itertools import chain, cycle, islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, Dataset
from torch.utils.data.distributed import DistributedSampler

from fulmen.rng import fingerprint


class InTurn:
    """Every ``size``-th batch of another sampler, from ``rank`` on."""

    def __init__(self, batches: Any, size: int, rank: int) -> None:
        self.batches, self.size, self.rank = batches, size, rank

    def __len__(self) -> int:
        return len(range(self.rank, len(self.batches), self.size))

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, self.rank, None, self.size)


class Shared(DistributedSampler[Any]):
    """The share of a rank in the order of another sampler: of each global batch, every sample of which it is the turn.

    So the samples of a step are the same for any number of ranks that together have batches of the same size. Where the
    samples cannot be divided, the first of the order are repeated at its end, or the last left out with ``drop_last``.
    """

    def __init__(self, order: Any, num_replicas: int, rank: int, drop_last: bool = False) -> None:
        super().__init__(order, num_replicas, rank, shuffle=False, drop_last=drop_last)
        self.order, self.start = order, 0

    def __iter__(self) -> Iterator[int]:
        indices = list(islice(self.order, self.start, len(self.order)))  # now: what is drawn later would differ on the ranks
        rounded = len(indices) + (0 if self.drop_last else self.num_replicas - 1)
        return islice(cycle(indices), self.rank, rounded // self.num_replicas * self.num_replicas, self.num_replicas)


class Undivided(Shared):
    """Gives every training sample to exactly one rank. Its length is that of the rank with the most."""

    def __iter__(self) -> Iterator[int]:
        indices = list(islice(self.order, self.start, len(self.order)))
        return iter(indices[self.rank :: self.num_replicas])


class EachOnce(DistributedSampler[Any]):
    """Gives every sample to exactly one rank, for evaluation: metrics over all ranks are exact. Ranks may differ by one."""

    def __init__(self, dataset: Any, num_replicas: int, rank: int, shuffle: bool, seed: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False, seed=seed)
        self.num_samples = len(range(rank, len(dataset), num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


class ResumableBatches:
    """The indices of another sampler, from any batch on, with a seed for each batch where workers load it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._skip = self._offset = 0
        self._seed: int | None = None
        self._order: _Order | None = None

    def prepare(self, skip: int, seed: int | None, offset: int = 0) -> None:
        """Say where the next iteration starts, and the seed of its workers; ``None``: there are none.

        Args:
            skip: Batches to leave out.
            seed: Of the workers.
            offset: Samples to leave out before, of the order of all ranks.
        """
        self._skip, self._seed, self._offset = skip, seed, offset

    def __iter__(self) -> Iterator[Any]:
        self._order = _Order(iter(from_sample(self.inner, self._offset) if self._offset else self.inner), self._skip)
        indices = chain.from_iterable(self._order)
        return indices if self._seed is None else _with_seeds(indices, self._skip, self._seed)

    def draw_now(self) -> tuple[int, bool]:
        """Draw the order now, rather than when the first batch is asked for: other loaders may start in between.

        Returns:
            A checksum of the first indices; whether leaving batches out drew no random numbers after those.
        """
        order, self._order = self._order, None
        if order is None:
            return 0, True
        order.draw()
        return order.checksum, order.repeats

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)


def from_sample(batches: Any, offset: int) -> Any:
    """The batches of a :class:`BatchSampler`, or single indices, from some sample of the order of all ranks on."""
    if isinstance(batches, BatchSampler):
        return BatchSampler(from_sample(batches.sampler, offset), batches.batch_size, batches.drop_last)
    shifted = copy.copy(batches) if isinstance(batches, Shared) else Shared(batches, 1, 0)
    shifted.start = offset
    return shifted


class _Order:
    """The indices from ``skip`` on, in two parts: the first, whose drawing makes samplers draw their order, and the rest."""

    def __init__(self, indices: Iterator[Any], skip: int) -> None:
        self._indices, self._skip = indices, skip
        self._first: list[Any] | None = None
        self.checksum, self.repeats = 0, True

    def draw(self) -> list[Any]:
        if self._first is None:
            self._first = list(islice(self._indices, 1))
            self.checksum = zlib.crc32(repr(self._first).encode())
            if self._skip:
                before = fingerprint()
                self._first = list(islice(self._indices, self._skip - 1, self._skip))
                self.repeats = before == fingerprint()
        return self._first

    def __iter__(self) -> Iterator[Any]:
        yield self.draw()
        yield self._indices


def _with_seeds(indices: Iterator[Any], first: int, seed: int) -> Iterator[tuple[int, Any]]:
    for number, index in enumerate(indices, first):
        yield (seed * 1_000_003 + number) % 2**63, index


class SeededDataset(Dataset[Any]):
    """A dataset in a worker process, which draws the same random numbers for a batch whenever and wherever it is loaded."""

    def __init__(self, inner: Any) -> None:
        object.__setattr__(self, "inner", inner)

    def __getitem__(self, ticket: tuple[int, Any]) -> Any:
        """One sample: loaders without automatic batching ask for these."""
        seed, index = ticket
        _seed_worker(seed)
        return self.inner[index]

    def __getitems__(self, ticket: tuple[int, Any]) -> Any:
        """The samples of one batch."""
        seed, indices = ticket
        _seed_worker(seed)
        if callable(getattr(self.inner, "__getitems__", None)):
            return self.inner.__getitems__(indices)
        return [self.inner[index] for index in indices]

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)


def _seed_worker(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
