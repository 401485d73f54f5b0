"""Datasets and loaders of every kind that a resume must get right."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulmen import CombinedLoader

NUM_SAMPLES = 32


def sample(index: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """A sample, with random numbers from every generator that people use."""
    noise = torch.rand(1).item() + random.random() + np.random.rand()
    x = torch.tensor([index / 32.0, (index % 5) / 5.0, 1.0]) + 0.1 * noise
    return index, x, x[:1] - x[1:2]


class Augmented(Dataset[Any]):
    """Keeps the order in which its samples are loaded, where that is this process."""

    def __init__(self, size: int = NUM_SAMPLES) -> None:
        self.size, self.loaded = size, []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        return sample(index)


class Unchanged(Augmented):
    """Without random numbers."""

    def __getitem__(self, index: int) -> Any:
        x = torch.tensor([index / 32.0, (index % 5) / 5.0, 1.0])
        return index, x, x[:1] - x[1:2]


class StatefulStream(IterableDataset[Any]):
    """A stream that says where it stands."""

    def __init__(self, size: int = NUM_SAMPLES) -> None:
        self.size, self.position = size, 0

    def __iter__(self) -> Any:
        while self.position < self.size:
            self.position += 1
            yield sample(self.position - 1)
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Stream(IterableDataset[Any]):
    """A stream that does not, in an order that is drawn when it starts."""

    def __iter__(self) -> Any:
        for index in torch.randperm(NUM_SAMPLES).tolist():
            yield sample(index)


def loader(setup: Any, dataset: Any, **options: Any) -> DataLoader[Any]:
    own: dict[str, Any] = {"batch_size": setup.batch_size, "num_workers": setup.workers}
    if setup.workers:
        own.update(persistent_workers=setup.persistent, prefetch_factor=setup.prefetch)
    own.update(options)
    if not own["num_workers"]:
        own.update(persistent_workers=False, prefetch_factor=None)
    return DataLoader(dataset, **own)


def several(setup: Any, mode: Any) -> CombinedLoader:
    return CombinedLoader(
        {"long": loader(setup, Augmented(29), shuffle=True), "short": loader(setup, Augmented(11), shuffle=True)}, mode
    )


def torchdata_loader(setup: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    data = Unchanged() if setup.workers else Augmented()  # torchdata does not continue what its workers draw
    return StatefulDataLoader(data, batch_size=setup.batch_size, shuffle=True, num_workers=setup.workers)


TRAINING = {
    "one": lambda setup: loader(setup, Augmented(), shuffle=True),
    "own generator": lambda setup: loader(setup, Augmented(), shuffle=True, generator=torch.Generator().manual_seed(3)),
    "dropping": lambda setup: loader(setup, Augmented(), shuffle=True, drop_last=True),
    "min_size": lambda setup: several(setup, "min_size"),
    "max_size_cycle": lambda setup: several(setup, "max_size_cycle"),
    "max_size": lambda setup: several(setup, "max_size"),
    "stream": lambda setup: loader(setup, Stream()),
    "stateful stream": lambda setup: loader(setup, StatefulStream()),
    "torchdata": torchdata_loader,
}


def loaders_for(setup: Any) -> tuple[Any, Any]:
    """The loaders for training, and two that are validated one after the other, both with random numbers."""
    options = {"num_workers": setup.val_workers}
    validation = [
        loader(setup, Augmented(5), shuffle=True, **options),
        loader(setup, Augmented(4), generator=torch.Generator().manual_seed(8), shuffle=True, **options),
    ]
    return TRAINING[setup.loaders](setup), validation
