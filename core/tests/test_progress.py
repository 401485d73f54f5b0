"""The integers that say where a training is."""

from __future__ import annotations

from fulmen.progress import BATCH, EPOCH_ENDED, LOGGED, PLATEAU, SCHEDULED, VALIDATED, Progress


def test_the_order_of_what_follows_a_batch():
    assert sorted({BATCH, LOGGED, SCHEDULED, VALIDATED, PLATEAU, EPOCH_ENDED}) == [
        BATCH,
        LOGGED,
        SCHEDULED,
        VALIDATED,
        PLATEAU,
        EPOCH_ENDED,
    ]


def test_a_position_comes_back():
    progress = Progress(epoch=2, batch=5, batches=21, step=10, updates=9, evaluated=4, settled=VALIDATED)
    again = Progress()
    again.load_state_dict(progress.state_dict())
    assert again == progress
    assert {type(value) for value in progress.state_dict().values()} == {int}


def test_an_ended_epoch_is_the_start_of_the_next_before_the_last_hooks_of_the_one_before():
    progress = Progress(epoch=2, batch=8, batches=24, settled=EPOCH_ENDED)
    state = progress.state_dict()
    assert (state["epoch"], state["batch"], state["settled"], state["batches"]) == (3, 0, EPOCH_ENDED, 24)
    assert (progress.epoch, progress.batch) == (2, 8)


def test_an_epoch_is_complete_when_its_end_is_settled_and_not_where_it_was_cut():
    """A validation inside an epoch settles too: the end of an epoch that was cut there is no complete one."""
    complete = {state: Progress(settled=state).epoch_is_complete for state in range(6)}
    assert complete == {BATCH: False, LOGGED: False, SCHEDULED: True, VALIDATED: False, PLATEAU: True, EPOCH_ENDED: True}
