"""What users and plugins read on the trainer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen import Callback, Options, Trainer
from fulmen.known import ELSEWHERE
from fulmen.testing import Validated, batches, quiet, same_weights
from fulmen.trainer_names import TrainerNames


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


def test_parts_and_options_have_the_names_that_users_know(tmp_path):
    options = {"limit_val_batches": 2, "gradient_clip_val": 0.5, "log_every_n_steps": 3, "val_check_interval": 0.5}
    trainer = quiet(max_epochs=1, precision=64, accelerator="cpu", **options)
    assert (trainer.accelerator, trainer.strategy) == (trainer.runtime.accelerator, trainer.runtime.strategy)
    assert (trainer.precision, trainer.precision_plugin) == ("64-true", trainer.runtime.precision)
    shared = [name for name, value in vars(TrainerNames).items() if name in Options.__slots__ and isinstance(value, property)]
    assert set(options) < set(shared)
    assert {name: getattr(trainer, name) for name in shared} == {name: getattr(trainer.options, name) for name in shared}
    assert (trainer.lightning_module, trainer.ckpt_path) == (None, None)
    module = Validated()
    trainer.fit(module, batches(2), batches(2))
    assert trainer.lightning_module is trainer.model is module
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer = quiet(max_epochs=2, precision=64)
    trainer.fit(module, batches(2), batches(2), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.ckpt_path == str(tmp_path / "a.ckpt")


def test_an_option_that_is_read_only_cannot_be_set():
    with pytest.raises(AttributeError):
        quiet().limit_val_batches = 0


@pytest.mark.parametrize("name", ELSEWHERE["attribute"])
def test_what_has_another_name_here_says_which(name):
    for owner in (quiet(), Trainer):
        with pytest.raises(AttributeError) as caught:
            getattr(owner, name)
        assert str(caught.value) == f"Trainer has no attribute {name!r}; {ELSEWHERE['attribute'][name]}"
        assert not hasattr(owner, name)


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


def test_the_age_of_a_metric_says_whether_it_belongs_to_the_present_weights(tmp_path):
    seen = {}

    class Watch(Callback):
        runs_last = True
        names = ("train_loss_step", "train_loss_epoch", "train_loss", "val_loss", "nothing")

        def look(self, trainer, moment):
            seen[(moment, trainer.progress.batches)] = [trainer.metric_age(name) for name in self.names]

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.look(trainer, "batch")

        def on_validation_end(self, trainer, module):
            if trainer.validating:
                self.look(trainer, "validation")
                trainer.save_checkpoint(tmp_path / f"{trainer.progress.batches}.ckpt")

        def on_train_epoch_end(self, trainer, module):
            self.look(trainer, "epoch")

    def train(epochs, path=None):
        trainer = quiet(max_epochs=epochs, callbacks=Watch(), val_check_interval=3)
        trainer.fit(Validated(), batches(4), batches(1), ckpt_path=path)
        return trainer

    assert quiet(max_epochs=1).metric_age("val_loss") is None
    trainer = train(2)
    assert trainer.enable_validation and not quiet().enable_validation
    whole = dict(seen)
    assert whole[("batch", 1)] == [0, None, None, None, None]
    assert whole[("validation", 3)] == [0, None, None, 0, None]
    assert whole[("epoch", 4)] == [0, 0, 0, 1, None]
    assert whole[("batch", 6)] == [0, 2, 2, 3, None]
    assert whole[("validation", 7)] == [0, 3, 3, 0, None]
    seen.clear()
    train(2, tmp_path / "3.ckpt")
    assert seen and {key: whole[key] for key in seen} == seen


def test_one_more_pass_over_the_data_leaves_the_training_as_it_is():
    passes = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.progress.batches in (3, 11):
                passes.append([x for x, _ in trainer.another_pass()])

    class Shuffled(Validated):
        def train_dataloader(self):
            pairs = [(x[0], y[0]) for x, y in batches()]
            return DataLoader(pairs, batch_size=1, shuffle=True)

    modules = []
    for callbacks in ([], [Look()]):
        modules.append(Shuffled())
        torch.manual_seed(4)
        quiet(max_epochs=2, limit_val_batches=0, limit_train_batches=6, callbacks=callbacks).fit(modules[-1])
    assert same_weights(*modules) and modules[0].losses == modules[1].losses
    assert [len(found) for found in passes] == [6, 6]


def test_epochs_that_are_complete():
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, module):
            seen.append(("validation", trainer.progress.epoch_is_complete))

        def on_validation_start(self, trainer, module):
            seen.append(("start", trainer.progress.epoch_is_complete))

        def on_train_epoch_end(self, trainer, module):
            seen.append(("epoch", trainer.progress.epoch_is_complete))

    options = {"num_sanity_val_steps": 0, "val_check_interval": 4, "callbacks": Look()}
    quiet(max_epochs=2, max_steps=12, **options).fit(Validated(), batches(), batches(2))
    inside, end = [("start", False), ("validation", False)], [("start", True), ("validation", False)]
    assert seen == [*inside, *end, ("epoch", True), *inside, ("epoch", False)]
