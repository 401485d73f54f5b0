"""Processes that come together in a store, which may hold what earlier ones have left."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist
from ddp_checks import JOB, finished, free_port, slurm_variables
from fulmen_ddp import meeting
from fulmen_ddp.failures import RankError

LIMIT = timedelta(seconds=60)


def connections(size):
    first = dist.TCPStore("127.0.0.1", 0, None, True, LIMIT, wait_for_workers=False)
    return [first, *(dist.TCPStore("127.0.0.1", first.port, None, False, LIMIT) for _ in range(size - 1))]


def meet_all(stores, delays):
    names = {}

    def come(rank):
        time.sleep(delays[rank])
        names[rank] = meeting.meet(stores[rank], rank, len(stores), LIMIT)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [names[rank] for rank in range(len(stores))]


@pytest.mark.parametrize("delays", [(0, 0, 0), (0.3, 0, 0), (0, 0.3, 0.1)])
def test_all_get_the_same_name_and_a_new_one_each_time(delays):
    """Whoever comes first: rank 0 finds the words of ranks that are gone, and others find a list without theirs."""
    stores, found = connections(3), []
    for _ in range(3):
        names = meet_all(stores, delays)
        assert len(set(names)) == 1
        found += names[:1]
    assert len(set(found)) == 3


def test_who_does_not_come_is_named():
    stores = connections(3)
    stores[2].set("fulmen/word/2", "from a rank that is gone")
    with pytest.raises(RankError) as error:
        meeting.meet(stores[0], 0, 3, timedelta(seconds=0.2))
    assert str(error.value) == "after 0.2 s, not all processes were here; there was no word from rank 1"


def test_a_rank_may_come_before_the_one_that_has_the_store(script, tmp_path):
    """Later than by ``timeout_s``, of 6 s in this job."""
    port = free_port()
    second = script(JOB, "ddp", tmp_path, "late", 2, **slurm_variables(1, 2, port))
    time.sleep(9)
    first = script(JOB, "ddp", tmp_path, "late", 2, **slurm_variables(0, 2, port))
    (status, output), (also, said) = map(finished, (first, second))
    assert (status, also) == (0, 0), output + said
