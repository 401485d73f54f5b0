"""The trainer's options: which values are right, what is said of others, and that they survive JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen import ConfigurationError, Options, Trainer
from fulmen.options import seconds_of
from fulmen.testing import quiet

COUNT_OR_UNLIMITED = "a whole number from 0, or -1 for no limit"
LIMIT = "a number of batches (int from 0), or a fraction of them (float from 0.0 to 1.0)"
SECONDS = "seconds from 0, 'DD:HH:MM:SS', a timedelta, or its arguments as a mapping"
DURATION = "'DD:HH:MM:SS', a timedelta, or its arguments as a mapping"
INTERVAL = "a number of batches (int from 1), a fraction of an epoch (float up to 1.0), or a duration 'DD:HH:MM:SS'"
ACCUMULATE = "a whole number from 1, or {epoch: batches} such as {0: 1, 5: 4}"

WRONG = [
    ("max_epochs", "3", f"{COUNT_OR_UNLIMITED}, or None"),
    ("max_epochs", -2, f"{COUNT_OR_UNLIMITED}, or None"),
    ("max_epochs", True, f"{COUNT_OR_UNLIMITED}, or None"),
    ("max_epochs", 1.5, f"{COUNT_OR_UNLIMITED}, or None"),
    ("min_epochs", -1, "a whole number from 0, or None"),
    ("max_steps", -2, COUNT_OR_UNLIMITED),
    ("max_steps", 1e3, COUNT_OR_UNLIMITED),
    ("min_steps", "1", "a whole number from 0, or None"),
    ("max_time", -1, SECONDS),
    ("max_time", "1:00", DURATION),
    ("max_time", True, DURATION),
    ("max_time", timedelta(-1), "a duration from 0"),
    ("max_time", {"days": 10**10}, "the arguments of a timedelta, such as {'minutes': 30}"),
    ("max_time", {"minute": 1}, "the arguments of a timedelta, such as {'minutes': 30}"),
    ("limit_train_batches", 1.5, LIMIT),
    ("limit_val_batches", -1, LIMIT),
    ("limit_test_batches", "all", LIMIT),
    ("limit_predict_batches", True, LIMIT),
    ("overfit_batches", -0.5, LIMIT),
    ("fast_dev_run", -1, "True, False, or a number of batches"),
    ("fast_dev_run", "yes", "True, False, or a number of batches"),
    ("val_check_interval", 0, INTERVAL),
    ("val_check_interval", 1.5, INTERVAL),
    ("val_check_interval", True, INTERVAL),
    ("val_check_interval", "soon", DURATION),
    ("val_check_interval", "00:00:00:00", INTERVAL),
    ("val_check_interval", {"seconds": "1"}, "the arguments of a timedelta, such as {'minutes': 30}"),
    ("val_check_interval", {"seconds": -1}, "a duration from 0"),
    ("check_val_every_n_epoch", 0, "a whole number from 1, or None"),
    ("num_sanity_val_steps", -2, "a whole number from 0, or -1 for all"),
    ("log_every_n_steps", -1, "a whole number from 0"),
    ("accumulate_grad_batches", 0, ACCUMULATE),
    ("accumulate_grad_batches", {}, ACCUMULATE),
    ("accumulate_grad_batches", {"0": 1}, ACCUMULATE),
    ("accumulate_grad_batches", {0: 0}, ACCUMULATE),
    ("gradient_clip_val", -0.1, "a number from 0, or None"),
    ("gradient_clip_val", "1", "a number from 0, or None"),
    ("gradient_clip_algorithm", "l2", "'norm', 'value'"),
    ("deterministic", "yes", "True, False, 'warn', None"),
    ("deterministic", 1, "True, False, 'warn', None"),
    ("benchmark", "on", "True, False, None"),
    ("inference_mode", 1, "True, False"),
    ("use_distributed_sampler", "no", "True, False"),
    ("reload_dataloaders_every_n_epochs", -1, "a whole number from 0"),
    ("default_root_dir", 3, "a path or URL, or None for the current folder"),
    ("enable_checkpointing", "no", "True, False"),
    ("enable_progress_bar", 0, "True, False"),
    ("enable_model_summary", "x", "True, False"),
    ("detect_anomaly", "x", "True, False"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_a_wrong_value_says_which_are_right(name, value, allowed):
    with pytest.raises(ConfigurationError) as caught:
        Options(**{name: value})
    assert str(caught.value) == f"{name}={value!r} is not allowed; allowed: {allowed}"


def test_every_option_is_checked():
    assert {name for name, _, _ in WRONG} == {field.name for field in dataclasses.fields(Options)}
    for field in dataclasses.fields(Options):
        with pytest.raises(ConfigurationError, match=rf"^{field.name}=.*is not allowed; allowed: "):
            Options(**{field.name: object()})


CONTRADICTIONS = [
    (
        {"check_val_every_n_epoch": None, "val_check_interval": 0.5},
        "val_check_interval=0.5 is a fraction of an epoch, and check_val_every_n_epoch=None counts batches of the whole "
        "training: give a number of batches",
    ),
    ({"default_root_dir": ""}, "default_root_dir is empty; leave it out for the current folder"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ConfigurationError) as caught:
        Options(**options)
    assert str(caught.value) == message


def test_options_are_frozen():
    options = Options(max_epochs=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.max_epochs = 4
    with pytest.raises((AttributeError, TypeError)):
        options.another = 4
    assert options.max_epochs == 3


def test_a_schedule_is_copied():
    schedule = {0: 1, 4: 2}
    options = Options(accumulate_grad_batches=schedule)
    schedule[0] = 9
    assert options.accumulate_grad_batches == {0: 1, 4: 2}


COUNTS = st.integers(0, 1000)
LIMITS = st.one_of(COUNTS, st.floats(0, 1))
DURATIONS = st.one_of(  # above 0
    st.from_regex(r"[0-9]{1,3}:[0-9]{1,2}:[0-9]{1,2}:[1-9]", fullmatch=True),
    st.timedeltas(timedelta(microseconds=1), timedelta(days=50)),
    st.fixed_dictionaries({"hours": st.integers(0, 90), "minutes": st.integers(1, 90)}),
)
RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "max_epochs": st.one_of(st.none(), st.integers(-1, 1000)),
        "min_epochs": st.one_of(st.none(), COUNTS),
        "max_steps": st.integers(-1, 10**9),
        "min_steps": st.one_of(st.none(), COUNTS),
        "max_time": st.one_of(st.none(), st.floats(0, 1e7), DURATIONS),
        "limit_train_batches": LIMITS,
        "limit_val_batches": LIMITS,
        "limit_test_batches": LIMITS,
        "limit_predict_batches": LIMITS,
        "overfit_batches": LIMITS,
        "fast_dev_run": st.one_of(st.booleans(), COUNTS),
        "val_check_interval": st.one_of(st.none(), st.integers(1, 1000), st.floats(0, 1, exclude_min=True), DURATIONS),
        "check_val_every_n_epoch": st.integers(1, 100),
        "num_sanity_val_steps": st.integers(-1, 100),
        "log_every_n_steps": COUNTS,
        "accumulate_grad_batches": st.one_of(
            st.integers(1, 100), st.dictionaries(COUNTS, st.integers(1, 100), min_size=1, max_size=4)
        ),
        "gradient_clip_val": st.one_of(st.none(), st.floats(0, 1e6), COUNTS),
        "gradient_clip_algorithm": st.sampled_from(["norm", "value"]),
        "deterministic": st.sampled_from([True, False, "warn", None]),
        "benchmark": st.sampled_from([True, False, None]),
        "inference_mode": st.booleans(),
        "reload_dataloaders_every_n_epochs": COUNTS,
        "default_root_dir": st.sampled_from([None, "runs", Path("runs"), "s3://bucket/runs"]),
        "enable_checkpointing": st.booleans(),
    },
)


@given(RIGHT)
def test_options_survive_json(values):
    options = Options(**values)
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_json_with_another_name_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        Options.from_json({"max_epoch": 3})
    names = ", ".join(field.name for field in dataclasses.fields(Options))
    assert str(caught.value) == f"there is no option 'max_epoch'; did you mean 'max_epochs'?; options are: {names}"


def test_each_option_is_an_argument_of_the_trainer_with_the_same_default():
    parameters = inspect.signature(Trainer).parameters
    for field in dataclasses.fields(Options):
        assert parameters[field.name].default == field.default, field.name
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert quiet().options.max_epochs is None
    assert quiet(max_epochs=7, gradient_clip_val=0.5).options.to_json()["gradient_clip_val"] == 0.5


def test_none_is_the_default_where_it_means_nothing():
    names = [field.name for field in dataclasses.fields(Options) if field.name != "check_val_every_n_epoch"]
    assert Options(**dict.fromkeys(names)) == Options()
    assert Options(check_val_every_n_epoch=None).check_val_every_n_epoch is None


DURATIONS_IN_SECONDS = [
    ("00:00:00:90", 90.0),
    ("01:02:03:04", 93784.0),
    (timedelta(minutes=2), 120.0),
    ({"days": 1, "seconds": 1}, 86401.0),
]


@pytest.mark.parametrize(("value", "seconds"), DURATIONS_IN_SECONDS)
def test_durations_are_kept_in_seconds(value, seconds):
    assert seconds_of(value, "max_time") == seconds
    assert Options(max_time=value).max_time == seconds
    assert Options(val_check_interval=value).val_check_interval == {"seconds": seconds}


LENGTHS = [
    ({}, 1000, float("inf")),
    ({"max_epochs": 3}, 3, float("inf")),
    ({"max_epochs": -1}, float("inf"), float("inf")),
    ({"max_steps": 7}, float("inf"), 7),
    ({"max_time": 1.0}, float("inf"), float("inf")),
    ({"max_epochs": 2, "max_steps": 7}, 2, 7),
    ({"fast_dev_run": 4, "max_epochs": 9, "max_steps": 99}, 1, 4),
]


@pytest.mark.parametrize(("values", "epochs", "steps"), LENGTHS)
def test_how_long_options_let_a_training_be(values, epochs, steps):
    options = Options(**values)
    assert (options.num_epochs, options.num_steps) == (epochs, steps)


def test_batches_per_step_by_epoch():
    assert Options().accumulates is False
    assert Options(accumulate_grad_batches={0: 1, 5: 1}).accumulates is False
    options = Options(accumulate_grad_batches={2: 4, 5: 8})
    assert options.accumulates
    assert [options.accumulate_at(epoch) for epoch in (0, 1, 2, 4, 5, 50)] == [1, 1, 4, 4, 8, 8]


def test_the_limit_of_a_phase():
    phases = ("train", "validate", "test", "predict")
    limits = {"limit_train_batches": 1, "limit_val_batches": 2, "limit_test_batches": 3, "limit_predict_batches": 0}
    assert [Options(**limits).limit(phase) for phase in phases] == [1, 2, 3, 0]
    assert [Options(**limits, overfit_batches=9).limit(phase) for phase in phases] == [9, 9, 3, 0]
    assert [Options(**limits, fast_dev_run=5).limit(phase) for phase in phases] == [5, 5, 5, 0]
