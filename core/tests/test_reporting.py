"""What a run tells people and loggers about itself."""

from __future__ import annotations

import json

import pytest
from torch.utils.data import DataLoader, IterableDataset

from fulmen import Callback, ConfigurationError, DataModule, FulmenWarning, Logger, Trainer, __version__
from fulmen.cli import main
from fulmen.reporting import table
from fulmen.testing import QUIET, Regression, Validated, batches, quiet


class Told(Logger):
    name, version = "told", None

    def __init__(self):
        self.told = []

    def log_metrics(self, metrics, step):
        self.told.append(("metrics", dict(metrics), step))

    def log_hyperparams(self, params):
        self.told.append(("hyperparams", dict(params)))

    def log_config(self, config):
        self.told.append(("config", dict(config)))

    def log_graph(self, module):
        self.told.append(("graph", module))

    def finalize(self, status):
        self.told.append(("finalize", status))


class Data(DataModule):
    def __init__(self, lr=None, size=4):
        super().__init__()
        self.save_hyperparameters(ignore="lr" if lr is None else None)

    def train_dataloader(self):
        return batches(2)


def reported(module, **arguments):
    logger = Told()
    trainer = Trainer(**{**QUIET, "logger": logger}, max_epochs=1)
    trainer.fit(module, **arguments)
    return logger.told, trainer


def test_options_hyper_parameters_and_the_module_come_before_metrics():
    module = Regression(lr=0.3)
    told, trainer = reported(module, datamodule=Data())
    assert [entry[0] for entry in told] == ["config", "hyperparams", "graph", "finalize"]
    (_, config), (_, params), (_, shown), (_, status) = told
    assert shown is module
    assert set(config) == {"fulmen", "run", "options", "plugins"}
    assert (config["fulmen"], config["run"]) == (__version__, trainer.run_id)
    assert config["options"] == trainer.options.to_json()
    assert json.loads(json.dumps(config)) == config
    assert config["plugins"][0]["name"] == "builtin"
    assert (params, status) == ({"lr": 0.3, "size": 4}, "success")


def test_hyper_parameters_can_be_kept_from_loggers():
    class Private(Regression):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"secret": 1}, logger=False)

    told, _ = reported(Private(), train_dataloaders=batches(1))
    assert [entry[0] for entry in told] == ["config", "graph", "finalize"]


def test_module_and_data_must_agree_on_a_name():
    told, _ = reported(Regression(lr=0.3), datamodule=Data(lr=0.3))
    assert told[1] == ("hyperparams", {"lr": 0.3, "size": 4})
    with pytest.raises(ConfigurationError) as caught:
        reported(Regression(lr=0.3), datamodule=Data(lr=0.4))
    assert str(caught.value) == (
        "the module and the data module both save the hyper-parameter 'lr', as 0.3 and 0.4; rename one, or leave it out: "
        "save_hyperparameters(ignore=...)"
    )


def test_a_training_too_short_to_log_says_so():
    with pytest.warns(FulmenWarning) as caught:
        reported(Validated(), train_dataloaders=batches(3), val_dataloaders=batches(1))
    assert [str(warning.message) for warning in caught] == [
        "[log-interval] train_loss_step never reached the loggers: the training had 3 steps, and log_every_n_steps=50; "
        "lower it, or log with on_epoch=True"
    ]


def test_a_table_has_a_column_per_loader():
    assert table([{"acc": 0.5, "loss": 1234567.0}, {"acc": 1.0}], "validate") == (
        "validate  loader 0     loader 1\n--------  -----------  --------\nacc       0.5          1\nloss      1.23457e+06"
    )


def test_a_table_is_printed_unless_told_otherwise(capsys):
    quiet().validate(Validated(), batches(1), verbose=False)
    assert capsys.readouterr().out == ""
    quiet().test(Validated(), batches(1))
    assert capsys.readouterr().out.startswith("test       loader 0\n---------  --------\ntest_loss  ")
    assert quiet().test(Regressionless(), batches(1)) == [{}]
    assert capsys.readouterr().out == ""


class Regressionless(Regression):
    def test_step(self, batch, batch_idx):
        pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.request_stop("enough")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(batches())


def test_what_makes_a_resume_inexact_is_said_at_the_start_at_the_resume_and_by_the_command(tmp_path, capsys):
    def fit(ckpt_path=None):
        options = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path}
        trainer = Trainer(**options, max_epochs=2, callbacks=StopAt(3))
        trainer.fit(Regression(), DataLoader(Stream(), batch_size=None), ckpt_path=ckpt_path)

    reason = "- train_dataloader: Stream cannot say where it stands, so it is read again up to there"
    fit()
    assert capsys.readouterr().out.startswith(f"a resume of this training will not be exact:\n{reason}")
    (path,) = tmp_path.rglob("*.ckpt")
    assert main(["ckpt", "show", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"continues yes: fit(ckpt_path=...), not exactly: {reason}" in shown
    with pytest.warns(FulmenWarning, match=r"\[resume-replay\]"):
        fit(path)
    assert f"the resume is not exact:\n{reason}" in capsys.readouterr().out


def test_an_exact_resume_is_said(tmp_path, capsys):
    for path in (None, tmp_path / "cut.ckpt"):
        trainer = quiet(max_epochs=2, callbacks=StopAt(3))
        trainer.fit(Regression(), batches(), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "cut.ckpt")
    assert capsys.readouterr().out.splitlines()[1:] == ["the resume is exact"]
