"""Stop when the validation loss no longer falls, instead of guessing how many epochs it takes.

python examples/early_stopping.py --folder runs/early_stopping      # some 5 seconds
python examples/early_stopping.py --quick                           # less data
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import EarlyStopping
from fulmen.loggers import CSVLogger


class Classifier(fulmen.Module):
    """Large enough to learn the training images by heart: from some epoch on, it only gets worse on others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({"val_loss": cross_entropy(logits, labels), "val_acc": accuracy}, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def loaders(num_images: int) -> tuple[DataLoader, DataLoader]:
    """Handwritten digits: a quarter to train, the rest to validate."""
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels[:num_images], dtype=torch.float32) / 16, torch.tensor(labels[:num_images])
    cut = num_images // 4
    train, val = TensorDataset(images[:cut], labels[:cut]), TensorDataset(images[cut:], labels[cut:])
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=512)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stop when the validation loss no longer falls.")
    parser.add_argument("--folder", default="runs/early_stopping", help="where runs go")
    parser.add_argument("--quick", action="store_true", help="a smaller job")
    args = parser.parse_args()

    fulmen.seed_everything(0)
    stopping = EarlyStopping("val_loss", min_delta=1e-3, patience=5, verbose=True)
    trainer = fulmen.Trainer(
        max_epochs=1000, callbacks=stopping, logger=CSVLogger(args.folder, name=None), enable_progress_bar=False
    )
    trainer.fit(Classifier(), *loaders(400 if args.quick else 1797))

    metrics = Path(trainer.log_dir) / "metrics.csv"
    with open(metrics, newline="") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    print(f"stopped in epoch {stopping.stopped_epoch}: {stopping.stopping_reason_message}")
    if not (len(losses) == stopping.stopped_epoch + 1 < 1000 and stopping.wait_count == 5):
        raise SystemExit("it should have stopped after five epochs without improvement")
    if abs(min(losses[:-5]) - float(stopping.best_score)) > 1e-3 or min(losses[-5:]) < float(stopping.best_score) - 1e-3:
        raise SystemExit("the loss was still falling")
    print(f"wrote {metrics}")


if __name__ == "__main__":
    main()
