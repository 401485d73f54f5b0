"""The least a logger needs."""

from __future__ import annotations

from fulmen import Callback, Logger, Module


class Least(Logger):
    name, version = "least", None

    def log_metrics(self, metrics, step):
        pass


def test_the_least_logger():
    logger = Least()
    assert (logger.save_dir, logger.log_dir, logger.experiment, logger.required) == (None, None, None, False)
    assert logger.log_hyperparams({}) is logger.log_config({}) is logger.log_graph(Module()) is logger.save() is None
    assert logger.finalize("success") is logger.after_save_checkpoint(Callback(), "a") is None
    assert (logger.state_dict(), logger.load_state_dict({})) == ({}, None)
