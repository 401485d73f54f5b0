"""When a training stops, on which values, and that a resume does not change it."""

from __future__ import annotations

import math

import pytest
import torch
from fulmen_early_stopping import EarlyStopping, EarlyStoppingReason

import fulmen.callbacks
from fulmen import Callback, ConfigurationError, FulmenWarning, ModuleError
from fulmen.testing import Regression, batches, quiet


class Scripted(Regression):
    """Logs the given values as ``score``, one for each validation; ``None``: logs nothing."""

    def __init__(self, values, name="score"):
        super().__init__()
        self.values, self.name = [*values], name

    def validation_step(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            return self.log(self.name, 1e9)
        at = self.trainer.progress.batches // self.every - 1
        if self.values[at] is not None:
            self.log(self.name, torch.tensor(self.values[at], dtype=torch.float64))
        return None

    every = 2


def fit(callback, values, path=None, data=2, others=(), name="score", **options):
    trainer = quiet(**{"max_epochs": len(values), "callbacks": [callback, *others], **options})
    trainer.fit(Scripted(values, name), batches(data), batches(1), ckpt_path=path)
    return trainer


FLAT = [5.0, 4.0, 4.0, 4.5, 4.0, 3.0, 9.0, 9.0]


def test_it_stops_after_patience_checks_without_improvement():
    callback = EarlyStopping("score", patience=3)
    trainer = fit(callback, FLAT)
    assert (trainer.current_epoch, callback.stopped_epoch, callback.wait_count) == (5, 4, 3)
    assert (float(callback.best_score), callback.best_score.ndim) == (4.0, 0)
    assert callback.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert callback.stopping_reason_message == "score did not improve in the last 3 checks; the best was 4.000"
    assert trainer.stop_reason == callback.stopping_reason_message


def test_without_a_reason_it_does_not_stop():
    callback = EarlyStopping("score", patience=4)
    trainer = fit(callback, FLAT)
    assert (trainer.current_epoch, callback.stopped_epoch, callback.wait_count) == (8, 0, 2)
    assert (callback.stopping_reason, callback.stopping_reason_message) == (EarlyStoppingReason.NOT_STOPPED, None)


@pytest.mark.parametrize(
    ("options", "values", "epochs", "reason"),
    [
        ({"patience": 0}, FLAT, 3, "PATIENCE_EXHAUSTED"),
        ({"patience": 1}, FLAT, 3, "PATIENCE_EXHAUSTED"),
        ({"min_delta": 1.0, "patience": 1}, [5, 3.9, 3.0], 3, "PATIENCE_EXHAUSTED"),
        ({"min_delta": 1.0, "patience": 1}, [5, 4.0, 3.0], 2, "PATIENCE_EXHAUSTED"),  # by exactly min_delta is not enough
        ({"mode": "max", "patience": 2}, [1, 2, 1, 1.5, 3], 4, "PATIENCE_EXHAUSTED"),
        ({"mode": "max", "min_delta": 0.5, "patience": 1}, [1, 1.6, 2.0, 9], 3, "PATIENCE_EXHAUSTED"),
        ({"stopping_threshold": 2.0}, [5, 2.0, 1.9, 0], 3, "STOPPING_THRESHOLD"),
        ({"mode": "max", "stopping_threshold": 2.0}, [1, 2.0, 2.1, 9], 3, "STOPPING_THRESHOLD"),
        ({"divergence_threshold": 9.0}, [5, 9.0, 9.1, 0], 3, "DIVERGENCE_THRESHOLD"),
        ({"mode": "max", "divergence_threshold": 1.0}, [5, 1.0, 0.9, 9], 3, "DIVERGENCE_THRESHOLD"),
        ({}, [5, math.nan, 1], 2, "NON_FINITE_METRIC"),
        ({}, [5, -math.inf, 1], 2, "NON_FINITE_METRIC"),
        ({"check_finite": False, "patience": 2}, [math.nan, math.nan, 1], 2, "PATIENCE_EXHAUSTED"),
        ({"check_finite": False, "patience": 2}, [math.nan, 1, math.inf, 0.5], 4, "NOT_STOPPED"),
    ],
)
def test_each_option_decides(options, values, epochs, reason):
    callback = EarlyStopping("score", **options)
    trainer = fit(callback, values)
    assert (trainer.current_epoch, callback.stopping_reason.name) == (epochs, reason)


def test_the_reason_says_the_value_and_the_limit():
    callback = EarlyStopping("score", stopping_threshold=2.0)
    fit(callback, [5, 1.5])
    assert callback.stopping_reason_message == "score = 1.5 is better than stopping_threshold=2.0"
    callback = EarlyStopping("score", divergence_threshold=2.0)
    fit(callback, [5, 1.5])
    assert callback.stopping_reason_message == "score = 5.0 is worse than divergence_threshold=2.0"
    callback = EarlyStopping("score")
    fit(callback, [5, math.nan])
    assert callback.stopping_reason_message == "score = nan is not finite; the best was 5.000"


def test_validations_inside_an_epoch_count_each():
    callback = EarlyStopping("score", patience=2)
    trainer = fit(callback, [5, 6, 7, 8], data=8, val_check_interval=2, max_epochs=1)
    assert (trainer.current_epoch, trainer.global_step, callback.wait_count) == (0, 6, 2)


def test_at_the_ends_of_epochs_only():
    callback = EarlyStopping("score", patience=1, check_on_train_epoch_end=True)
    trainer = fit(callback, [5, 6, 4, 3, 9, 9], data=4, val_check_interval=2, max_epochs=3)
    assert (trainer.current_epoch, float(callback.best_score)) == (3, 3.0)  # saw 6, 3, 9


def test_after_validations_only():
    class Late(Callback):
        def on_train_epoch_end(self, trainer, module):
            module.log("late", 1.0)

    callback = EarlyStopping("score", patience=2, check_on_train_epoch_end=False)
    trainer = fit(callback, [5, 6, 7, 8], data=8, val_check_interval=2, max_epochs=1)
    assert (trainer.current_epoch, trainer.global_step, callback.wait_count) == (0, 6, 2)
    assert fit(EarlyStopping("late", patience=1), FLAT, others=[Late()]).current_epoch == 2
    with pytest.raises(ModuleError, match=r"EarlyStopping monitors 'late', which was never logged; logged are: score"):
        fit(EarlyStopping("late", check_on_train_epoch_end=False), FLAT, others=[Late()])


def test_an_epoch_without_a_validation_is_not_counted():
    callback = EarlyStopping("score", patience=2)
    trainer = fit(callback, [0, 5, 0, 5, 0, 5, 0, 5], check_val_every_n_epoch=2)
    assert (trainer.current_epoch, callback.wait_count) == (6, 2)


def test_a_value_that_was_not_measured_again_is_not_counted():
    callback = EarlyStopping("score", patience=1)
    trainer = fit(callback, [5, None, None, 4])
    assert (trainer.current_epoch, callback.wait_count, float(callback.best_score)) == (4, 0, 4.0)


def test_a_metric_of_the_training_step():
    class Trains(Regression):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", float(self.trainer.current_epoch), on_epoch=True, on_step=False)
            return super().training_step(batch, batch_idx)

    for check in (None, True):
        callback = EarlyStopping("train_loss", patience=2, check_on_train_epoch_end=check)
        trainer = quiet(max_epochs=9, callbacks=callback)
        trainer.fit(Trains(), batches(2))
        assert (trainer.current_epoch, callback.wait_count) == (3, 2)


def test_the_sanity_check_is_not_looked_at():
    callback = EarlyStopping("score", divergence_threshold=100.0)
    trainer = fit(callback, [5, 4], num_sanity_val_steps=2)
    assert (trainer.current_epoch, float(callback.best_score)) == (2, 4.0)


def test_min_epochs_come_first_and_the_first_reason_stays():
    callback = EarlyStopping("score", patience=1)
    trainer = fit(callback, [5, 6, 1, 1, 1], min_epochs=4)
    assert (trainer.current_epoch, callback.stopped_epoch) == (4, 1)
    assert trainer.stop_reason == "score did not improve in the last 1 checks; the best was 5.000"


# ---- A metric that is not there


def test_an_unknown_metric_is_an_error_that_lists_what_was_logged():
    with pytest.raises(ModuleError) as caught:
        fit(EarlyStopping("scroe"), FLAT)
    assert str(caught.value) == "EarlyStopping monitors 'scroe', which was never logged; logged are: score"
    with pytest.raises(ModuleError, match=r"which was never logged; logged are: score$"):
        fit(EarlyStopping("scroe", check_on_train_epoch_end=False), FLAT, val_check_interval=1, fast_dev_run=2)
    with pytest.raises(ModuleError, match=r"logged are: \(none\)"):
        quiet(max_epochs=2, callbacks=EarlyStopping("score")).fit(Regression(), batches(2))


def test_an_unknown_metric_is_no_error_before_the_first_validation():
    trainer = fit(EarlyStopping("score"), FLAT, check_val_every_n_epoch=3, max_epochs=2)
    assert trainer.status == "finished"
    with pytest.raises(ModuleError, match="scroe"):
        fit(EarlyStopping("scroe"), FLAT, check_val_every_n_epoch=3)


def test_an_unknown_metric_is_one_warning_where_it_is_not_strict():
    with pytest.warns(FulmenWarning) as caught:
        trainer = fit(EarlyStopping("scroe", strict=False), FLAT)
    assert [str(warning.message) for warning in caught] == [
        "[early-stopping-metric] EarlyStopping monitors 'scroe', which was never logged; logged are: score. Nothing is "
        "checked, because of strict=False"
    ]
    assert trainer.current_epoch == 8


def test_checks_after_validations_need_validations():
    with pytest.raises(ConfigurationError) as caught:
        quiet(max_epochs=1, callbacks=EarlyStopping("x", check_on_train_epoch_end=False)).fit(Regression(), batches(2))
    assert str(caught.value) == (
        "EarlyStopping check_on_train_epoch_end=False checks after validations, and this training has none; leave it out, or "
        "set it to True"
    )


# ---- What it says


def test_verbose_prints_improvements_and_the_reason(capsys):
    fit(EarlyStopping("score", patience=1, min_delta=0.25, verbose=True), [5, 4, 3.9])
    assert capsys.readouterr().out.splitlines() == [
        "score improved. New best score: 5.000",
        "score improved by 1.000, which is more than 0.25. New best score: 4.000",
        "score did not improve in the last 1 checks; the best was 4.000",
    ]
    fit(EarlyStopping("score", patience=1), [5, 6])
    assert capsys.readouterr().out == ""


# ---- Resume


class Keeping(Callback):
    """Saves after every validation and at the end of every epoch, when all others have acted."""

    runs_last = True

    def __init__(self, folder):
        self.folder, self.paths = folder, []

    def _save(self, trainer, moment):
        path = self.folder / f"{len(self.paths):02}-{moment}.ckpt"
        trainer.save_checkpoint(path)
        self.paths.append(path)

    def on_validation_end(self, trainer, module):
        if trainer.validating:
            self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer, module):
        self._save(trainer, "epoch")


