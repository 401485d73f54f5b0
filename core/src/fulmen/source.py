"""One loader, whose position belongs to the trainer.

A loader's order depends on random states at the moment its iteration starts. A :class:`Source` keeps these; to continue
in the middle, it starts the iteration from the same states and skips by index: no sample is loaded in vain. Random
numbers drawn in worker processes are a function of these states and of the batch's number, so they continue too.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from fulmen.contracts.stateful import Stateful
from fulmen.errors import ConfigurationError, warn
from fulmen.rng import isolated, random_state, set_random_state
from fulmen.samplers import EachOnce, InTurn, ResumableBatches, SeededDataset, Shared, Undivided

if TYPE_CHECKING:
    from fulmen.contracts.strategy import Strategy


class Source:
    """A loader and where its iteration stands.

    Args:
        loader: Any iterable of batches.
        name: What it is called in messages, such as ``train_dataloader``.
        strategy: For training data: their order, once drawn, goes on by itself from epoch to epoch, whatever else draws
            random numbers, and all ranks of the strategy draw that of rank 0. ``None``: it is drawn anew in each iteration.
    """

    def __init__(self, loader: Iterable[Any], name: str, strategy: Strategy | None = None) -> None:
        self.loader, self.name, self._strategy = loader, name, strategy
        self._order: dict[str, Any] | None = None  # the random states from which the next order is drawn
        self._offset = 0  # samples to leave out beside whole batches, where batches had another size before a resume
        self.ratio = 1.0  # batches now for each batch before the resume
        self.passes = 0  # iterations started so far
        self.batches = 0  # batches taken in this one
        self._start: dict[str, Any] = {}  # the random states that this one started from
        self._inner: Any = None  # what a loader that keeps its own position is to continue from
        self._continues = False  # whether the next one continues where a checkpoint was made
        self._repeats = False  # whether all iterations have the same order, that of another source
        self._first = 0  # a checksum of the first indices of this one
        self._served: DataLoader[Any] | None = None  # a copy of the loader whose batches can be skipped

    def __len__(self) -> int:
        """Batches in one iteration.

        Raises:
            TypeError: The loader does not know.
        """
        return len(self.loader)  # type: ignore[arg-type]

    @property
    def gives_ahead(self) -> bool:
        """Whether taking a batch before it is used leaves no trace.

        So it is where batches lie ready, or workers load them and nobody but the trainer keeps the position.
        """
        loader = self.loader.dataset if isinstance(self.loader, ReadyBatches) else self.loader
        if not isinstance(loader, DataLoader):
            return isinstance(loader, (list, tuple))
        return loader.num_workers > 0 and type(loader).__iter__ is DataLoader.__iter__ and not _is_stateful(loader)

    def begin(self, epoch: int) -> Iterator[Any]:
        """Start an iteration, or continue the one that a checkpoint interrupted."""
        for part in (self.loader, *_samplers(self.loader), getattr(self.loader, "dataset", None)):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)
        continues, self._continues = self._continues, False
        if (continues and self.batches) or self._repeats:
            return self._continue()
        self.batches = self._offset = 0
        self.passes += 1
        silent = continues and self.passes > 1
        if self._strategy is not None and is_indexed(self.loader):
            return self._begin_in_order(self._strategy, silent)
        self._start = self._states()
        return self._iterate(skip=0, silent=silent)

    def _begin_in_order(self, strategy: Strategy, silent: bool) -> Iterator[Any]:
        is_first = self._order is None
        own = self._states()
        self._start = strategy.broadcast(own) if self._order is None else {**self._order, "samplers": own["samplers"]}
        with isolated():
            self._restart()
            iterator = self._iterate(skip=0, silent=silent)
            self._order = self._states()
        if is_first and strategy.global_rank == 0:  # as the first iteration of a loop by hand
            set_random_state(self._order["random"])
        return iterator

    def _continue(self) -> Iterator[Any]:
        with isolated():  # the run's own random states go on from where the checkpoint was made
            self._restart()
            return self._iterate(skip=self.batches, silent=self.passes > 1)

    def _states(self) -> dict[str, Any]:
        return {
            "random": random_state(),
            "generators": [generator.get_state() for generator in _generators(self.loader)],
            "samplers": [sampler.state_dict() for sampler in _samplers(self.loader) if _is_stateful(sampler)],
        }

    def _restart(self) -> None:
        set_random_state(self._start["random"])
        for generator, state in zip(_generators(self.loader), self._start["generators"], strict=True):
            generator.set_state(state)
        stateful = [sampler for sampler in _samplers(self.loader) if _is_stateful(sampler)]
        for sampler, state in zip(stateful, self._start.get("samplers", ()), strict=False):
            sampler.load_state_dict(state)

    def repeat(self, other: Source) -> None:
        """Let the next iteration have the order of the one that another source of the same loader is in."""
        self._start, self._repeats = other._start, bool(other._start) and is_indexed(self.loader)

    def _iterate(self, skip: int, silent: bool) -> Iterator[Any]:
        loader = self.loader
        if not isinstance(loader, DataLoader) or not is_indexed(loader):
            return self._replay(iter(loader), 0 if _stateful_part(loader) is not None else skip)
        if self._served is None:
            self._served = with_batches(loader, ResumableBatches(_index_sampler(loader)))
        batches = _index_sampler(self._served)
        rank = 0 if self._strategy is None else self._strategy.global_rank
        seed = zlib.crc32(self._start["random"]["torch"].numpy().tobytes(), rank) + self.passes
        batches.prepare(skip, seed if loader.num_workers > 0 else None, self._offset)
        iterator = _start_workers(self._served, silent)
        first, repeats = batches.draw_now()
        if skip and not (repeats and self._first in (0, first)):  # 0: it was a sequence of batches in one process
            self._warn_of_order()
        self._first = first
        return iterator

    def _warn_of_order(self) -> None:
        of_batches = global_batch_size(self.loader) is None
        kind = type(_index_sampler(self.loader) if of_batches else _order_of(self.loader)).__name__  # type: ignore[arg-type]
        warn(
            "resume-order",
            f"the order of {self.name}'s {kind} is not the one that it had before: the data are others, or it comes "
            "from random numbers that no checkpoint holds. So some samples come twice in this epoch, and others not. Draw the "
            "order where __iter__ begins, from the global generators or from one in an attribute 'generator', or define "
            "state_dict and load_state_dict",
        )

    def _replay(self, iterator: Iterator[Any], skip: int) -> Iterator[Any]:
        if skip and not isinstance(self.loader, (list, tuple, range)):
            warn(
                "resume-replay",
                f"{self.name} cannot say where it stands, so the {skip} batches that were used before are loaded and thrown "
                "away. To skip them, give its dataset state_dict and load_state_dict, or use a map-style dataset",
            )
        next(islice(iterator, skip, skip), None)
        return iterator

    def close(self) -> None:
        """End worker processes, which live as long as the copy of the loader that serves batches."""
        self._served = None

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Where the iteration stands, as plain data.

        Args:
            batches: How many batches of this iteration were used; ``None``: as many as were taken.
        """
        batches = self.batches if batches is None else batches
        inner = _stateful_part(self.loader)
        state = self._inner if self._continues else None  # asked for, a loader may begin, and draw random numbers
        if inner is not None and batches and not self._continues:
            with isolated():
                state = inner.state_dict()
        generators = [generator.get_state() for generator in _generators(self.loader)]
        return {
            "passes": self.passes, "batches": batches, "start": self._start, "generators": generators, "inner": state,
            "order": self._order, "batch_size": global_batch_size(self.loader), "offset": self._offset, "first": self._first,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue there."""
        self.passes, self.batches, self._start = int(state["passes"]), int(state["batches"]), state["start"]
        if not 0 <= self.batches < 2**62:
            raise ValueError(f"{self.batches} batches")
        self._order, self._offset = state.get("order"), int(state.get("offset", 0))
        self._first = int(state.get("first", 0))
        self._convert(state.get("batch_size"))
        self._continues = True
        if not self.batches:  # nothing to continue: its own generators go on from where they are
            for generator, saved in zip(_generators(self.loader), state["generators"], strict=True):
                generator.set_state(saved)
        inner, self._inner = _stateful_part(self.loader), state["inner"]
        if inner is not None and self._inner is not None:
            inner.load_state_dict(self._inner)

    def _convert(self, before: int | None) -> None:
        """Count the samples that were used in batches of the size that they have now."""
        now = global_batch_size(self.loader)
        if now is None or before in (None, now):
            return
        assert before is not None
        self.ratio = before / now
        samples = self._offset + self.batches * before
        if samples >= len(_order_of(self.loader)):  # the last batch may have been a small one
            self.batches, self._offset = len(self), 0
        else:
            self.batches, self._offset = divmod(samples, now)


def is_indexed(loader: Any) -> bool:
    """Whether it loads samples by an index that it takes from a sampler, and nobody else keeps the position."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset) and not _is_stateful(loader)


def _order_of(loader: Any) -> Any:
    """The sampler that gives the order of all samples, for all ranks; of a sequence of batches, the sequence."""
    if is_sequence(loader):
        return loader
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler
    return sampler.order if isinstance(sampler, Shared) else sampler


def global_batch_size(loader: Any) -> int | None:
    """Samples in the batches of all ranks together; ``None`` where the loader's own code makes the batches.

    Of a sequence of batches, each counts as one sample.
    """
    if is_sequence(loader):
        return 1
    if not is_indexed(loader) or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        return None
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler
    ranks = sampler.num_replicas if isinstance(sampler, DistributedSampler) else 1
    return int(ranks * (1 if loader.batch_sampler is None else loader.batch_sampler.batch_size))


def _stateful_part(loader: Any) -> Any:
    """What knows the position by itself: the loader, or an iterable dataset that is read in this process."""
    if _is_stateful(loader):
        return loader
    dataset = getattr(loader, "dataset", None)
    own_process = isinstance(dataset, IterableDataset) and loader.num_workers == 0
    return dataset if own_process and _is_stateful(dataset) else None


def _is_stateful(part: Any) -> bool:
    return isinstance(part, Stateful)


def _start_workers(loader: DataLoader[Any], silent: bool) -> Iterator[Any]:
    """``iter(loader)``; ``silent`` where persistent workers would be running already, had the run not been interrupted.

    Starting workers draws a seed for them. A run that was never interrupted does that once.
    """
    if not (silent and loader.persistent_workers and loader.num_workers and loader._iterator is None):
        return iter(loader)
    generator, loader.generator = loader.generator, torch.Generator()
    try:
        return iter(loader)
    finally:
        loader.generator = generator


def with_batches(loader: DataLoader[Any], batches: Any, dataset: Dataset[Any] | None = None) -> DataLoader[Any]:
    """A copy of ``loader`` that takes its indices from ``batches``. Works for subclasses of DataLoader too."""
    served = copy.copy(loader)
    served._iterator = None
    # DataLoader forbids plain assignment, because a running iterator would not see it; this copy has none.
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    object.__setattr__(served, name, batches)
    if loader.num_workers > 0 and isinstance(batches, ResumableBatches):
        object.__setattr__(served, "dataset", SeededDataset(loader.dataset))
    return served


def with_sampler(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    """A copy of ``loader`` that draws from ``sampler``, in batches as before.

    Raises:
        ConfigurationError: It has a batch sampler of its own, which cannot be rebuilt around another sampler.
    """
    if loader.batch_sampler is None:
        return with_batches(loader, sampler)
    if type(loader.batch_sampler) is not BatchSampler:
        raise ConfigurationError(
            f"the loader's batch_sampler is a {type(loader.batch_sampler).__name__}, in which fulmen cannot replace the "
            "sampler; set use_distributed_sampler=False and let it give each rank its share"
        )
    batch_size, drop_last = loader.batch_sampler.batch_size, loader.batch_sampler.drop_last
    served = with_batches(loader, BatchSampler(sampler, batch_size, drop_last))
    object.__setattr__(served, "sampler", sampler)
    return served


def distributed(loader: Any, arguments: dict[str, int], shuffle: bool, seed: int, uneven: str | None = None) -> Any:
    """``loader`` with each rank seeing its share, where it is a map-style DataLoader without such a sampler.

    Of a sequence of batches, whole batches are shared. ``uneven``: what happens to training samples that cannot be divided,
    as a strategy says it.
    """
    loader = ready(loader)
    if not _can_be_shared(loader):
        return loader
    ranks = arguments["num_replicas"], arguments["rank"]
    if shuffle:
        kind = Undivided if uneven == "join" else Shared
        drop = uneven == "drop" or (uneven is None and loader.drop_last)
        return with_sampler(loader, kind(_order_of(loader), *ranks, drop))
    once = len(loader.dataset) >= ranks[0]  # every rank must have a sample
    each: type[DistributedSampler[Any]] = EachOnce if once else DistributedSampler
    return with_sampler(loader, each(loader.dataset, *ranks, shuffle=False, seed=seed))


def dealt(loader: Any, arguments: dict[str, int]) -> Any:
    """``loader`` with each rank getting whole batches in turn, where it is a map-style DataLoader without such a sampler.

    They are the batches of one process, so that what is made of them can be put in order.
    """
    loader = ready(loader)
    if not _can_be_shared(loader):
        return loader
    in_order = with_sampler(loader, SequentialSampler(loader.dataset))
    return with_batches(in_order, InTurn(_index_sampler(in_order), arguments["num_replicas"], arguments["rank"]))


class ReadyBatches(DataLoader[Any]):
    """A sequence of batches as a loader, so that a sampler says which of them a rank gets."""

    def __init__(self, batches: Any) -> None:
        super().__init__(batches, batch_size=None, collate_fn=as_it_is)


def as_it_is(batch: Any) -> Any:
    """``batch``."""
    return batch


def is_sequence(loader: Any) -> bool:
    """Whether batches lie ready, and can be taken by their index instead of one after the other."""
    kind = type(loader)
    if isinstance(loader, DataLoader) or not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")):
        return False
    is_plain = isinstance(loader, Sequence) or hasattr(kind, "__array__") or not hasattr(kind, "__iter__")
    return is_plain and not _is_stateful(loader)


def ready(loader: Any) -> Any:
    """A sequence of batches as a loader; others as they are."""
    return ReadyBatches(loader) if is_sequence(loader) else loader


def _can_be_shared(loader: Any) -> bool:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or _is_stateful(loader):
        return False
    return not isinstance(loader.sampler, DistributedSampler)


def has_none(loader: Any) -> bool:
    """Whether this rank gets no batch of a loader, and others do."""
    batches = _index_sampler(loader) if isinstance(loader, DataLoader) else None
    return isinstance(batches, InTurn) and not len(batches) and len(batches.batches) > 0


def in_order(loader: Any) -> Any:
    """``loader`` without shuffling."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, RandomSampler):
        return loader
    return with_sampler(loader, SequentialSampler(loader.dataset))  # type: ignore[arg-type]


def _index_sampler(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _samplers(loader: Any) -> list[Any]:
    if not isinstance(loader, DataLoader):
        return []
    inner = getattr(loader.batch_sampler, "sampler", None)
    found = [loader.sampler, loader.batch_sampler, inner]
    return list({id(sampler): sampler for sampler in found if sampler is not None}.values())


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers were given, each once."""
    found = [getattr(part, "generator", None) for part in (loader, *_samplers(loader))]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())
