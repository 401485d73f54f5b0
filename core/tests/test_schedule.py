"""When a training validates."""

from __future__ import annotations

import pytest

from fulmen import ConfigurationError, Options
from fulmen.progress import Progress
from fulmen.schedule import ValidationSchedule


def schedule(batches=10.0, **options):
    return ValidationSchedule.of(Options(**options), batches)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ValidationSchedule()),
        ({"val_check_interval": 0.25}, ValidationSchedule(every=2)),
        ({"val_check_interval": 0.01}, ValidationSchedule(every=1)),
        ({"val_check_interval": 4}, ValidationSchedule(every=4)),
        ({"val_check_interval": 40, "check_val_every_n_epoch": None}, ValidationSchedule(every=40, epochs=None)),
        ({"val_check_interval": "00:00:01:00"}, ValidationSchedule(seconds=60.0)),
        ({"check_val_every_n_epoch": 3}, ValidationSchedule(epochs=3)),
        ({"val_check_interval": 4, "fast_dev_run": True}, ValidationSchedule()),
    ],
)
def test_options_become_a_schedule(options, expected):
    assert schedule(**options) == expected


def test_an_interval_that_never_comes_is_an_error():
    with pytest.raises(ConfigurationError) as caught:
        schedule(val_check_interval=11)
    assert str(caught.value) == (
        "val_check_interval=11 is more than the 10 batches of an epoch, so validation would never run; to count batches over "
        "the whole training: check_val_every_n_epoch=None"
    )


def test_a_fraction_of_an_unknown_length_is_an_error():
    with pytest.raises(ConfigurationError) as caught:
        schedule(float("inf"), val_check_interval=0.5)
    assert str(caught.value) == (
        "val_check_interval=0.5 is a fraction of an epoch, and the train_dataloader does not know its length; give a number "
        "of batches, a duration, or 1.0 for the end of the epoch"
    )


def test_batches_are_counted_in_the_epoch_or_over_the_training():
    inside, across = schedule(val_check_interval=4), schedule(val_check_interval=4, check_val_every_n_epoch=None)
    progress = Progress(epoch=1, batch=2, batches=12)
    assert not inside.due_after_batch(progress)
    assert across.due_after_batch(progress)


def test_epochs_without_validation():
    third = schedule(val_check_interval=5, check_val_every_n_epoch=3)
    assert [third.inside(epoch) for epoch in range(4)] == [None, None, 5, None]
    assert [third.due_at_end(Progress(epoch=epoch, batch=10)) for epoch in range(4)] == [False, False, True, False]
