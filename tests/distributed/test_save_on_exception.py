"""A training on several ranks that fails is saved by rank 0 alone: no rank waits for another that may be gone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import ModelCheckpoint
from fulmen.testing import quiet

RANKS = 2
ALONE = (
    "the checkpoint was saved by rank 0 alone when 2 ranks failed: what the others had of their own (random numbers, sums of "
    "the epoch's metrics, open gradients) is not in it"
)
torch.set_num_threads(1)


class Shared(fulmen.Module):
    """Everything that a save asks other ranks for: shared sums, and an open accumulation window."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).square().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Break(fulmen.Callback):
    """Some ranks fail after the first batch of the second epoch's second window."""

    def __init__(self, ranks):
        self.ranks = ranks

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == 9 and trainer.global_rank in self.ranks:
            raise ValueError(f"boom on rank {trainer.global_rank}")


def fit(folder, *callbacks, path=None, **options):
    """Train on forked ranks, on 6 batches each; a rank that waits for ever would be an error of its own."""
    data = DataLoader(TensorDataset(torch.randn(12, 2, generator=torch.Generator().manual_seed(1))), 1)
    saving = ModelCheckpoint(folder, monitor="val_loss", save_on_exception=True, **options)
    trainer = quiet(
        accelerator="cpu",
        devices=RANKS,
        strategy={"name": "ddp_fork", "timeout_s": 60},
        max_epochs=3,
        accumulate_grad_batches=2,
        callbacks=[saving, *callbacks],
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    trainer.fit(Shared(), data, data, ckpt_path=path)
    return trainer


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)], ids=["rank 0", "rank 1", "all"])
def test_whichever_rank_fails_the_state_is_saved_and_the_failure_raised(tmp_path, capfd, ranks):
    with pytest.raises(ValueError, match=f"boom on rank {'1' if ranks == (1,) else '[01]'}"):
        fit(tmp_path, Break(ranks))
    path = tmp_path / "exception-epoch=1-step=4.ckpt"
    saved = fulmen.read_checkpoint(path)
    assert saved["global_step"] == 4 and saved["optimizer_states"][0]["state"][0]["step"] == 4
    assert saved["run"]["inexact"] == [ALONE]
    assert "failed too" not in capfd.readouterr().err
    trainer = fit(tmp_path, path=path)
    assert (trainer.current_epoch, trainer.global_step) == (3, 9)
    told = capfd.readouterr().out
    assert "the resume is not exact:\n" in told and f"\n- {ALONE}\n" in told


def test_weights_alone(tmp_path):
    with pytest.raises(ValueError, match="boom on rank 0"):
        fit(tmp_path, Break((0,)), save_weights_only=True)
    module = Shared.load_from_checkpoint(tmp_path / "exception-epoch=1-step=4.ckpt")
    assert isinstance(module, Shared)
