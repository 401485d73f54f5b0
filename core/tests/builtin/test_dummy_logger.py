"""The logger that keeps nothing: everything can be done with it, as with the loggers that it stands for."""

from __future__ import annotations

import copy
import pickle

import torch

from fulmen.builtin.dummy_logger import DummyLogger
from fulmen.testing import Regression, batches, quiet


def test_whatever_is_asked_of_it_does_nothing():
    logger = DummyLogger()
    assert (logger.name, logger.version, logger.save_dir, logger.log_dir, logger.state_dict()) == ("", "", None, None, {})
    assert logger.log_metrics({"a": 1.0}) is logger.log_hyperparams({"lr": 0.1}) is logger.finalize("success") is None
    logger.watch(torch.nn.Linear(1, 1), log="all")
    logger[0].log_image(key="samples", images=[torch.rand(3, 8, 8)])
    logger.experiment.config["batch_size"] = 8
    logger.experiment.log_artifact(logger.run_id, "file.txt").wait()
    with logger.experiment.start_span("part") as part:
        part.note = "x"
    assert list(logger.experiment[0].values()) == [] and callable(logger.log_table)


def test_copies_and_pickles_are_dummies_too():
    assert type(copy.deepcopy(DummyLogger())) is type(pickle.loads(pickle.dumps(DummyLogger()))) is DummyLogger


class Drawing(Regression):
    """Uses what the library of its logger has."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True)
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        for logger in self.loggers:
            logger.experiment.add_histogram("weight", self.net[0].weight)
        return loss


def test_a_module_that_uses_the_experiment_runs_in_a_fast_development_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = quiet(logger=["csv", "csv"], fast_dev_run=2, callbacks=["lr_monitor", "device_stats"])
    trainer.fit(Drawing(), batches(4))
    assert trainer.global_step == 2 and list(tmp_path.iterdir()) == []
