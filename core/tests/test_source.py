"""A loader goes on where it stopped: same order, same random numbers, and nothing is loaded in vain."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from fulmen import ConfigurationError, FulmenWarning
from fulmen.rng import random_state, set_random_state
from fulmen.source import SeededDataset, Source, distributed, in_order, with_sampler

NUM_SAMPLES, BATCH_SIZE, NUM_BATCHES = 22, 3, 8


class Augmented(Dataset):
    """Draws from every generator that people use, for each sample."""

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(1).item(), random.random(), np.random.rand()], dtype=torch.float64)


class InBatches(Augmented):
    """Loads whole batches at once."""

    def __getitems__(self, indices):
        assert len(indices) <= BATCH_SIZE
        noise = torch.rand(1)
        return [torch.cat([self[index], noise]) for index in indices]


class Watched(Dataset):
    """Keeps which samples were asked for."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        self.read.append(index)
        return index


class Stream(IterableDataset):
    """Samples in an order that is drawn when the iteration starts."""

    def __iter__(self):
        self.order = torch.randperm(NUM_SAMPLES).tolist()
        for self.position in range(NUM_SAMPLES):
            yield torch.tensor([self.order[self.position], random.random()], dtype=torch.float64)


class StatefulStream(IterableDataset):
    """Knows where it stands."""

    def __init__(self):
        self.position, self.read = 0, []

    def __iter__(self):
        while self.position < NUM_SAMPLES:
            self.position += 1
            self.read.append(self.position)
            yield self.position
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class StatefulLoader:
    """A loader of another library that knows where it stands."""

    def __init__(self):
        self.position, self.read = 0, []

    def __iter__(self):
        while self.position < NUM_BATCHES:
            self.position += 1
            self.read.append(self.position)
            yield self.position
        self.position = 0

    state_dict = StatefulStream.state_dict
    load_state_dict = StatefulStream.load_state_dict


class OwnBatches:
    """A batch sampler of one's own, with a random order from the module ``random``."""

    def __iter__(self):
        indices = list(range(NUM_SAMPLES))
        random.shuffle(indices)
        return iter([indices[start : start + BATCH_SIZE] for start in range(0, NUM_SAMPLES, BATCH_SIZE)])

    def __len__(self):
        return NUM_BATCHES


