"""What keeps a resume from being exact, by name."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, Subset, TensorDataset

from fulmen.grade import generators_in, of_loader

OWN = " is a random generator of its own, whose state is in no checkpoint: draw from random, numpy.random or torch themselves"


class Augmented(Dataset):
    def __init__(self, **parts):
        self.__dict__.update(parts)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(8))


class Resumable(Stream):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Odd(Sampler):
    def __init__(self):
        self.order = np.random.RandomState(1)

    def __len__(self):
        return 8

    def __iter__(self):
        return iter(self.order.permutation(8).tolist())


POINTS = TensorDataset(torch.zeros(8, 1))


@pytest.mark.parametrize(
    "loader",
    [
        [torch.zeros(1)],
        DataLoader(POINTS, shuffle=True),
        DataLoader(POINTS, shuffle=True, generator=torch.Generator(), num_workers=2),
        DataLoader(POINTS, sampler=RandomSampler(POINTS, generator=torch.Generator())),
        DataLoader(Resumable()),
    ],
)
def test_what_is_exact(loader):
    assert of_loader(loader, "train_dataloader") == []


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (iter([1]), "train_dataloader is an iterator, which cannot be started again: give what it iterates over"),
        (
            DataLoader(Stream()),
            "train_dataloader: Stream cannot say where it stands, so it is read again up to there, which is exact only if it "
            "gives the same again: give it state_dict and load_state_dict, or use a map-style dataset",
        ),
        (
            DataLoader(Resumable(), num_workers=2),
            "train_dataloader: Resumable is read by workers, whose positions nobody knows: num_workers=0, or "
            "StatefulDataLoader",
        ),
        (DataLoader(Augmented(rng=np.random.default_rng(1))), f"train_dataloader: Augmented.rng{OWN}"),
        (DataLoader(Subset(Augmented(dice=random.Random(1)), [0])), f"train_dataloader: Subset.dataset.dice{OWN}"),
        (
            DataLoader(Augmented(transforms=[Augmented(), Augmented(noise=torch.Generator())])),
            f"train_dataloader: Augmented.transforms.noise{OWN}",
        ),
        (DataLoader(POINTS, sampler=Odd()), f"train_dataloader: Odd.order{OWN}"),
    ],
)
def test_what_is_not_and_how_to_get_it(loader, expected):
    assert of_loader(loader, "train_dataloader")[:1] == [expected]


def test_generators_inside_a_module():
    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    module[0].noise = torch.Generator()
    assert generators_in(module, "Net") == ["Net.0.noise"]
    assert generators_in(module, "Net", [module[0].noise]) == []
