"""Studies: in real storages, in several processes, continued, with trials that fail and processes that die."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import optuna
import optuna_studies as studies
import pytest
import torch
from fulmen_optuna import optimize
from optuna.trial import TrialState

from fulmen import ConfigurationError, FulmenError, FulmenWarning, ModuleError
from fulmen.testing import QUIET, batches

optuna.logging.set_verbosity(optuna.logging.WARNING)
TRAINER = {**QUIET, "max_epochs": 3}


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path):
    return f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else str(tmp_path / "study.journal")


def states(study):
    return [trial.state.name for trial in study.get_trials()]


def test_a_study_is_continued_up_to_its_number_of_trials(storage):
    first = optimize(studies.square, n_trials=3, storage=storage, study_name="a")
    second = optimize(studies.square, n_trials=5, storage=storage, study_name="a")
    third = optimize(studies.square, n_trials=5, storage=storage, study_name="a")
    assert [len(study.trials) for study in (first, second, third)] == [5, 5, 5]  # one study, seen through three objects
    assert len(optimize(studies.square, n_trials=1, storage=storage, study_name="b").trials) == 1


def test_direction_sampler_and_memory():
    study = optimize(studies.square, n_trials=4, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    again = optimize(studies.square, n_trials=4, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    assert study.best_value == max(trial.value for trial in study.trials)
    assert [trial.params for trial in study.trials] == [trial.params for trial in again.trials]


def test_modules_are_trained_pruned_and_the_best_is_kept(tmp_path):
    study = optimize(
        studies.scored, studies.DATA, batches(1), n_trials=6, monitor="score", trainer=TRAINER, folder=tmp_path,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    assert {"COMPLETE", "PRUNED"} == set(states(study))
    best = study.best_trial
    assert best.value == pytest.approx(best.params["goal"] + 2)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == [f"trial-{best.number:04d}.ckpt"]
    assert best.user_attrs["checkpoint"] == str(tmp_path / f"trial-{best.number:04d}.ckpt")


def test_the_weights_are_those_of_the_best_trial(tmp_path):
    study = optimize(studies.real, studies.DATA, batches(2), n_trials=3, monitor="val_loss", trainer=TRAINER, folder=tmp_path)
    module = studies.Validated.load_from_checkpoint(study.best_trial.user_attrs["checkpoint"]).eval()
    with torch.no_grad():
        losses = [torch.nn.functional.mse_loss(module(x), y) for x, y in batches(2)]
    assert float(sum(losses) / 2) == pytest.approx(study.best_value, rel=1e-5)
    assert module.hparams.lr == study.best_params["lr"]


def test_a_trial_that_fails_is_marked_and_the_study_goes_on(storage):
    with pytest.warns(FulmenWarning) as caught:
        study = optimize(studies.fails_at_1, n_trials=3, storage=storage)
    assert [str(each.message) for each in caught] == [
        "[trial-failed] trial 1 failed: ValueError: no luck. Its traceback is in study.trials[1].user_attrs['error']; the "
        "study goes on"
    ]
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert 'raise ValueError("no luck")' in study.trials[1].user_attrs["error"]


def test_or_the_study_stops(storage):
    with pytest.raises(ValueError, match="no luck"):
        optimize(studies.fails_at_1, n_trials=3, storage=storage, on_error="stop")
    study = optimize(studies.square, n_trials=3, storage=storage)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.parametrize("value", [math.nan, None, "much", [1.0, 2.0], torch.ones(2)])
def test_a_value_that_is_no_number_is_a_failed_trial_and_the_study_goes_on(storage, value):
    def objective(trial):
        x = trial.suggest_float("x", -1.0, 1.0)
        return value if trial.number % 2 else x

    with pytest.warns(FulmenWarning) as caught:
        optimize(objective, n_trials=2, storage=storage)
    with pytest.warns(FulmenWarning, match="trial 3 failed"):
        study = optimize(objective, n_trials=4, storage=storage)  # goes on with other parameters
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert str(caught[0].message) == (
        f"[trial-failed] trial 1 failed: ModuleError: the objective returned {value!r}, which is no value of a trial: a study "
        "compares numbers, and NaN is none. Its traceback is in study.trials[1].user_attrs['error']; the study goes on"
    )
    assert "ModuleError" in study.trials[3].user_attrs["error"] and len({trial.params["x"] for trial in study.trials}) == 4


def test_or_the_study_stops_at_it(storage):
    with pytest.raises(ModuleError, match=r"^the objective returned nan, which is no value"):
        optimize(lambda trial: math.nan, n_trials=2, storage=storage, on_error="stop")
    assert states(optimize(studies.square, n_trials=2, storage=storage)) == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize(("value", "expected"), [([2.0], 2.0), (math.inf, math.inf), (torch.tensor(3.0), 3.0), (True, 1.0)])
def test_values_that_optuna_takes(value, expected):
    assert optimize(lambda trial: value, n_trials=1).best_value == expected


def test_a_metric_that_is_nan_is_a_failed_trial_and_its_weights_go(tmp_path):
    options = {"n_trials": 2, "monitor": "score", "trainer": TRAINER, "folder": tmp_path, "storage": tmp_path / "s.journal"}
    with pytest.warns(FulmenWarning, match="trial 1 failed: ModuleError: the metric 'score' is nan"):
        study = optimize(studies.diverges_at_1, studies.DATA, batches(1), **options)
    assert states(study) == ["COMPLETE", "FAIL"] and study.best_trial.number == 0
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["trial-0000.ckpt"]


def test_a_warning_that_is_an_error_leaves_no_running_trial(storage):
    with warnings.catch_warnings(), pytest.raises(FulmenWarning, match="trial-failed"):
        warnings.simplefilter("error")
        optimize(lambda trial: None, n_trials=2, storage=storage)
    assert states(optimize(studies.square, n_trials=2, storage=storage)) == ["FAIL", "COMPLETE"]


def test_ctrl_c_ends_the_trial_and_the_study(storage):
    with pytest.raises(KeyboardInterrupt, match="trial 0 was interrupted"):
        optimize(studies.interrupted, studies.DATA, batches(1), n_trials=3, monitor="score", trainer=TRAINER, storage=storage)
    study = optimize(studies.square, n_trials=2, storage=storage)
    assert states(study) == ["FAIL", "COMPLETE"] and "KeyboardInterrupt" in study.trials[0].user_attrs["error"]


# ---- Processes


def test_workers_share_a_study(storage):
    study = optimize(studies.slow_square, n_trials=5, storage=storage, workers=2)
    assert states(study) == ["COMPLETE"] * 5
    assert len({trial.user_attrs["process"] for trial in study.trials}) == 2


def test_workers_train_modules_and_keep_the_best(tmp_path):
    study = optimize(
        studies.real, studies.DATA, batches(2), n_trials=4, monitor="val_loss", trainer=TRAINER, folder=tmp_path / "runs",
        storage=str(tmp_path / "study.journal"), workers=2, sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )  # fmt: skip
    assert states(study) == ["COMPLETE"] * 4 and len({trial.params["lr"] for trial in study.trials}) == 4
    assert [str(path) for path in (tmp_path / "runs").glob("*.ckpt")] == [study.best_trial.user_attrs["checkpoint"]]


def test_a_failure_in_a_worker_stops_all(tmp_path):
    with pytest.raises(ModuleError, match=r"^trial 1 failed, so the study was stopped:(.|\n)*ValueError: no luck"):
        optimize(studies.fails_at_1, n_trials=30, storage=tmp_path / "s.journal", workers=2, on_error="stop")


def test_a_worker_that_is_killed_is_replaced_and_its_trial_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("FULMEN_TEST_MARKER", str(tmp_path / "marker"))
    with pytest.warns(
        FulmenWarning, match=r"\[worker-died\] a worker of the study ended with exit status -9; trials to repeat: \[1\]"
    ):
        study = optimize(studies.dies_once, n_trials=4, storage=f"sqlite:///{tmp_path}/s.db", workers=2)
    failed = study.trials[1]
    assert (
        failed.state is TrialState.FAIL
        and "ended without a word; its parameters are queued again" in failed.user_attrs["error"]
    )
    complete = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert len(complete) == 4 and failed.params in [trial.params for trial in complete]


def test_a_study_whose_process_died_is_continued(storage):
    study = optimize(studies.square, n_trials=1, storage=storage)
    orphan = study.ask()
    orphan.suggest_float("x", -1.0, 1.0)
    orphan.set_user_attr("process", study.trials[0].user_attrs["process"].rpartition(":")[0] + ":999999999")
    alive = study.ask()
    alive.set_user_attr("process", "elsewhere:1")
    study = optimize(studies.square, n_trials=3, storage=storage)
    assert states(study) == ["COMPLETE", "FAIL", "RUNNING", "COMPLETE", "COMPLETE"]
    assert study.trials[3].params == study.trials[1].params


# ---- Refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_trials": 0}, "optimize n_trials=0 is not allowed; allowed: a whole number from 1"),
        ({"workers": 0}, "optimize workers=0 is not allowed; allowed: a whole number from 1"),
        ({"on_error": "ignore"}, "optimize on_error='ignore' is not allowed; allowed: 'continue', 'stop'"),
        ({"direction": "down"}, "optimize direction='down' is not allowed; allowed: 'minimize', 'maximize'"),
        (
            {"workers": 2},
            "optimize workers=2 needs a storage that processes share; pass storage='study.journal' or "
            "storage='sqlite:///study.db'",
        ),
        (
            {"storage": 5},
            "optimize storage=5 is not allowed; allowed: None, a database URL, the path of a journal file, or a storage "
            "of Optuna",
        ),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ConfigurationError) as caught:
        optimize(studies.square, **{"n_trials": 1, **options})
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {},
            "optimize needs monitor= with train_dataloaders, val_dataloaders, trainer: they are for an objective that returns "
            "a module, and which metric is its value?",
        ),
        ({"monitor": "loss"}, "OptunaPruning monitors 'loss', which was never logged; logged are: score"),
    ],
)
def test_wrong_options_for_modules(options, text):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        optimize(studies.scored, studies.DATA, batches(1), n_trials=1, trainer=TRAINER, on_error="stop", **options)
    assert str(caught.value) == text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_module_without_monitor_ends_the_study_at_once(tmp_path, workers):
    storage = str(tmp_path / "study.journal")
    with pytest.raises(FulmenError, match="optimize needs monitor= where the objective returns a module"):
        optimize(studies.with_data, n_trials=30, storage=storage, workers=workers)
    found = states(optimize(studies.square, n_trials=3, storage=storage))
    assert found.count("FAIL") <= workers and set(found) == {"FAIL", "COMPLETE"}


def test_the_direction_of_a_study_stays(storage):
    optimize(studies.square, n_trials=1, storage=storage)
    with pytest.raises(ConfigurationError, match=r"has direction 'minimize', and not 'maximize'; choose another study_name$"):
        optimize(studies.square, n_trials=1, storage=storage, direction="maximize")


def test_data_modules_are_copied_and_loggers_get_folders(tmp_path):
    options = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    study = optimize(studies.scored, studies.DATA, batches(1), n_trials=2, monitor="score", trainer=options, folder=tmp_path)
    assert states(study) == ["COMPLETE", "COMPLETE"]
    assert {Path(path).parts[len(tmp_path.parts)] for path in tmp_path.rglob("metrics.csv")} == {"trial-0000", "trial-0001"}
