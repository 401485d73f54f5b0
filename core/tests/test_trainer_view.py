"""What users and plugins read on the trainer."""

from __future__ import annotations

import math

import pytest

from fulmen import Callback
from fulmen.testing import Validated, batches, quiet


def test_before_a_run_there_is_nothing_to_see():
    trainer = quiet(max_epochs=3, max_steps=7)
    assert (trainer.status, trainer.stage, trainer.phase, trainer.module) == ("initializing", None, None, None)
    assert (trainer.current_epoch, trainer.global_step, trainer.stop_reason, trainer.should_stop) == (0, 0, None, False)
    assert (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics) == ({}, {}, {})
    assert (trainer.max_epochs, trainer.max_steps) == (3, 7)
    assert (quiet(max_epochs=-1).max_epochs, quiet(max_epochs=1).max_steps) == (-1, -1)
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank, trainer.num_nodes) == (
        1,
        0,
        0,
        0,
        1,
    )


def test_the_phases_of_the_runs():
    seen = []

    class Watch(Callback):
        def _look(self, trainer, *args):
            names = ("training", "sanity_checking", "validating", "testing", "predicting", "evaluating")
            seen.append((trainer.stage, trainer.phase, [name for name in names if getattr(trainer, name)]))

        on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = (
            lambda self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0: self._look(trainer)
        )

    trainer = quiet(max_epochs=1, callbacks=Watch())
    module = Validated()
    trainer.fit(module, batches(1), batches(1))
    trainer.validate(module, batches(1), verbose=False)
    trainer.test(module, batches(1), verbose=False)
    trainer.predict(module, batches(1))
    assert seen == [
        ("fit", "sanity_check", ["sanity_checking", "evaluating"]),
        ("fit", "train", ["training"]),
        ("fit", "validate", ["validating", "evaluating"]),
        ("validate", "validate", ["validating", "evaluating"]),
        ("test", "test", ["testing", "evaluating"]),
        ("predict", "predict", ["predicting"]),
    ]
    assert trainer.phase is None


def test_the_numbers_of_batches():
    trainer = quiet(max_epochs=1, limit_val_batches=1)
    trainer.fit(Validated(), batches(3), batches(5))
    assert trainer.num_training_batches == 3
    assert trainer.num_val_batches == [1]
    assert trainer.num_sanity_val_batches == [1]
    trainer = quiet(max_steps=2)
    trainer.fit(Validated(), iter(batches(3)), batches(5))
    assert math.isinf(trainer.num_training_batches)


def test_a_request_to_stop_can_be_taken_back():
    class Hesitating(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = True
            trainer.should_stop = False

    trainer = quiet(max_epochs=1, callbacks=Hesitating())
    trainer.fit(Validated(), batches(3), batches(1))
    assert (trainer.global_step, trainer.stop_reason) == (3, "max_epochs=1 reached")


def test_the_last_batch_is_known():
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(trainer.is_last_batch)

    quiet(max_epochs=1, callbacks=Look()).fit(Validated(), batches(3), batches(1))
    assert seen == [False, False, True]


@pytest.mark.parametrize("name", ["request_stop", "every"])
def test_what_needs_a_run_says_so(name):
    arguments = {"request_stop": ("why",), "every": (1.0, print)}[name]
    with pytest.raises(Exception, match="run"):
        getattr(quiet(), name)(*arguments)
