"""Data modules do nothing until they are told to, and are made of data sets."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import DataModule
from fulmen.contracts.data_hooks import DataHooks


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def dataset(size):
    return TensorDataset(torch.arange(float(size)))


def test_the_hooks_of_data_do_nothing():
    hooks, batch = DataModule(), torch.ones(1)
    assert isinstance(hooks, DataHooks)
    assert hooks.prepare_data() is hooks.setup("fit") is hooks.teardown("fit") is hooks.on_exception(ValueError()) is None
    assert hooks.train_dataloader() is hooks.val_dataloader() is hooks.test_dataloader() is hooks.predict_dataloader() is None
    assert hooks.on_before_batch_transfer(batch, 0) is hooks.on_after_batch_transfer(batch, 0) is batch
    assert hooks.transfer_batch_to_device([batch], torch.device("meta"), 0)[0].device.type == "meta"
    assert (hooks.state_dict(), hooks.load_state_dict({}), hooks.trainer) == ({}, None, None)


def test_a_data_module_from_data_sets():
    data = DataModule.from_datasets(dataset(8), [dataset(4), dataset(2)], predict_dataset=Stream(), batch_size=2)
    train, (first, second), predict = data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()
    assert isinstance(train.sampler, torch.utils.data.RandomSampler)
    assert isinstance(first.sampler, torch.utils.data.SequentialSampler)
    assert (len(train), len(first), len(second), train.batch_size) == (4, 2, 1, 2)
    assert [batch.tolist() for batch in predict] == [[0, 1], [2]]
    assert data.test_dataloader() is None
    several = DataModule.from_datasets({"a": dataset(4), "b": Stream()}, batch_size=4).train_dataloader()
    assert isinstance(several["a"], DataLoader)
    assert [batch.tolist() for batch in several["b"]] == [[0, 1, 2]]


def test_a_data_module_of_a_class_from_data_sets():
    class Named(DataModule):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def val_dataloader(self):
            return [1]

    data = Named.from_datasets([1, 2, 3], name="digits")
    assert (data.name, data.val_dataloader()) == ("digits", [1])
    assert [batch.item() for batch in data.train_dataloader()] != []
