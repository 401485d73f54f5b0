"""One training with parts of many packages, as a script: started once, or once per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import EarlyStopping, ModelCheckpoint

SAMPLES = 64


class Classifier(fulmen.Module):
    """Small, without random numbers: how the samples are shared between ranks makes no difference."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def loader(batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 4, generator=generator)
    y = x.sum(1, keepdim=True) + torch.randn(SAMPLES, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size)


def main(given):
    folder = Path(given["folder"])
    stopping = EarlyStopping("val_loss", patience=given.get("patience", 2))
    saving = ModelCheckpoint(folder / "best", monitor="val_loss", save_top_k=2, save_last=True)
    trainer = fulmen.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[stopping, saving],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        **given["options"],
    )
    module = Classifier()
    size = given["batch_size"]
    trainer.fit(module, loader(size, 1), loader(size, 2), ckpt_path=given.get("ckpt_path"))
    if trainer.is_global_zero:
        report = {
            "weights": dict(module.state_dict()),
            "steps": trainer.global_step,
            "epoch": trainer.current_epoch,
            "stopped": [stopping.stopped_epoch, stopping.wait_count, trainer.stop_reason],
            "best": float(saving.best_model_score),
            "files": sorted(path.name for path in (folder / "best").iterdir()),
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "loggers": [str(logger.log_dir) for logger in trainer.loggers],
            "log_dir": trainer.log_dir,  # rank 0 alone asks
        }
        torch.save(report, folder / "report")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
