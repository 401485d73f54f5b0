"""What is reported, when, and how a training ends that is pruned."""

from __future__ import annotations

import optuna
import pytest
from fulmen_optuna import OptunaPruning
from optuna_studies import DATA, Scored

from fulmen import ConfigurationError, ModuleError
from fulmen.testing import RecordingLogger, Regression, batches, quiet

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Never(optuna.pruners.BasePruner):
    """Prunes at a step."""

    def __init__(self, at=10**9):
        self.at, self.asked = at, []

    def prune(self, study, trial):
        self.asked.append(trial.last_step)
        return trial.last_step >= self.at


def trial_of(at=10**9, **options):
    study = optuna.create_study(pruner=Never(at), **options)
    return study, study.ask()


def values(study):
    return study.get_trials()[0].intermediate_values


def fit(trial, module=None, ckpt_path=None, **options):
    callback = OptunaPruning(trial, "score")
    trainer = quiet(**{"max_epochs": 4, "callbacks": callback, **options})
    trainer.fit(module or Scored(0.0), DATA, batches(1), ckpt_path=ckpt_path)
    return trainer


def test_each_validation_is_reported_and_the_sanity_check_is_not():
    study, trial = trial_of()
    fit(trial)
    assert values(study) == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}


def test_validations_inside_an_epoch_and_every_second_epoch():
    study, trial = trial_of()
    fit(trial, max_epochs=2, val_check_interval=0.5)
    assert values(study) == {0: 0.0, 1: 0.0, 2: 1.0, 3: 1.0}
    study, trial = trial_of()
    fit(trial, check_val_every_n_epoch=2)
    assert values(study) == {0: 1.0, 1: 3.0}


def test_a_pruned_training_ends_cleanly_and_raises_afterwards():
    study, trial = trial_of(at=1)
    logger, callback = RecordingLogger(), OptunaPruning(trial, "score")
    trainer = quiet(max_epochs=4, callbacks=callback, logger=logger)
    with pytest.raises(optuna.TrialPruned) as caught:
        trainer.fit(Scored(0.0), DATA, batches(1))
    assert str(caught.value) == "trial 0 was pruned at step 1: score = 1" == trainer.stop_reason
    assert (trainer.status, trainer.current_epoch, values(study)) == ("finished", 2, {0: 0.0, 1: 1.0})
    assert study.trials[0].user_attrs["pruned"] == "trial 0 was pruned at step 1: score = 1"
    trainer.validate(Scored(0.0), batches(1), verbose=False)  # raises nothing
    callback.teardown(trainer, trainer.module, "fit")


def test_min_epochs_come_first():
    study, trial = trial_of(at=0)
    with pytest.raises(optuna.TrialPruned):
        fit(trial, min_epochs=3)
    assert values(study) == {0: 0.0}
    assert study.pruner.asked == [0]


class TrainScored(Regression):
    def training_step(self, batch, batch_idx):
        self.log("score", 7.0, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def test_without_validation_the_training_epoch_counts():
    study, trial = trial_of()
    callback = OptunaPruning(trial, "score")
    quiet(max_epochs=2, callbacks=callback).fit(TrainScored(), DATA)
    assert values(study) == {0: 7.0, 1: 7.0}


def test_a_metric_that_is_not_there_is_an_error():
    _, trial = trial_of()
    with pytest.raises(ModuleError) as caught:
        quiet(max_epochs=1, callbacks=OptunaPruning(trial, "scroe")).fit(Scored(0.0), DATA, batches(1))
    assert str(caught.value) == "OptunaPruning monitors 'scroe', which was never logged; logged are: score"


def test_several_objectives_cannot_be_pruned():
    _, trial = trial_of(directions=["minimize", "maximize"])
    with pytest.raises(ConfigurationError) as caught:
        OptunaPruning(trial, "score")
    assert str(caught.value) == (
        "OptunaPruning cannot prune a study with 2 objectives: Optuna knows no pruning there; leave it out"
    )


# ---- Resume


def test_a_resumed_trial_goes_on_with_the_next_step(tmp_path):
    study, trial = trial_of(at=3)
    trainer = fit(trial, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(optuna.TrialPruned):
        fit(trial, ckpt_path=tmp_path / "a.ckpt", max_epochs=9)
    assert values(study) == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0} and study.pruner.asked == [0, 1, 2, 3]


def test_what_the_study_knows_is_neither_reported_nor_judged_again(tmp_path):
    study, trial = trial_of(at=4)
    trainer = fit(trial, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for step in (1, 2):  # reported, and then the process crashed before it saved
        trial.report(float(step), step)
    with pytest.raises(optuna.TrialPruned):
        fit(trial, ckpt_path=tmp_path / "a.ckpt", max_epochs=9)
    assert study.pruner.asked == [0, 3, 4] and list(values(study)) == [0, 1, 2, 3, 4]


def test_a_pruned_trial_that_is_resumed_stops_at_once(tmp_path):
    study, trial = trial_of(at=1)
    trainer = quiet(max_epochs=4, callbacks=OptunaPruning(trial, "score"))
    with pytest.raises(optuna.TrialPruned):
        trainer.fit(Scored(0.0), DATA, batches(1))
    state = {"count": 2, "position": 8, "reason": "trial 0 was pruned at step 1: score = 1", "validated": True}
    callback = OptunaPruning(trial, "score")
    callback.load_state_dict(state)
    assert callback.state_dict() == state
    fresh = fit(optuna.trial.FixedTrial({}), max_epochs=1)
    fresh.save_checkpoint(tmp_path / "a.ckpt")
    payload = __import__("torch").load(tmp_path / "a.ckpt", weights_only=True)
    payload["callbacks"] = {callback.state_key: state}
    __import__("torch").save(payload, tmp_path / "b.ckpt")
    with pytest.raises(optuna.TrialPruned, match="trial 0 was pruned at step 1"):
        fit(trial, ckpt_path=tmp_path / "b.ckpt", max_epochs=9)
    assert study.pruner.asked == [0, 1]
