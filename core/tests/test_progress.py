"""The integers that say where a training is."""

from __future__ import annotations

from functools import partial

import pytest

from fulmen.progress import BATCH, EPOCH_ENDED, EPOCH_ENDING, LOGGED, PLATEAU, SCHEDULED, VALIDATED, Progress


def test_a_position_comes_back():
    progress = Progress(epoch=2, batch=5, batches=21, step=10, updates=9, evaluated=4, settled=VALIDATED)
    again = Progress()
    again.load_state_dict(progress.state_dict())
    assert again == progress
    assert {type(value) for value in progress.state_dict().values()} == {int}


def test_an_ended_epoch_is_the_start_of_the_next_before_the_last_hooks_of_the_one_before():
    progress, seen = Progress(epoch=2, batch=8, batches=24, settled=EPOCH_ENDING), []
    progress.once(EPOCH_ENDED, [lambda: seen.append(progress.state_dict())])
    assert (seen[0]["epoch"], seen[0]["batch"], seen[0]["settled"], seen[0]["fired"]) == (3, 0, EPOCH_ENDED, 1)
    assert (progress.epoch, progress.batch) == (2, 8)


@pytest.mark.parametrize("cut", range(1, 4))
def test_calls_are_made_once_wherever_they_are_cut(cut):
    made, saved = [], []
    before, after = Progress(settled=LOGGED), Progress()

    def call(progress, number):
        made.append(number)
        if progress is before and number == cut:
            saved.append(progress.state_dict())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        before.once(VALIDATED, [partial(call, before, number) for number in (1, 2, 3)])
    assert not before.is_done(VALIDATED)
    after.load_state_dict(saved[0])
    for _ in range(2):
        after.once(VALIDATED, [partial(call, after, number) for number in (1, 2, 3)])
        after.once(SCHEDULED, [partial(call, after, "earlier")])
    assert made == [1, 2, 3]
    assert after.is_done(VALIDATED) and after.is_done(SCHEDULED) and not after.is_done(PLATEAU)


def test_calls_that_nobody_can_tell_apart_are_all_made_or_none():
    begun, validated = Progress(settled=LOGGED, fired=1), Progress(settled=VALIDATED, fired=1)
    begun.forget_calls(), validated.forget_calls()
    assert not begun.is_done(LOGGED) and validated.is_done(VALIDATED)


def test_an_epoch_is_complete_when_its_end_is_settled_and_not_where_it_was_cut():
    """A validation inside an epoch settles too: the end of an epoch that was cut there is no complete one."""
    complete = {state: Progress(settled=state).epoch_is_complete for state in range(7)}
    assert complete == {
        BATCH: False, LOGGED: False, SCHEDULED: True, VALIDATED: False, PLATEAU: True, EPOCH_ENDING: True, EPOCH_ENDED: True
    }  # fmt: skip
