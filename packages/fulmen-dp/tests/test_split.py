"""Shares of batches of any form, and outputs joined again."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fulmen_dp.replicas import replicas
from fulmen_dp.split import gathered, merged, share, shares_of, size_of
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from fulmen import ModuleError

Pair = namedtuple("Pair", "x y")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    name: str


@given(size=some.integers(1, 100), count=some.integers(1, 12))
def test_shares_cover_the_batch_and_differ_by_one_at_most(size, count):
    shares = shares_of(size, count)
    lengths = [stop - start for start, stop in shares]
    assert len(shares) == min(size, count)
    assert [start for start, _ in shares] == [0, *(stop for _, stop in shares)][:-1]
    assert sum(lengths) == size and min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(size=some.integers(1, 20), count=some.integers(1, 6))
def test_what_is_split_is_joined_again(size, count):
    batch = {"x": torch.arange(size), "pair": Pair(torch.arange(size) * 2.0, torch.ones(size, 2)), "names": ["n"] * size}
    parts = [share(batch, size, each) for each in shares_of(size, count)]
    joined = gathered(parts)
    assert torch.equal(joined["x"], batch["x"]) and torch.equal(joined["pair"].x, batch["pair"].x)
    assert type(joined["pair"]) is Pair and joined["names"] == batch["names"]


def test_each_part_of_a_batch_is_cut_as_it_should_be():
    x = torch.arange(4)
    batch = OrderedDict(
        x=x,
        other=torch.arange(3),  # of another length: belongs to all
        number=torch.tensor(7),
        array=np.arange(4),
        names=("a", "b", "c", "d"),
        tensors=[x, x * 2, x * 3, x * 4],  # as many as samples, and not one per sample
        label="train",
        record=Record(x, "r"),
        nothing=None,
    )
    part = share(batch, size_of(batch), (1, 3))
    assert type(part) is OrderedDict
    assert part["x"].tolist() == part["array"].tolist() == part["record"].x.tolist() == [1, 2]
    assert part["other"].tolist() == [0, 1, 2] and part["number"] == 7 and part["names"] == ("b", "c")
    assert [each.tolist() for each in part["tensors"]] == [[1, 2], [2, 4], [3, 6], [4, 8]]
    assert (part["label"], part["record"].name, part["nothing"]) == ("train", "r", None)
    assert batch["record"].x is x


def test_what_cannot_be_split_says_so():
    with pytest.raises(ModuleError) as caught:
        size_of({"names": ["a"], "number": torch.tensor(1)})
    assert str(caught.value) == (
        "strategy 'dp' cannot split a dict that holds no tensor with a first dimension; give batches with tensors, or use "
        "one device"
    )
    packed = nn.utils.rnn.pack_padded_sequence(torch.ones(2, 2, 2), torch.tensor([2, 1]))
    with pytest.raises(ModuleError) as caught:
        share([torch.ones(2), packed], 2, (0, 1))
    assert str(caught.value) == (
        "strategy 'dp' cannot split a PackedSequence; make it in training_step from tensors of the batch, or use one device"
    )


def test_outputs_of_different_forms_say_so():
    with pytest.raises(ModuleError) as caught:
        gathered([torch.ones(1), {"loss": 1}])
    assert str(caught.value) == ("the steps of one batch must return the same form on all devices, and returned: Tensor, dict")
    with pytest.raises(ModuleError) as caught:
        gathered([{"a": 1}, {"b": 1}])
    assert str(caught.value) == "the steps of one batch must return the same keys on all devices, and returned: a; b"


def test_joined_outputs():
    assert gathered([None, None]) is None
    assert gathered([1, 2]) == [1, 2] and gathered(["a", "b"]) == ["a", "b"]
    assert gathered([Record(torch.ones(1), "a"), Record(torch.ones(2), "b")]).x.shape == (3,)
    assert gathered([torch.tensor(1), torch.tensor(2)]).tolist() == [1, 2]


def test_merged_outputs():
    losses = [torch.tensor(1.0), torch.tensor(4.0)]
    assert merged(losses, [2, 1], CPU, True) == merged(losses, [2, 1], CPU, False) == 2.0
    assert merged([torch.tensor(1), torch.tensor(2)], [1, 1], CPU, False).tolist() == [1, 2]  # counts are not averaged
    assert merged([torch.ones(1), torch.ones(1)], [1, 1], CPU, False).shape == (2,)  # one prediction each
    pairs = [(torch.tensor(1.0), 2), (torch.tensor(3.0), 4)]
    assert merged(pairs, [2, 4], CPU, True) == (4.0, 6)
    joined = merged(pairs, [2, 4], CPU, False)
    assert joined[0].tolist() == [1.0, 3.0] and joined[1] == [2, 4]


# ---- Copies of modules


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 3, batch_first=True)
        self.norm = nn.BatchNorm1d(3)
        self.register_parameter("absent", None)

    def forward(self, x):
        return self.norm(self.rnn(x)[0][:, -1])


def test_copies_compute_the_same_and_give_their_gradients_back():
    module = Net()
    (copy,) = replicas(module, [CPU, CPU])
    x = torch.rand(4, 5, 2)
    torch.testing.assert_close(copy(x), module(x))
    module.zero_grad()
    copy(x).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert [name for name, _ in copy.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert copy.absent is None
    assert (module.norm.num_batches_tracked.item(), copy.norm.num_batches_tracked.item()) == (1, 2)


def test_copies_are_on_their_device():
    from fulmen.testing import Regression

    module = Regression()
    (copy,) = replicas(module, [CPU, torch.device("meta")])
    assert {each.device.type for each in copy.parameters()} == {"meta"} == {copy.device.type}
    assert module.device.type == "cpu" and isinstance(copy, Regression) and type(copy).__name__ == "Regression"
    assert copy.net[0]._parameters["weight"].grad_fn is not None