def outcome(trainer, callback):
    numbers = (trainer.current_epoch, trainer.global_step, callback.wait_count, float(callback.best_score))
    return (*numbers, callback.stopped_epoch, callback.stopping_reason, callback.stopping_reason_message)


@pytest.mark.parametrize("check", [None, True, False])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2, "max_epochs": 4}, {"min_epochs": 6}])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(tmp_path, check, options):
    data = 4 if "val_check_interval" in options else 2
    whole, keeping = EarlyStopping("score", patience=3, check_on_train_epoch_end=check), Keeping(tmp_path)
    expected = outcome(fit(whole, FLAT, others=[keeping], data=data, **options), whole)
    assert len(keeping.paths) >= 8
    for path in keeping.paths:
        callback = EarlyStopping("score", patience=3, check_on_train_epoch_end=check)
        trainer = fit(callback, FLAT, path, data=data, others=[Keeping(tmp_path / "again")], **options)
        assert outcome(trainer, callback) == expected, path.name


@pytest.mark.filterwarnings("ignore:.*nothing-left.*")
def test_a_run_that_stopped_goes_on_where_it_gets_more_room(tmp_path):
    keeping = Keeping(tmp_path)
    fit(EarlyStopping("score", patience=2), FLAT, others=[keeping])
    same, patient = EarlyStopping("score", patience=2), EarlyStopping("score", patience=3)
    assert fit(same, FLAT, keeping.paths[-1], others=[Keeping(tmp_path / "1")]).current_epoch == 4
    assert same.stopped_epoch == 3
    assert fit(patient, FLAT, keeping.paths[-1], others=[Keeping(tmp_path / "2")]).current_epoch == 5
    assert (patient.wait_count, patient.stopped_epoch) == (3, 4)


