"""On a GPU: a step makes no synchronising call of ours. The accelerator is defined here, as a plugin would define it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen import Accelerator, Callback, Trainer
from fulmen.testing import QUIET, Regression, batches, quiet

pytestmark = pytest.mark.gpu


class CUDA(Accelerator):
    """The least that a GPU needs."""

    name = "cuda"

    @staticmethod
    def is_available() -> bool:
        return torch.cuda.is_available()

    @staticmethod
    def num_available() -> int:
        return torch.cuda.device_count()

    def setup_device(self, device: torch.device) -> None:
        torch.cuda.set_device(device)


class Watch(Callback):
    """Makes every synchronising call an error between the first step and the end of the training."""

    runs_last = True

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error")

    def on_train_epoch_end(self, trainer, module):
        torch.cuda.set_sync_debug_mode("default")


class Logging(Regression):
    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss


@pytest.fixture(autouse=True)
def _unwatched():
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(module, data, folder, **options):
    trainer = Trainer(
        **{**QUIET, "logger": None, "enable_progress_bar": True},
        accelerator=CUDA(),
        devices=1,
        max_epochs=1,
        log_every_n_steps=2,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, data)
    return trainer


def test_no_step_waits_for_the_device(tmp_path):
    data = [(x.pin_memory(), y.pin_memory()) for x, y in batches(40)]
    trainer = on_gpu(Logging(), data, tmp_path, callbacks=Watch(), gradient_clip_val=1.0, accumulate_grad_batches=2)
    assert trainer.global_step == 20
    assert trainer.logged_metrics["train_loss_epoch"] > 0


def test_the_gpu_learns_what_the_cpu_learns(tmp_path):
    first, second = Logging(), Logging()
    for module in (first, second):
        module.net[2].p = 0.0
    on_gpu(first, batches(20), tmp_path)
    quiet(max_epochs=1).fit(second, batches(20))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)
