"""A real ``mlflow server``: reached, killed in the middle of a training, and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fulmen_mlflow import send_unsent
from mlflow import MlflowClient

from fulmen import Callback, FulmenError, FulmenWarning
from fulmen.loggers import MLFlowLogger
from fulmen.testing import Validated, batches, quiet

pytestmark = pytest.mark.usefixtures("folder")


class Server:
    """``mlflow server`` with a SQLite database, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination",
            str(self.folder / "a"),
        ]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class At(Callback):
    """Does something after some batches."""

    def __init__(self, **actions) -> None:
        self.actions = {int(key[1:]): action for key, action in actions.items()}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if action := self.actions.get(trainer.progress.batches):
            action()


def fit(logger, *callbacks, **options):
    module = Validated()
    trainer = quiet(**{"max_epochs": 2, "log_every_n_steps": 1, "logger": logger, "callbacks": list(callbacks), **options})
    trainer.fit(module, batches(8), batches(2))
    return module


def steps(client, run_id, name="train_loss_step"):
    return sorted(each.step for each in client.get_metric_history(run_id, name))


def test_a_training_on_a_server(server, tmp_path):
    logger = MLFlowLogger("digits", tracking_uri=server.uri, save_dir=tmp_path, log_model=True)
    module = fit(logger, enable_checkpointing=True)
    client = MlflowClient(server.uri)
    run = client.get_run(logger.version)
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    values = {each.step: each.value for each in client.get_metric_history(logger.version, "train_loss_step")}
    assert values == {step: pytest.approx(loss) for step, loss in enumerate(module.losses)}
    assert [each.path for each in client.list_artifacts(logger.version)] == ["checkpoints", "config.json", "hparams.json"]
    assert [each.path for each in client.list_artifacts(logger.version, "checkpoints")] == ["checkpoints/epoch=1-step=16.ckpt"]
    assert not (tmp_path / "digits" / "mlflow_unsent.jsonl").exists()


def test_not_a_number_and_infinity_through_a_server(server):
    logger = MLFlowLogger(tracking_uri=server.uri)
    with pytest.warns(FulmenWarning, match=r"\[mlflow-infinite\] b is inf at step 0"):
        logger.log_metrics({"a": float("nan"), "b": float("inf")}, 0)
    logger.finalize("success")
    found = MlflowClient(server.uri).get_run(logger.version).data.metrics
    assert {name: str(value) for name, value in found.items()} == {"a": "nan", "b": "nan"}


def test_a_server_that_is_killed_and_stays_away_costs_a_warning_and_loses_nothing(server):
    logger = MLFlowLogger("killed", tracking_uri=server.uri, timeout=1.0)
    with pytest.warns(FulmenWarning) as caught:
        fit(logger, At(_3=logger.save, _4=server.kill, _9=logger.save))
    texts = [str(each.message) for each in caught]
    assert [text.split()[0] for text in texts] == ["[mlflow-away]", "[mlflow-unsent]"]
    assert texts[0] == (
        f"[mlflow-away] {server.uri} does not answer (ConnectionError). The training goes on; values wait until it is back"
    )
    file = Path(logger.log_dir, "mlflow_unsent.jsonl")
    assert texts[1].startswith(f"[mlflow-unsent] {server.uri} does not answer (ConnectionError): ")
    assert texts[1].endswith(
        f" values and settings did not reach it. They are in {file}. Send them later: "
        f"from fulmen_mlflow import send_unsent; send_unsent({str(file)!r})"
    )
    with pytest.raises(Exception, match="does not answer"):
        send_unsent(file)
    assert file.exists()

    server.start()
    assert send_unsent(file) == logger.version
    client = MlflowClient(server.uri)
    assert steps(client, logger.version) == list(range(16))
    assert client.get_run(logger.version).info.status == "FINISHED"
    assert not file.exists()


def test_a_server_that_comes_back_gets_everything(server):
    logger = MLFlowLogger("back", tracking_uri=server.uri, timeout=60.0)
    with pytest.warns(FulmenWarning) as caught:
        fit(logger, At(_3=logger.save, _4=server.kill, _6=logger.save, _8=server.start))
    assert [str(each.message).split()[0] for each in caught] == ["[mlflow-away]"]
    client = MlflowClient(server.uri)
    assert steps(client, logger.version) == list(range(16))
    assert client.get_run(logger.version).info.status == "FINISHED"


@pytest.fixture
def nobody():
    """The address of no server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, and not listening: connections are refused


def test_a_server_that_was_never_there(nobody, server):
    logger = MLFlowLogger("never", run_name="later", tracking_uri=nobody, timeout=0.5, tags={"a": "b"})
    with pytest.warns(FulmenWarning) as caught:
        fit(logger, At(_2=logger.save))
    assert [str(each.message).split()[0] for each in caught] == ["[mlflow-away]", "[mlflow-unsent]"]
    assert logger.version is None
    run_id = send_unsent(Path(logger.log_dir, "mlflow_unsent.jsonl"), tracking_uri=server.uri)
    run = MlflowClient(server.uri).get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.tags["a"]) == ("later", "FINISHED", "b")
    assert steps(MlflowClient(server.uri), run_id) == list(range(16))


@pytest.mark.parametrize(("timeout", "stops"), [(0.0, True), (60.0, False)])
def test_a_required_logger_stops_when_the_server_is_away_for_longer_than_timeout(nobody, timeout, stops):
    logger = MLFlowLogger(tracking_uri=nobody, timeout=timeout)
    logger.required = True
    logger.log_metrics({"a": 1.0}, 0)
    logger._sender.flush(30)  # until it is known to be away
    if stops:
        with pytest.raises(FulmenError, match=r"does not answer \(ConnectionError\), and this logger is required"):
            logger.log_metrics({"a": 1.0}, 1)
    else:
        with pytest.warns(FulmenWarning, match="mlflow-away"):
            logger.log_metrics({"a": 1.0}, 1)
    logger._timeout, logger.required = 0.0, False
    with pytest.warns(FulmenWarning, match="mlflow-unsent"):
        logger.finalize("failed")


def test_asking_for_a_run_of_a_server_that_is_away_is_an_error(nobody):
    logger = MLFlowLogger(tracking_uri=nobody, timeout=0.0)
    with pytest.raises(FulmenError, match=r"there is no run in MLflow: http://127\.0\.0\.1"):
        _ = logger.run_id
    with pytest.warns(FulmenWarning, match="mlflow-unsent"):
        logger.finalize("failed")
