"""What a real TensorBoard serves."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest
import torch

from fulmen import Callback
from fulmen.callbacks import HistogramMonitor
from fulmen.loggers import TensorBoardLogger
from fulmen.testing import Failure, Validated, batches, quiet

FIRST, SECOND = "fulmen_logs/version_0", "fulmen_logs/version_1"


class Drawn(Validated):
    def __init__(self, lr=0.1, **more):
        super().__init__()
        self.example_input_array = torch.ones(2, 3)


class Stop(Callback):
    """Saves after batch 4, and fails after batch 6."""

    runs_last = True

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 3:
            trainer.save_checkpoint("cut.ckpt")
        if batch_idx == 5:
            raise Failure


def fit(module, ckpt_path=None, callbacks=()):
    logger = TensorBoardLogger("logs", log_graph=True)
    trainer = quiet(max_epochs=1, log_every_n_steps=1, logger=logger, callbacks=[HistogramMonitor(4), *callbacks])
    trainer.fit(module, batches(8), batches(2), ckpt_path=ckpt_path)
    return logger


class Board:
    def __init__(self, port):
        self.root = f"http://127.0.0.1:{port}/data"

    def get(self, path, **query):
        with urllib.request.urlopen(f"{self.root}/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return json.loads(answer.read())

    def picture(self, query):
        with urllib.request.urlopen(f"{self.root}/plugin/images/individualImage?{query}", timeout=30) as answer:
            return answer.read()

    def post(self, path, body):
        request = urllib.request.Request(f"{self.root}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def wait(self, question, holds):
        """The answer, once it ``holds``: TensorBoard reads files every second."""
        end = time.monotonic() + 60
        while True:
            try:
                found = question()
            except OSError:  # it is not up yet
                found = None
            if found is not None and holds(found):
                return found
            assert time.monotonic() < end, f"TensorBoard still answers {found}"
            time.sleep(0.2)

    def steps(self, run, tag):
        return [step for _, step, _ in self.get("plugin/scalars/scalars", run=run, tag=tag)]


@pytest.fixture(params=["true", "false"], ids=["rust", "python"])
def board(request, tmp_path):
    """A TensorBoard for ``logs``, with its fast reader of event files or the one in Python."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port), "--reload_interval", "1", "--load_fast", request.param]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", "logs", *address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        yield Board(port)
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_it_shows_everything(board):
    logger = fit(Drawn())
    logger.log_image("picture", torch.rand(3, 8, 8), 1)
    logger.log_text("words", "hello", 1)
    logger.save()
    fit(Drawn(lr=0.01, width=3))
    board.wait(lambda: board.get("runs"), lambda runs: runs == [FIRST, SECOND])
    board.wait(lambda: board.steps(SECOND, "val_loss"), lambda steps: steps == [7])
    assert board.steps(FIRST, "train_loss_step") == list(range(8))
    histograms = board.get("plugin/histograms/histograms", run=FIRST, tag="gradients/net.0.weight")
    assert [(step, sum(count for *_, count in bins)) for _, step, bins in histograms] == [
        (3, pytest.approx(15)),
        (7, pytest.approx(15)),
    ]
    (image,) = board.wait(lambda: board.get("plugin/images/images", run=FIRST, tag="picture", sample=0), len)
    assert image["step"] == 1
    assert board.picture(image["query"]).startswith(b"\x89PNG")
    (words,) = board.get("plugin/text/text", run=FIRST, tag="words/text_summary")
    assert "hello" in words["text"]
    assert board.get("plugin/graphs/info")[FIRST]["run_graph"] is True


def test_the_page_of_hyper_parameters_compares_all_runs(board):
    fit(Drawn())
    fit(Drawn(lr=0.01, width=3))
    with pytest.raises(Failure):
        fit(Drawn(), callbacks=[Stop()])
    asked = {"experimentName": "", "startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE"]}
    board.wait(lambda: board.get("runs"), lambda runs: len(runs) == 3)
    columns = board.wait(lambda: board.post("plugin/hparams/experiment", {}), lambda found: len(found["hparamInfos"]) == 2)
    assert sorted(each["name"] for each in columns["hparamInfos"]) == ["lr", "width"]
    assert {"hp_metric", "val_loss"} <= {each["name"]["tag"] for each in columns["metricInfos"]}
    asked["colParams"] = [{"hparam": name} for name in ("lr", "width")]
    groups = board.wait(
        lambda: board.post("plugin/hparams/session_groups", asked), lambda found: len(found.get("sessionGroups", [])) == 3
    )["sessionGroups"]
    found = {group["sessions"][0]["name"]: (group["hparams"], group["sessions"][0]["status"]) for group in groups}
    assert found[FIRST] == ({"lr": 0.1}, "STATUS_SUCCESS")
    assert found[SECOND] == ({"lr": 0.01, "width": 3.0}, "STATUS_SUCCESS")
    assert found["fulmen_logs/version_2"][1] == "STATUS_FAILURE"


def test_one_that_is_running_forgets_what_a_resume_takes_back(board):
    with pytest.raises(Failure):
        fit(Drawn(), callbacks=[Stop()])
    board.wait(lambda: board.steps(FIRST, "train_loss_step"), lambda steps: steps == list(range(6)))
    fit(Drawn(), "cut.ckpt")
    board.wait(lambda: board.steps(FIRST, "train_loss_step"), lambda steps: len(steps) >= 8 and steps[-1] == 7)
    assert board.steps(FIRST, "train_loss_step") == list(range(8))
