"""Train without a network, and keep the run in a folder that is sent to Weights & Biases later.

python examples/wandb_offline.py --folder runs/wandb      # some 10 seconds
python examples/wandb_offline.py --quick                  # fewer epochs
wandb sync runs/wandb/wandb/offline-run-*                 # from a machine with a network and an account
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.loggers import WandbLogger


class Classifier(fulmen.Module):
    def __init__(self, lr: float = 1e-2, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_acc", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train without a network, for Weights & Biases.")
    parser.add_argument("--folder", default="runs/wandb", help="where the run and the checkpoints go")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    fulmen.seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    images, targets = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train, val = TensorDataset(images[:1400], targets[:1400]), TensorDataset(images[1400:], targets[1400:])
    logger = WandbLogger(name="mlp", project="digits", save_dir=args.folder, offline=True)
    trainer = fulmen.Trainer(
        max_epochs=3 if args.quick else 10, logger=logger, default_root_dir=args.folder, log_every_n_steps=10
    )
    trainer.fit(Classifier(), DataLoader(train, 32, shuffle=True), DataLoader(val, 100))

    accuracy = float(trainer.callback_metrics["val_acc"])
    if accuracy < 0.8:
        raise SystemExit(f"the accuracy is {accuracy:.3f}; at least 0.8 was expected")
    (run,) = Path(args.folder).glob("wandb/offline-run-*/*.wandb")
    print(f"validation accuracy {accuracy:.3f}; send the run with: wandb sync {run.parent}")
    print(f"wrote {run}")


if __name__ == "__main__":
    main()
