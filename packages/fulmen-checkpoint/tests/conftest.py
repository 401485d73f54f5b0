"""A training whose metric is given."""

from __future__ import annotations

import pytest
import torch

from fulmen.testing import Regression, batches, quiet


class Scripted(Regression):
    """Logs the given values as ``score``, one for every two batches; ``None``: logs nothing. ``train_loss`` in each step."""

    def __init__(self, values, name="score"):
        super().__init__()
        self.values, self.name = [*values], name

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            return self.log(self.name, -1e9)
        value = self.values[self.trainer.progress.batches // 2 - 1]
        if value is not None:
            self.log(self.name, torch.tensor(value, dtype=torch.float64))
        return None


@pytest.fixture
def fit():
    """Train a :class:`Scripted` on epochs of two batches, with a validation after each."""

    def run(callbacks, values=(), path=None, data=2, name="score", **options):
        callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
        trainer = quiet(
            **{
                "max_epochs": len(values),
                "enable_checkpointing": True,
                "callbacks": callbacks,
                "log_every_n_steps": 1,
                **options,
            }
        )
        trainer._given_callbacks = [each for each in trainer._given_callbacks if type(each).__name__ != "RecoveryCheckpoint"]
        validation = batches(1) if len(values) else None
        trainer.fit(Scripted(values, name) if len(values) else Regression(), batches(data), validation, ckpt_path=path)
        return trainer

    return run


@pytest.fixture
def names():
    """The names in a folder."""
    return lambda folder: sorted(path.name for path in folder.iterdir())
