"""Online runs, against a server on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from runfiles import rows
from wandb_server import serving

from fulmen import Callback, FulmenWarning
from fulmen.loggers import WandbLogger
from fulmen.testing import Failure, Validated, batches, quiet


@pytest.fixture
def server(monkeypatch):
    with serving() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield found


def fit(logger, module=None, ckpt_path=None, **options):
    trainer = quiet(**{"max_epochs": 2, "log_every_n_steps": 1, "logger": logger, **options})
    trainer.fit(module or Validated(), batches(8), batches(2), ckpt_path=ckpt_path)
    return trainer


def on_disk(folder="."):
    """The folder of the run that was begun without the server."""
    (found,) = Path(folder, "wandb").glob("offline-run-*")
    return found


class Stop(Callback):
    """Saves after batch 11, and fails after batch 13."""

    runs_last = True

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == 11:
            trainer.save_checkpoint("cut.ckpt")
        if trainer.progress.batches == 13:
            raise Failure


def test_a_training_arrives(server):
    module, logger = Validated(), WandbLogger("first", project="digits", entity="team", tags=["a"])
    fit(logger, module)
    said = server.runs[logger.version]
    assert (said["displayName"], said["project"], said["entity"], said["tags"]) == ("first", "digits", "team", ["a"])
    expected = [(step, pytest.approx(loss)) for step, loss in enumerate(module.losses)]
    assert server.values(logger.version, "train_loss_step") == expected
    assert [step for step, _ in server.values(logger.version, "val_loss")] == [7, 15]
    config = server.config(logger.version)
    assert (config["lr"], config["fulmen"]["options"]["max_epochs"]) == (0.1, 2)
    assert server.exit_codes[logger.version] == [0]


def test_a_run_that_continues_is_the_same_run(server):
    with pytest.raises(Failure):
        fit(WandbLogger(resume="never"), callbacks=[Stop()])
    logger = WandbLogger(resume="never")
    fit(logger, ckpt_path="cut.ckpt")
    assert list(server.runs) == [logger.version]
    steps = [step for step, _ in server.values(logger.version, "train_loss_step")]
    assert steps == [*range(13), *range(11, 16)]  # what was sent cannot be taken back
    internal = [row["_step"] for row in server.rows[logger.version]]
    assert internal == list(range(len(internal)))  # none was dropped
    assert server.exit_codes[logger.version] == [1, 0]


def test_two_fits_in_a_row_are_one_run(server):
    logger = WandbLogger()
    for _ in range(2):
        fit(logger, max_epochs=1)
    assert list(server.runs) == [logger.version]
    assert [step for step, _ in server.values(logger.version, "train_loss_step")] == [*range(8), *range(8)]
    assert server.exit_codes[logger.version] == [0, 0]


@pytest.mark.parametrize(("resume", "asked"), [("allow", 1), (None, 0)])
def test_whether_a_run_may_be_continued(server, resume, asked):
    logger = WandbLogger(id="known", resume=resume)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert len(server.resumes) == asked


def test_a_run_that_must_exist_and_does_not_is_kept_on_the_disk(server):
    logger = WandbLogger(id="unknown", resume="must")
    with pytest.warns(FulmenWarning, match=r"\[wandb-offline\] Weights & Biases cannot be used \(UsageError"):
        logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert (len(rows(on_disk())), server.rows) == (1, {})


def test_a_required_one_that_cannot_start_stops_the_training(server):
    logger = WandbLogger(id="unknown", resume="must")
    logger.required = True
    with pytest.raises(Exception, match="unknown"):
        fit(logger)


def test_without_an_account_everything_is_kept_on_the_disk(server, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.warns(FulmenWarning) as caught:
        trainer = fit(WandbLogger(save_dir="here"))
    assert [str(each.message) for each in caught] == [
        "[wandb-offline] Weights & Biases cannot be used (UsageError: No API key configured. Use `wandb login` to log in.). "
        "The training goes on, and everything is kept on the disk; "
        f"send it later: wandb sync --id {trainer.logger.version} {on_disk('here').resolve()}"
    ]
    assert trainer.global_step == 16
    assert len(rows("here")) == 20


def test_a_server_that_is_away_at_the_start(server):
    server.is_away = True
    logger = WandbLogger(timeout=1)
    with pytest.warns(FulmenWarning, match=r"\[wandb-offline\]"):
        trainer = fit(logger)
    assert trainer.global_step == 16
    assert len([row for row in rows(on_disk()) if "train_loss_step" in row]) == 16
    fit(logger, max_epochs=1)  # says nothing more, and waits for nobody
    _, second = sorted(Path("wandb").glob("offline-run-*"))
    assert len([row for row in rows(second) if "train_loss_step" in row]) == 8


def test_a_server_that_goes_away(server):
    class Away(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            server.is_away = server.is_away or batch_idx == 3

    logger = WandbLogger(timeout=2)
    with pytest.warns(FulmenWarning, match=r"\[wandb-unsent\] not everything reached .+ within timeout=2 seconds"):
        trainer = fit(logger, callbacks=[Away()])
    assert trainer.global_step == 16
    assert len([row for row in rows(".") if "train_loss_step" in row]) == 16  # wandb sync will find them all


def test_a_required_one_that_cannot_send_is_an_error(server):
    logger = WandbLogger(timeout=1)
    logger.required = True
    logger.log_metrics({"a": 1.0}, 0)
    server.is_away = True
    with pytest.raises(TimeoutError):
        logger.finalize("success")


@pytest.mark.parametrize(("settings", "expected"), [(None, 90.0), ({"init_timeout": 7}, 7.0)])
def test_limits_of_the_user_win(server, settings, expected):
    logger = WandbLogger(timeout=100, settings=settings)
    assert (logger.experiment.settings.init_timeout, logger.experiment.settings.finish_timeout) == (expected, 100.0)
    logger.finalize("success")


def test_an_object_of_settings(server):
    import wandb

    given = wandb.Settings(finish_timeout=9)
    logger = WandbLogger(timeout=50, settings=given)
    assert (logger.experiment.settings.init_timeout, logger.experiment.settings.finish_timeout) == (50.0, 9.0)
    assert given.init_timeout == 90.0
    logger.finalize("success")
