"""From what a user passes to the parts of a trainer."""

from __future__ import annotations

import pytest

from fulmen import (
    Callback,
    Checkpoint,
    ClusterEnvironment,
    ConfigurationError,
    Logger,
    ModuleError,
    PluginError,
    Precision,
    ProgressBar,
    Trainer,
)
from fulmen.builtin.csv_logger import CSVLogger
from fulmen.builtin.recovery import RecoveryCheckpoint
from fulmen.parts import as_list, in_order, split_plugins, with_module_callbacks
from fulmen.testing import Regression, Validated, batches, quiet
from fulmen.testing.fakes import RecordingLogger


class Named(Logger):
    version = None

    def __init__(self, name):
        self._name = name

    @property
    def name(self):
        return self._name

    def log_metrics(self, metrics, step):
        pass


class Bar(ProgressBar):
    def redraw(self, trainer):
        pass

    def print(self, text):
        pass


class First(Callback):
    pass


class Saver(Checkpoint):
    pass


class OwnRecovery(RecoveryCheckpoint):
    pass


class Stopper(Callback):
    runs_last = True


class Local(ClusterEnvironment):
    creates_processes_externally, main_address, main_port = False, "localhost", 1
    detect = staticmethod(lambda: False)
    world_size = global_rank = local_rank = node_rank = lambda self: 0


def names(parts):
    return [type(part).__name__ for part in parts]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, []), (False, []), ("a", ["a"]), ({"name": "a"}, [{"name": "a"}]), (["a", 1], ["a", 1]), (("a",), ["a"]), (3, [3])],
)
def test_one_or_several_parts(value, expected):
    assert as_list(value) == expected


def test_loggers_are_given_in_any_form(tmp_path):
    assert quiet(logger=False).loggers == []
    assert quiet(logger=False).logger is None
    (default,) = quiet(logger=True, default_root_dir=tmp_path).loggers
    assert type(default) is CSVLogger
    assert names(quiet(logger=None).loggers) == names(quiet(logger="csv").loggers) == ["CSVLogger"]
    one, two = Named("one"), Named("two")
    trainer = quiet(logger=[one, two, {"name": "csv", "save_dir": str(tmp_path)}])
    assert trainer.loggers[:2] == [one, two]
    assert trainer.logger is one
    assert trainer.loggers[2].save_dir == str(tmp_path)


def test_in_a_fast_development_run_a_dummy_stands_for_each_logger(tmp_path):
    assert names(quiet(logger=[Named("one"), "csv"], fast_dev_run=True).loggers) == ["DummyLogger", "DummyLogger"]
    assert names(quiet(logger=None, fast_dev_run=1).loggers) == ["DummyLogger"]
    assert quiet(logger=False, fast_dev_run=True).logger is None
    with pytest.raises(PluginError, match="did you mean 'tensorboard'"):
        quiet(logger="tensorbord", fast_dev_run=True)
    trainer = quiet(logger=None, fast_dev_run=True, default_root_dir=tmp_path)
    trainer.fit(Regression(), batches(2))
    assert list(tmp_path.iterdir()) == [] and trainer.log_dir == str(tmp_path)


def test_the_default_callbacks():
    assert names(Trainer().callbacks) == ["ModelSummary", "ConsoleProgress", "RecoveryCheckpoint"]
    assert names(Trainer(max_time={"hours": 1}).callbacks) == [
        *("ModelSummary", "Timer", "ConsoleProgress", "RecoveryCheckpoint"),
    ]
    assert names(Trainer(fast_dev_run=True).callbacks) == ["ModelSummary", "ConsoleProgress"]
    assert quiet().callbacks == []


def test_what_is_given_replaces_the_default():
    trainer = Trainer(callbacks=[Bar(), "model_summary?max_depth=2", "recovery?every_n_steps=3", First()])
    assert names(trainer.callbacks) == ["Bar", "ModelSummary", "First", "RecoveryCheckpoint"]
    assert [type(c) for c in Trainer(callbacks=OwnRecovery()).checkpoint_callbacks] == [OwnRecovery]
    assert names(Trainer(callbacks=Saver()).callbacks)[-2:] == ["Saver", "RecoveryCheckpoint"]
    assert names(Trainer(callbacks=[Saver(), First()], fast_dev_run=True).callbacks)[0] == "First"


