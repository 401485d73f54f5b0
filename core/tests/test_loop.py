"""How long a training is, when it validates and when it stops."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback
from fulmen.testing import Regression, Validated, batches, quiet


class Counting(Validated):
    """Notes which epochs and batches it sees."""

    def __init__(self):
        super().__init__()
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append((self.current_epoch, batch_idx))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.validated.append((self.global_step, batch_idx))
        super().validation_step(batch, batch_idx)


def counted(data=8, val=1, **options):
    module, trainer = Counting(), quiet(**options)
    trainer.fit(module, batches(data), batches(val))
    return module, trainer


LENGTHS = [
    ({"max_epochs": 3}, 24, 3, "max_epochs=3 reached"),
    ({"max_steps": 10}, 10, 1, "max_steps=10 reached"),
    ({"max_epochs": 5, "max_steps": 8}, 8, 1, "max_steps=8 reached"),
    ({"max_epochs": 2, "limit_train_batches": 3}, 6, 2, "max_epochs=2 reached"),
    ({"max_epochs": 2, "limit_train_batches": 0.5}, 8, 2, "max_epochs=2 reached"),
    ({"max_epochs": 2, "limit_train_batches": 0}, 0, 0, None),
    ({"max_epochs": 2, "overfit_batches": 2}, 4, 2, "max_epochs=2 reached"),
    ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6, 2, "max_epochs=2 reached"),
    ({"max_epochs": 3, "accumulate_grad_batches": {0: 1, 1: 4}}, 8 + 2 + 2, 3, "max_epochs=3 reached"),
    ({"fast_dev_run": True}, 1, 1, "max_steps=1 reached"),
    ({"fast_dev_run": 3}, 3, 1, "max_steps=3 reached"),
    ({"max_epochs": 0}, 0, 0, "max_epochs=0 reached"),
]


@pytest.mark.parametrize(("options", "steps", "epochs", "reason"), LENGTHS)
def test_how_long_a_training_is(options, steps, epochs, reason):
    _, trainer = counted(**options)
    assert (trainer.global_step, trainer.current_epoch, trainer.stop_reason) == (steps, epochs, reason)
    assert trainer.status == "finished"


VALIDATIONS = [
    ({}, [8, 16]),
    ({"val_check_interval": 0.25}, [2, 4, 6, 8, 10, 12, 14, 16]),
    ({"val_check_interval": 3}, [3, 6, 11, 14]),
    ({"val_check_interval": 5, "check_val_every_n_epoch": None}, [5, 10, 15]),
    ({"check_val_every_n_epoch": 2}, [16]),
    ({"limit_val_batches": 0}, []),
    ({"max_steps": 11}, [8]),
]


@pytest.mark.parametrize(("options", "steps"), VALIDATIONS)
def test_when_it_validates(options, steps):
    module, _ = counted(**{"max_epochs": 2, **options})
    assert [step for step, _ in module.validated] == steps


def test_a_request_to_stop_waits_for_the_minimum():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = True

    _, trainer = counted(max_epochs=5, callbacks=Stop())
    assert (trainer.global_step, trainer.stop_reason) == (1, "trainer.should_stop was set")
    _, trainer = counted(max_epochs=5, min_steps=11, callbacks=Stop())
    assert trainer.global_step == 11
    _, trainer = counted(max_epochs=5, min_epochs=2, callbacks=Stop())
    assert trainer.global_step == 16


def test_the_sanity_check_leaves_no_trace():
    first, trainer = counted(max_epochs=1, num_sanity_val_steps=0)
    second, other = counted(max_epochs=1, num_sanity_val_steps=-1)
    assert first.losses == second.losses
    assert trainer.callback_metrics == other.callback_metrics
    assert trainer.num_sanity_val_batches == [0]
    assert other.num_sanity_val_batches == [1]


def test_estimated_stepping_batches_is_what_happens():
    class Planned(Regression):
        def configure_optimizers(self):
            self.planned = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    for options in ({"accumulate_grad_batches": 3}, {"max_steps": 5}, {"limit_train_batches": 0.5}):
        module, trainer = Planned(), quiet(**{"max_epochs": 3, **options})
        trainer.fit(module, batches())
        assert module.planned == trainer.global_step


def test_loaders_are_reloaded_when_asked_for():
    class Reloaded(Regression):
        calls = 0

        def train_dataloader(self):
            self.calls += 1
            return batches(2)

    module = Reloaded()
    quiet(max_epochs=4, reload_dataloaders_every_n_epochs=2).fit(module)
    assert module.calls == 2


def test_overfitting_is_unshuffled():
    seen = []

    class Seen(Regression):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0][0, 0].item())
            return super().training_step(batch, batch_idx)

    x = torch.arange(20.0).unsqueeze(1).expand(20, 3)
    loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=2, shuffle=True)
    quiet(max_epochs=2, overfit_batches=3).fit(Seen(lr=1e-6), loader)
    assert seen == [0.0, 2.0, 4.0] * 2


def test_evaluation_is_under_inference_mode_unless_told_otherwise():
    class Mode(Validated):
        def predict_step(self, batch, batch_idx):
            return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    assert quiet().predict(Mode(), batches(1)) == [(True, False)]
    assert quiet(inference_mode=False).predict(Mode(), batches(1)) == [(False, False)]