def test_a_second_fit_starts_to_count_anew():
    callback = EarlyStopping("score", patience=3)
    fit(callback, FLAT)
    assert fit(callback, FLAT).current_epoch == 5


def test_what_is_measured_when_the_training_is_cut_is_not_counted(tmp_path):
    class Cut(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step == 3

    callback, keeping = EarlyStopping("score", patience=2), Keeping(tmp_path)
    trainer = fit(callback, [5, 6, 7, 8], others=[keeping, Cut()])
    assert (trainer.global_step, callback.wait_count, trainer.callback_metrics["score"]) == (3, 0, 5.0)
    again = EarlyStopping("score", patience=2)
    assert fit(again, [5, 6, 7, 8], keeping.paths[-1], others=[Keeping(tmp_path / "again")]).stop_reason.startswith("score did")


def test_its_state_is_plain_and_a_test_leaves_it(tmp_path):
    callback, keeping = EarlyStopping("score", patience=3), Keeping(tmp_path)

    class Tested(Scripted):
        def test_step(self, batch, batch_idx):
            self.log("x", 1.0)

    trainer = quiet(max_epochs=8, callbacks=[callback, keeping])
    trainer.fit(Tested(FLAT), batches(2), batches(1))
    state = torch.load(keeping.paths[1], weights_only=True)["callbacks"]["EarlyStopping{'monitor': 'score', 'mode': 'min'}"]
    assert (state["wait_count"], state["stopping_reason"]) == (0, "not_stopped")
    trainer.test(dataloaders=batches(1), ckpt_path=keeping.paths[1], verbose=False)
    assert (callback.wait_count, callback.stopped_epoch) == (3, 4)


def test_two_of_them_keep_their_states_apart():
    callbacks = [EarlyStopping("score", patience=9), EarlyStopping("score", mode="max", patience=2)]
    trainer = quiet(max_epochs=8, callbacks=callbacks)
    trainer.fit(Scripted(FLAT), batches(2), batches(1))
    assert (trainer.current_epoch, callbacks[0].wait_count, callbacks[1].wait_count) == (3, 1, 2)
    assert trainer.early_stopping_callbacks == callbacks
    with pytest.raises(ConfigurationError, match="two callbacks keep their state under"):
        fit(EarlyStopping("score"), FLAT, others=[EarlyStopping("score")])


# ---- Arguments


WRONG = [
    ({"mode": "auto"}, "EarlyStopping mode='auto' is not allowed; allowed: 'min', 'max'"),
    ({"min_delta": -0.1}, "EarlyStopping min_delta=-0.1 is not allowed; allowed: a number from 0"),
    ({"min_delta": math.nan}, "EarlyStopping min_delta=nan is not allowed; allowed: a number from 0"),
    ({"patience": -1}, "EarlyStopping patience=-1 is not allowed; allowed: a whole number from 0"),
    ({"patience": 1.5}, "EarlyStopping patience=1.5 is not allowed; allowed: a whole number from 0"),
    ({"stopping_threshold": "1"}, "EarlyStopping stopping_threshold='1' is not allowed; allowed: a number, or None"),
    ({"divergence_threshold": math.nan}, "EarlyStopping divergence_threshold=nan is not allowed; allowed: a number, or None"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_say_which_are_right(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        EarlyStopping("score", **arguments)
    assert str(caught.value) == message


def test_it_is_given_by_name():
    trainer = quiet(callbacks="early_stopping?monitor=val_acc&mode=max&patience=7&min_delta=0.5")
    (callback,) = trainer.callbacks
    assert (callback.monitor, callback.mode, callback.patience, callback.min_delta) == ("val_acc", "max", 7, 0.5)
    assert fulmen.callbacks.EarlyStopping is EarlyStopping is type(callback)
