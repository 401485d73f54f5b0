"""Objectives that new processes can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from fulmen.testing import Regression, Validated, batches

DATA = batches(4)


class Scored(Regression):
    """Its score is given: worse with each epoch of a bad trial."""

    def __init__(self, goal: float) -> None:
        super().__init__()
        self.goal = goal

    def validation_step(self, batch, batch_idx):
        self.log("score", torch.tensor(self.goal + self.trainer.current_epoch))


class Interrupted(Scored):
    """Someone presses Ctrl-C in its first epoch."""

    def on_train_epoch_start(self):
        os.kill(os.getpid(), signal.SIGINT)


class WithData(Scored):
    """It has its own data, so that nothing but the objective says that modules are trained."""

    def train_dataloader(self):
        return DATA


def with_data(trial):
    return WithData(0.0)


def diverges_at_1(trial):
    return Scored(float("nan") if trial.number == 1 else trial.suggest_float("goal", 0.0, 1.0))


def interrupted(trial):
    return Interrupted(0.0)


def scored(trial):
    return Scored(trial.suggest_float("goal", 0.0, 1.0))


def real(trial):
    torch.manual_seed(0)
    return Validated(lr=trial.suggest_float("lr", 1e-4, 0.1, log=True))


def square(trial):
    return trial.suggest_float("x", -1.0, 1.0) ** 2


def slow_square(trial):
    time.sleep(0.2)
    return square(trial)


def fails_at_1(trial):
    if trial.number == 1:
        raise ValueError("no luck")
    return square(trial)


def dies_once(trial):
    marker = Path(os.environ["FULMEN_TEST_MARKER"])
    value = square(trial)
    if trial.number == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value
