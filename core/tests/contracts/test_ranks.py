"""Which of several processes this one is."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

from fulmen import Logger, Runtime
from fulmen.contracts.ranks import Nothing, is_rank_zero
from fulmen.loggers import CSVLogger, rank_zero_only
from fulmen.testing import RecordingLogger, Validated, batches, quiet


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "1"}, True),
        ({"RANK": "1"}, False),
        ({"RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1"}, False),  # the process of a second node, which is about to start its ranks
        ({"LOCAL_RANK": "1"}, False),
    ],
)
def test_before_a_run_the_variables_of_launchers_say_it(variables, expected, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is expected
    assert rank_zero_only(lambda number: number + 1)(1) == (2 if expected else None)


def test_during_a_run_its_strategy_says_it(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # tasks of a job that train independently of each other
    runtime, found = Runtime(accelerator="cpu", strategy="single_device"), []
    runtime.open()
    thread = threading.Thread(target=lambda: found.append(is_rank_zero()))  # where ranks are threads, each asks its own
    thread.start()
    thread.join()
    assert (is_rank_zero(), found) == (True, [False])
    runtime.close()
    assert not is_rank_zero()


def test_a_training_on_every_task_of_a_job_logs_on_every_task(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "2")
    logger = RecordingLogger()
    quiet(logger=logger, strategy="single_device", accelerator="cpu", max_epochs=1, log_every_n_steps=1).fit(
        Validated(), batches(2), batches(2)
    )
    assert [row["step"] for row in logger.rows if "train_loss_step" in row] == [0, 1]
    assert logger.statuses == ["success"]


def test_what_does_nothing_can_be_used_as_anything():
    run = Nothing()
    run.config.update({"lr": 0.1})
    run.name = run["name"] = "a"
    del run["name"]
    with run.start() as started:
        assert started.log_artifact("a").wait() is run
    assert (len(run), list(run), "name" in run, repr(run.name)) == (0, [], False, "<Nothing>")
    assert isinstance(pickle.loads(pickle.dumps(run)), Nothing) and isinstance(copy.deepcopy(run), Nothing)


class Others(Logger):
    """A logger of somebody else, as small as people write them."""

    name, version = "others", None

    def __init__(self):
        self.calls = []

    @property
    def experiment(self):
        """Theirs."""
        return self.calls

    def log_metrics(self, metrics, step):
        self.calls.append("log_metrics")

    def log_sound(self, sound):
        self.calls.append("log_sound")

    def save(self):
        self.calls.append("save")

    def describe(self):
        return "anyone may call it"


class OthersToo(Others):
    def log_metrics(self, metrics, step):
        super().log_metrics(metrics, step)
        self.calls.append("again")


def test_what_a_logger_writes_it_writes_on_rank_zero_only(monkeypatch):
    logger = OthersToo()

    def call_everything():
        logger.log_metrics({}, 0)
        logger.log_sound(None)
        logger.save()
        logger.experiment.append("experiment")
        return logger.describe()

    with monkeypatch.context() as variables:
        variables.setenv("RANK", "1")
        assert call_everything() == "anyone may call it"
        assert logger.calls == [] and isinstance(logger.experiment, Nothing)
    call_everything()
    assert logger.calls == ["log_metrics", "again", "log_sound", "save", "experiment"]
    assert Others.experiment.__doc__ == "Theirs."


def test_a_logger_that_cannot_log_is_still_none():
    class Abstract(Logger):
        name, version = "abstract", None

    with pytest.raises(TypeError, match="log_metrics"):
        Abstract()


def test_a_script_on_another_rank_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []
