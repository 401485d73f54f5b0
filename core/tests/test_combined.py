"""Several loaders as one, in four modes."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen import CombinedLoader, ConfigurationError, ModuleError
from fulmen.combined import is_collection

Both = namedtuple("Both", ["a", "b"])
MODES = [
    ("min_size", 2, [("a0", "b0"), ("a1", "b1")]),
    ("max_size_cycle", 3, [("a0", "b0"), ("a1", "b1"), ("a2", "b0")]),
    ("max_size", 3, [("a0", "b0"), ("a1", "b1"), ("a2", None)]),
]


def loaders():
    return ["a0", "a1", "a2"], ["b0", "b1"]


@pytest.mark.parametrize(("mode", "length", "batches"), MODES)
def test_loaders_together(mode, length, batches):
    combined = CombinedLoader(loaders(), mode)
    assert len(combined) == length
    assert list(combined) == [(batch, index, 0) for index, batch in enumerate(batches)]
    assert [batch for batch, _, _ in combined] == batches  # again, from the start


def test_loaders_one_after_the_other():
    combined = CombinedLoader(loaders(), "sequential")
    assert len(combined) == 5
    assert list(combined) == [("a0", 0, 0), ("a1", 1, 0), ("a2", 2, 0), ("b0", 0, 1), ("b1", 1, 1)]


def test_a_cycle_lasts_as_long_as_the_longest_whichever_that_is():
    short, long = range(2), range(5)
    assert [batch for batch, _, _ in CombinedLoader([short, long], "max_size_cycle")] == [
        [0, 0], [1, 1], [0, 2], [1, 3], [0, 4],
    ]  # fmt: skip


def test_batches_have_the_shape_of_the_collection():
    nested = {"x": [range(2), (range(5, 7), range(2))], "y": Both(range(2), {"z": range(3, 6)})}
    batch, _, _ = next(iter(CombinedLoader(nested)))
    assert batch == {"x": [0, (5, 0)], "y": Both(0, {"z": 3})}
    assert type(batch["y"]) is Both


def test_no_loaders_give_nothing():
    assert list(CombinedLoader([], "min_size")) == []
    assert len(CombinedLoader({}, "max_size")) == 0


def test_faults_say_what_is_wrong():
    with pytest.raises(ConfigurationError) as caught:
        CombinedLoader([], "longest")
    assert str(caught.value) == "mode='longest' is not one of min_size, max_size_cycle, max_size, sequential"
    with pytest.raises(ModuleError) as caught:
        list(CombinedLoader([iter([1]), [1, 2]], "max_size_cycle"))
    assert str(caught.value) == "loader 0 of a combination gave no batch when it was started again"


COLLECTIONS = [
    ({"a": DataLoader([1])}, True),
    ([DataLoader([1]), DataLoader([2])], True),
    ({"a": [DataLoader([1]), {"b": range(3)}]}, True),
    ([], False),
    ({}, False),
    (DataLoader([1]), False),
    ([[1, 2], [3, 4]], False),
    ([torch.zeros(2), torch.zeros(2)], False),
    ([(torch.zeros(2), torch.zeros(2))], False),
    ([{"x": torch.zeros(2)}], False),
    (["ab", "cd"], False),
    ("ab", False),
]


@pytest.mark.parametrize(("value", "expected"), COLLECTIONS, ids=range(len(COLLECTIONS)))
def test_what_is_a_collection_of_loaders_and_what_a_list_of_batches(value, expected):
    assert is_collection(value) is expected
