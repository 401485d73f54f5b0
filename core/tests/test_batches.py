"""Batches of every shape: moved, mapped, measured."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fulmen import FulmenWarning, ModuleError
from fulmen.batches import batch_size_of, map_tensors, move_to_device, warn_if_ambiguous

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Sample:
    x: torch.Tensor
    name: str = "a"
    size: int = field(default=0, init=False)


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor


class Movable:
    """Any object with ``.to``, as tokenizers return."""

    def __init__(self, device="cpu"):
        self.device = device

    def to(self, device):
        return Movable(device)


def t(*shape):
    return torch.zeros(*shape)


def test_every_collection_is_moved_and_keeps_its_type():
    batch = {
        "list": [t(2), "text", None, 3],
        "tuple": (t(2), (t(1),)),
        "named": Pair(t(2), Sample(t(2), "b")),
        "ordered": OrderedDict(b=t(1), a=t(1)),
        "user": UserDict(a=t(1)),
        "frozen": Frozen(t(3)),
        "object": Movable(),
    }
    moved = move_to_device(batch, "meta")
    assert [type(value) for value in moved.values()] == [list, tuple, Pair, OrderedDict, UserDict, Frozen, Movable]
    tensors = [
        moved["list"][0],
        moved["tuple"][1][0],
        moved["named"].y.x,
        moved["ordered"]["b"],
        moved["user"]["a"],
        moved["frozen"].x,
    ]
    assert {str(tensor.device) for tensor in tensors} == {"meta"}
    assert moved["object"].device == "meta"
    assert moved["list"][1:] == ["text", None, 3]
    assert (moved["named"].y.name, list(moved["ordered"])) == ("b", ["b", "a"])
    assert batch["list"][0].device.type == "cpu"


def test_a_default_dictionary_keeps_its_default():
    batch = defaultdict(list, a=t(2))
    moved = move_to_device(batch, "meta")
    assert type(moved) is defaultdict
    assert moved["a"].device.type == "meta"
    assert moved["missing"] == []


def test_what_a_data_class_does_not_take_is_kept_too():
    sample = Sample(t(2))
    sample.size = 5
    assert move_to_device(sample, "meta").size == 5
    assert sample.x.device.type == "cpu"


def test_packed_sequences_know_how_to_move():
    moved = move_to_device(pack_sequence([t(3, 2), t(1, 2)]), "meta")
    assert isinstance(moved, PackedSequence)
    assert moved.data.device.type == "meta"


def test_a_function_is_applied_to_every_tensor():
    assert map_tensors({"a": [torch.ones(1), (2, "b")]}, lambda tensor: tensor + 1) == {"a": [torch.tensor([2.0]), (2, "b")]}


SIZES = [
    (t(4, 3), 4),
    (torch.tensor(1.0), 1),
    ([t(5), t(7)], 5),
    ({"name": "a", "x": (None, t(6, 1))}, 6),
    (Pair(t(3), t(2)), 3),
    (Sample(t(8)), 8),
    (np.zeros((9, 2)), 9),
]


@pytest.mark.parametrize(("batch", "size"), SIZES, ids=range(len(SIZES)))
def test_the_batch_size_is_the_first_dimension(batch, size):
    assert batch_size_of(batch) == size


def test_a_batch_without_tensors_has_no_size():
    with pytest.raises(ModuleError) as caught:
        batch_size_of(["a", 1])
    assert str(caught.value) == (
        "the batch size cannot be told from a list, which holds no tensor; pass it: self.log(..., batch_size=len(batch))"
    )


def test_tensors_that_differ_in_size_are_a_warning():
    with pytest.warns(FulmenWarning) as caught:
        warn_if_ambiguous({"x": t(4, 2), "y": t(3)})
    assert str(caught[0].message) == (
        "[batch-size] the tensors of a batch differ in their first dimension [4, 3]; the first is taken as the batch size that "
        "weighs epoch means. Pass the right one: self.log(..., batch_size=...)"
    )
    assert warn_if_ambiguous([t(4), t(4, 2)]) is None
