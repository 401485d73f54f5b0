"""How ranks share data that cannot be divided, and how what they make of it is put together."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen.source import dealt, distributed, has_none


def loader(count, **options):
    return DataLoader(TensorDataset(torch.arange(count)), **options)


def numbers(shared):
    return [batch[0].flatten().tolist() for batch in shared]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("uneven", "counts"), [("drop", [3, 3, 3]), ("pad", [4, 4, 4]), (None, [4, 4, 4]), ("join", [4, 4, 3])]
)
def test_training_samples_that_are_left_over(uneven, counts, shuffle):
    seen = []
    for rank in range(3):
        given = loader(11, batch_size=1, shuffle=shuffle)
        shared = distributed(given, {"num_replicas": 3, "rank": rank}, shuffle=True, seed=0, uneven=uneven)
        torch.manual_seed(5)  # ranks begin an epoch with the same states
        seen.append(numbers(shared))
        assert len(shared) == max(counts)
    assert [len(share) for share in seen] == counts
    assert len({number for share in seen for (number,) in share}) == min(11, sum(counts))


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 2, "drop_last": True}, {"batch_size": None}])
@pytest.mark.parametrize("size", [2, 3])
def test_batches_are_dealt_in_turn(size, options):
    whole = numbers(loader(7, **options))
    ranks = [dealt(loader(7, **options), {"num_replicas": size, "rank": rank}) for rank in range(size)]
    assert [numbers(shared) for shared in ranks] == [whole[rank::size] for rank in range(size)]


def test_a_rank_that_is_dealt_nothing_is_not_one_without_data():
    shared = [dealt(loader(2, batch_size=2), {"num_replicas": 2, "rank": rank}) for rank in range(2)]
    assert [has_none(each) for each in shared] == [False, True]
    assert not has_none(dealt(loader(0, batch_size=2), {"num_replicas": 2, "rank": 1}))
    assert not has_none([1, 2])
