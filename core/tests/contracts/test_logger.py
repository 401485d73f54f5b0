"""The least a logger needs."""

from __future__ import annotations

from argparse import Namespace

import pytest

from fulmen import Callback, Logger, Module
from fulmen.contracts.logger import named_values


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


def test_hyperparameters_are_a_mapping_or_parsed_arguments():
    assert named_values({"lr": 0.1}) == named_values(Namespace(lr=0.1)) == {"lr": 0.1}
    with pytest.raises(TypeError) as caught:
        named_values([("lr", 0.1)])
    assert str(caught.value) == "hyper-parameters are a mapping or an argparse.Namespace, and these are list"


def test_a_row_without_a_step_joins_the_latest():
    logger = Least()
    assert [logger.step_of_row(step) for step in (None, 3, None, 2, None)] == [0, 3, 3, 2, 2]
