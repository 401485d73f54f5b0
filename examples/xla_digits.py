"""Train on a TPU, or with PJRT_DEVICE=CPU on the processor, through torch_xla.

python examples/xla_digits.py                # says so where there is no device
python examples/xla_digits.py --folder runs/xla_digits --quick
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from fulmen_xla import XLAAccelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import DeviceStatsMonitor
from fulmen.loggers import CSVLogger


class Classifier(fulmen.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("test_acc", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def loaders():
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(labels)
    train, test = TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])
    return DataLoader(train, 50, shuffle=True), DataLoader(test, 397)


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify handwritten digits on an XLA device.")
    parser.add_argument("--folder", default="runs/xla", help="where metrics go")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()
    if not XLAAccelerator.is_available():
        print(f"skipped: no XLA device; {XLAAccelerator.advice()}")
        return

    fulmen.seed_everything(0)
    train, test = loaders()
    trainer = fulmen.Trainer(
        accelerator="xla",
        devices=1,
        precision="xla-bf16-mixed",
        max_epochs=10 if args.quick else 20,
        logger=CSVLogger(args.folder, name=None, version="digits"),
        callbacks=DeviceStatsMonitor(),
        log_every_n_steps=10,
        enable_checkpointing=False,
    )
    trainer.fit(module := Classifier(), train)
    path = Path(trainer.log_dir) / "metrics.csv"
    accuracy = trainer.test(module, test)[0]["test_acc"]
    if accuracy < 0.9:
        raise SystemExit(f"the accuracy is {accuracy:.3f}, and should be at least 0.9")
    with open(path, newline="") as file:
        counts = [row["DeviceStatsMonitor/graphs_compiled"] for row in csv.DictReader(file)]
    compiled = max(float(value) for value in counts if value)
    print(f"test accuracy {accuracy:.4f}; {compiled:.0f} graphs were compiled for {trainer.global_step} steps")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