class ByEpoch(Sampler):
    """Depends on the epoch, as the sampler of distributed runs does."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self):
        return NUM_SAMPLES


def loader(**options):
    return DataLoader(**{"dataset": Augmented(), "batch_size": BATCH_SIZE, **options})


def generator():
    return torch.Generator().manual_seed(9)


LOADERS = {
    "in order": loader,
    "shuffled": lambda: loader(shuffle=True),
    "dropping the last": lambda: loader(shuffle=True, drop_last=True),
    "own generator": lambda: loader(shuffle=True, generator=generator()),
    "generator of the sampler": lambda: loader(sampler=RandomSampler(Augmented(), generator=generator())),
    "with replacement": lambda: loader(sampler=RandomSampler(Augmented(), replacement=True, num_samples=NUM_SAMPLES)),
    "weighted": lambda: loader(sampler=WeightedRandomSampler(range(1, NUM_SAMPLES + 1), NUM_SAMPLES)),
    "subset": lambda: loader(sampler=SubsetRandomSampler(range(0, NUM_SAMPLES, 1))),
    "batch sampler": lambda: DataLoader(Augmented(), batch_sampler=OwnBatches()),
    "nested batch sampler": lambda: DataLoader(
        Augmented(), batch_sampler=BatchSampler(RandomSampler(Augmented()), BATCH_SIZE, False)
    ),
    "single samples": lambda: DataLoader(Augmented(), batch_size=None, shuffle=True),
    "whole batches": lambda: loader(dataset=InBatches(), shuffle=True),
    "epoch sampler": lambda: loader(sampler=ByEpoch()),
    "distributed sampler": lambda: loader(sampler=DistributedSampler(Augmented(), 2, 1, seed=3)),
    "list": lambda: list(range(NUM_BATCHES)),
    "stateful stream": lambda: DataLoader(StatefulStream(), BATCH_SIZE),
    "stateful loader": StatefulLoader,
    "stream": lambda: DataLoader(Stream(), BATCH_SIZE),
    "stream and a worker": lambda: DataLoader(Stream(), BATCH_SIZE, num_workers=1),
    "workers": lambda: loader(shuffle=True, num_workers=2),
    "workers and a generator": lambda: loader(shuffle=True, num_workers=2, generator=generator()),
    "workers and prefetching": lambda: loader(shuffle=True, num_workers=2, prefetch_factor=4),
    "workers and single samples": lambda: DataLoader(Augmented(), batch_size=None, shuffle=True, num_workers=1),
    "workers and whole batches": lambda: loader(dataset=InBatches(), shuffle=True, num_workers=1),
    "workers and a batch sampler": lambda: DataLoader(Augmented(), batch_sampler=OwnBatches(), num_workers=1),
    "workers that persist": lambda: loader(shuffle=True, num_workers=2, persistent_workers=True),
    "workers that persist, and a generator": lambda: loader(
        shuffle=True, num_workers=1, persistent_workers=True, generator=generator()
    ),
}
FORKED = [name for name in LOADERS if "workers" in name]
IN_PROCESS = [name for name in LOADERS if "workers" not in name and "stream" not in name] + ["stateful stream"]


def plain(batch):
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def seed(number):
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(number)


def batches(source, stop, start=0, state=None, rng=None):
    """The batches from one to another, over epochs, with random numbers drawn in between as a training does.

    Returns:
        The batches, and the states of the source and of the generators afterwards, as a file gives them back.
    """
    if state is not None:
        source.load_state_dict(state)
        set_random_state(rng)
    found, taken = [], start
    while taken < stop:
        epoch, inside = divmod(taken, source.per_epoch)
        for batch in source.begin(epoch):
            found.append((plain(batch), torch.rand(1).item()))
            taken, inside = taken + 1, inside + 1
            if taken == stop:
                break
    return found, source.state_dict(batches=inside % source.per_epoch), random_state()


def source_of(name):
    source = Source(LOADERS[name](), "train_dataloader")
    source.per_epoch = 8
    if "single samples" in name:
        source.per_epoch = NUM_SAMPLES
    if name == "dropping the last":
        source.per_epoch = 7
    if name == "distributed sampler":
        source.per_epoch = 4
    return source


def check_resume(name, tmp_path, *stops):
    """An uninterrupted run against one that is interrupted at each of ``stops``."""
    seed(5)
    end = max(2 * source_of(name).per_epoch + 3, stops[-1] + 2)
    whole, _, _ = batches(source_of(name), end)
    seed(5)
    found, state, rng = [], None, None
    for start, stop in zip((0, *stops), (*stops, end), strict=True):
        part, state, rng = batches(source_of(name), stop, start, state, rng)
        found += part
        torch.save([state, rng], tmp_path / "state.pt")
        state, rng = torch.load(tmp_path / "state.pt", weights_only=True)
        seed(99)
        torch.rand(3)
    assert found == whole


@pytest.mark.parametrize("name", IN_PROCESS)
@pytest.mark.parametrize("stops", [(1,), (7,), (11,), (3, 5, 12, 13)])
def test_a_loader_goes_on_where_it_stopped(tmp_path, name, stops):
    check_resume(name, tmp_path, *stops)


@pytest.mark.parametrize("name", FORKED)
@pytest.mark.parametrize("stops", [(5,), (11,), (3, 12)])
def test_a_loader_with_workers_goes_on_where_it_stopped(tmp_path, name, stops):
    check_resume(name, tmp_path, *stops)


@pytest.mark.parametrize("name", ["shuffled", "own generator", "workers", "workers that persist", "epoch sampler"])
def test_a_stop_between_two_epochs(tmp_path, name):
    check_resume(name, tmp_path, 8)
    check_resume(name, tmp_path, 16)


def test_fulmen_draws_what_a_plain_loop_draws():
    for name in ("shuffled", "own generator", "batch sampler", "single samples"):
        seed(5)
        by_hand = [[plain(batch) for batch in made] for made in [LOADERS[name]()] for _ in range(2)]
        seed(5)
        source = Source(LOADERS[name](), "train_dataloader")
        assert [[plain(batch) for batch in source.begin(epoch)] for epoch in range(2)] == by_hand


def test_random_numbers_of_workers_differ_between_batches_epochs_and_runs():
    seed(5)
    source = source_of("workers")
    first = [row[1] for batch in source.begin(0) for row in plain(batch)]
    second = [row[1] for batch in source.begin(1) for row in plain(batch)]
    seed(6)
    third = [row[1] for batch in source_of("workers").begin(0) for row in plain(batch)]
    assert len({*first, *second, *third}) == 3 * NUM_SAMPLES


def test_the_numbers_do_not_depend_on_how_many_workers_there_are():
    found = []
    for num_workers in (1, 2):
        seed(5)
        source = Source(loader(shuffle=True, num_workers=num_workers), "train_dataloader")
        found.append([plain(batch) for batch in source.begin(0)])
    assert found[0] == found[1]


def test_skipped_samples_are_not_loaded():
    made = DataLoader(Watched(), BATCH_SIZE, shuffle=True)
    seed(5)
    source = Source(made, "train_dataloader")
    order = [index for batch in source.begin(0) for index in batch.tolist()]
    again = Source(DataLoader(Watched(), BATCH_SIZE, shuffle=True), "train_dataloader")
    again.load_state_dict(source.state_dict(batches=5))
    assert sum(1 for _ in again.begin(0)) == 3
    assert again.loader.dataset.read == order[15:]


def test_stateful_parts_load_nothing_twice_and_say_nothing():
    for make in (lambda: DataLoader(StatefulStream(), BATCH_SIZE), StatefulLoader):
        source = Source(make(), "train_dataloader")
        iterator = source.begin(0)
        first = [next(iterator) for _ in range(3)]
        state = source.state_dict(batches=3)
        again = Source(make(), "train_dataloader")
        again.load_state_dict(state)
        rest = list(again.begin(0))
        assert len(rest) == NUM_BATCHES - 3
        part = again.loader if isinstance(again.loader, StatefulLoader) else again.loader.dataset
        assert part.read[0] == (4 if part is again.loader else 10)
        assert plain(first[-1]) != plain(rest[0])


REPLAYED = (
    "[resume-replay] train_dataloader cannot say where it stands, so the 5 batches that were used before are loaded and "
    "thrown away. To skip them, give its dataset state_dict and load_state_dict, or use a map-style dataset"
)


@pytest.mark.parametrize("name", ["stream", "stream and a worker"])
def test_what_cannot_say_where_it_stands_is_replayed_with_a_warning(tmp_path, name):
    with pytest.warns(FulmenWarning) as caught:
        check_resume(name, tmp_path, 5)
    assert [str(warning.message) for warning in caught] == [REPLAYED]


def test_a_generator_is_replayed_with_a_warning():
    source = Source((value for value in range(8)), "train_dataloader")
    list(source.begin(0))
    again = Source((value for value in range(8)), "train_dataloader")
    again.load_state_dict(source.state_dict(batches=5))
    with pytest.warns(FulmenWarning) as caught:
        assert list(again.begin(0)) == [5, 6, 7]
    assert [str(warning.message) for warning in caught] == [REPLAYED]


def test_a_list_is_replayed_silently():
    source = Source([1, 2, 3], "train_dataloader")
    source.begin(0)
    again = Source([1, 2, 3], "train_dataloader")
    again.load_state_dict(source.state_dict(batches=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(again.begin(0)) == [3]


def test_everything_that_wants_to_know_the_epoch_is_told():
    told = []

    class Told(Watched):
        def set_epoch(self, epoch):
            told.append(("dataset", epoch))

    class Sampled(ByEpoch):
        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            told.append(("sampler", epoch))

    list(Source(DataLoader(Told(), BATCH_SIZE, sampler=Sampled()), "train_dataloader").begin(4))
    assert sorted(told) == [("dataset", 4), ("sampler", 4)]


def test_persistent_workers_end_with_the_source():
    source = source_of("workers that persist")
    list(source.begin(0))
    (process, _) = source._served._iterator._workers
    assert process.is_alive()
    source.close()
    process.join(30)
    assert not process.is_alive()


def test_a_loader_is_left_as_it_was():
    made = loader(shuffle=True, num_workers=1)
    before = dict(vars(made))
    source = Source(made, "train_dataloader")
    list(source.begin(0))
    assert vars(made) == before


def test_a_dataset_in_a_worker_is_still_itself():
    dataset = SeededDataset(Watched())
    assert (len(dataset), dataset.read) == (NUM_SAMPLES, [])
    dataset.extra = 3
    assert dataset.inner.extra == dataset.extra == 3
    assert dataset[(7, 2)] == 2
    assert dataset.__getitems__((7, [1, 2])) == [1, 2]
    with pytest.raises(AttributeError):
        dataset.missing  # noqa: B018


# ---- Shares and order


def test_each_rank_draws_its_share():
    made = DataLoader(Watched(), BATCH_SIZE, shuffle=True, drop_last=True)
    shared = distributed(made, {"num_replicas": 2, "rank": 1}, shuffle=True, seed=3)
    assert isinstance(shared.sampler, DistributedSampler)
    assert (type(shared.sampler.order), shared.sampler.rank, shared.drop_last) == (RandomSampler, 1, True)
    assert len(shared) == 3
    assert distributed(shared, {"num_replicas": 2, "rank": 1}, shuffle=True, seed=3) is shared
    ordered = distributed(DataLoader(Watched(), 2), {"num_replicas": 2, "rank": 0}, shuffle=True, seed=3)
    assert list(ordered.sampler) == list(range(0, NUM_SAMPLES, 2))
    for kept in (DataLoader(Stream()), StatefulLoader(), iter([1, 2])):
        assert distributed(kept, {"num_replicas": 2, "rank": 0}, shuffle=True, seed=3) is kept
    ready = distributed([1, 2, 3], {"num_replicas": 2, "rank": 1}, shuffle=True, seed=3)
    assert list(ready) == [2, 1]
    assert (Source(ready, "train_dataloader").gives_ahead, Source([1], "train_dataloader").gives_ahead) == (True, True)


def test_shuffling_can_be_taken_out():
    made = DataLoader(Watched(), BATCH_SIZE, shuffle=True)
    assert [batch.tolist() for batch in in_order(made)][:2] == [[0, 1, 2], [3, 4, 5]]
    for kept in (DataLoader(Watched(), BATCH_SIZE), [2, 1]):
        assert in_order(kept) is kept


def test_a_subclass_of_dataloader_stays_one():
    class Special(DataLoader):
        def __init__(self, dataset, **options):
            super().__init__(dataset, shuffle=True, **options)
            self.extra = 1

    served = with_sampler(Special(Watched(), batch_size=2), RandomSampler(Watched()))
    assert type(served) is Special
    assert served.extra == 1


def test_a_batch_sampler_of_ones_own_cannot_be_rebuilt():
    with pytest.raises(ConfigurationError) as caught:
        with_sampler(DataLoader(Watched(), batch_sampler=OwnBatches()), RandomSampler(Watched()))
    assert str(caught.value) == (
        "the loader's batch_sampler is a OwnBatches, in which fulmen cannot replace the sampler; set "
        "use_distributed_sampler=False and let it give each rank its share"
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluations_give_every_sample_to_one_rank(size):
    """Training pads, so that all ranks have as many; an evaluation that did would count samples twice."""
    data = DataLoader(list(range(7)), batch_size=2)
    shares = [distributed(data, {"num_replicas": size, "rank": rank}, shuffle=False, seed=0) for rank in range(size)]
    assert sorted(int(value) for share in shares for batch in share for value in batch) == list(range(7))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    padded = [distributed(data, {"num_replicas": size, "rank": rank}, shuffle=True, seed=0) for rank in range(size)]
    assert len({sum(len(batch) for batch in share) for share in padded}) == 1