def test_those_that_run_last_run_last_and_savers_after_them():
    assert names(in_order([Saver(), Stopper(), First(), Bar()])) == ["First", "Bar", "Stopper", "Saver"]


def test_a_module_brings_callbacks_of_its_own():
    class Bringing(Regression):
        def configure_callbacks(self):
            return [First(), Saver()]

    mine = First()
    found = with_module_callbacks([mine, Stopper()], Bringing())
    assert names(found) == ["Stopper", "First", "Saver"] or names(found) == ["First", "Stopper", "Saver"]
    assert mine not in found
    module, trainer = Bringing(), quiet(max_epochs=1, callbacks=mine)
    trainer.fit(module, batches(1))
    assert mine not in trainer.callbacks

    class One(Regression):
        def configure_callbacks(self):
            return First()

    assert names(with_module_callbacks([], One())) == ["First"]


class Wrong(Regression):
    def configure_callbacks(self):
        return ["early_stopping"]


FAULTS = [
    (lambda: Trainer(callbacks=[Bar(), Bar()]), "there are 2 progress bars among the callbacks; keep one"),
    (
        lambda: Trainer(callbacks=Bar(), enable_progress_bar=False),
        "enable_progress_bar=False, and Bar is among the callbacks; drop one of them",
    ),
    (
        lambda: Trainer(callbacks=Saver(), enable_checkpointing=False),
        "enable_checkpointing=False, and Saver is among the callbacks; drop one of them",
    ),
    (
        lambda: Trainer(precision=32, plugins=Precision()),
        "the precision is given twice: as precision= and among plugins=, or twice among plugins=; keep one",
    ),
    (
        lambda: Trainer(plugins=[Precision(), Precision()]),
        "the precision is given twice: as precision= and among plugins=, or twice among plugins=; keep one",
    ),
    (lambda: quiet().fit(Wrong(), batches(1)), "configure_callbacks returned 'early_stopping', which is no Callback"),
]


@pytest.mark.parametrize(("action", "message"), FAULTS, ids=range(len(FAULTS)))
def test_contradictions_are_named(action, message):
    with pytest.raises(ConfigurationError) as caught:
        action()
    assert str(caught.value) == message


def test_plugins_hold_a_precision_and_an_environment_too():
    precision, environment, module = Precision(), Local(), object()
    assert split_plugins([precision, module, environment, "name"], None) == ([module, "name"], precision, environment)
    assert split_plugins(None, "64-true") == ([], "64-true", None)
    trainer = quiet(plugins=[precision, environment])
    assert trainer.runtime.precision is precision
    assert trainer.runtime.environment is environment


def test_loggers_that_are_set_between_runs_are_used_by_the_next():
    first, second = RecordingLogger(), RecordingLogger()
    trainer = quiet(max_epochs=1, logger=first, log_every_n_steps=1)
    module = Validated()
    trainer.fit(module, batches(2), batches(1))
    seen = len(first.rows)
    trainer.logger = second
    assert (trainer.logger, trainer.loggers) == (second, [second])
    trainer.fit(module, batches(2), batches(1))
    assert len(first.rows) == seen == len(second.rows) > 0 and module.logger is second
    trainer.loggers = [first, second]
    trainer.fit(module, batches(2), batches(1))
    assert [len(logger.rows) for logger in (first, second)] == [2 * seen, 2 * seen]
    for nothing in (None, False, []):
        trainer.loggers = [first]
        trainer.logger = nothing
        assert (trainer.logger, trainer.loggers) == (None, [])
    trainer.logger = "csv"
    assert type(trainer.logger).__name__ == "CSVLogger"
    with pytest.raises(PluginError, match="5 is no Logger"):
        trainer.logger = 5


def test_loggers_cannot_be_set_while_a_run_goes_on():
    class Swap(Callback):
        def on_train_start(self, trainer, module):
            trainer.logger = None

    trainer = quiet(max_epochs=1, callbacks=Swap())
    with pytest.raises(ModuleError) as caught:
        trainer.fit(Validated(), batches(1), batches(1))
    assert str(caught.value) == "fit is running, and its loggers cannot be replaced: set them before, or after it"


def test_a_fast_development_run_has_dummies_for_those_that_are_set():
    trainer = quiet(fast_dev_run=True)
    trainer.loggers = [RecordingLogger(), RecordingLogger()]
    assert [type(logger).__name__ for logger in trainer.loggers] == ["DummyLogger", "DummyLogger"]
