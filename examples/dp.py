"""Split each batch over two devices of one process, and get what one device gets: the same weights, the same metrics.

python examples/dp.py                # on two GPUs where there are two, else the processor plays two devices
python examples/dp.py --folder runs/dp --quick
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import LearningRateMonitor
from fulmen.loggers import CSVLogger


class Contrastive(fulmen.Module):
    """Learns to put images of the same digit close together. Its loss compares all images of a batch with each other."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))

    def forward(self, images):
        return normalize(self.net(images), dim=1)

    def training_step(self, batch, batch_idx):  # on each device, with its share
        images, labels = batch
        return {"points": self(images), "labels": labels}

    def training_step_end(self, outputs):  # once, with the points of all devices
        similarity = outputs["points"] @ outputs["points"].T / 0.2
        others = similarity.masked_fill(torch.eye(len(similarity), dtype=torch.bool, device=similarity.device), -1e9)
        same = outputs["labels"][:, None] == outputs["labels"][None]
        target = same.fill_diagonal_(False).float()
        loss = cross_entropy(others, target / target.sum(1, keepdim=True).clamp(min=1))
        self.log("train_loss", loss)
        return loss

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(devices: int, epochs: int, folder: str):
    """The share of test images whose nearest training image shows the same digit, and the module."""
    fulmen.seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    data = TensorDataset(images, labels)
    trainer = fulmen.Trainer(
        accelerator="auto" if torch.cuda.device_count() > 1 else "cpu",
        devices=devices,
        strategy="dp",
        precision="64-true",  # in single precision, differences in rounding would grow over the training
        max_epochs=epochs,
        logger=CSVLogger(folder, name=None, version=f"devices_{devices}"),
        callbacks=LearningRateMonitor(),
        log_every_n_steps=10,
        enable_checkpointing=False,
    )
    trainer.fit(module := Contrastive(), DataLoader(torch.utils.data.Subset(data, range(1400)), 100, shuffle=True))
    log = Path(trainer.log_dir) / "metrics.csv"
    points = torch.cat(trainer.predict(module, DataLoader(data, 100))).cpu()
    nearest = labels[:1400][(points[1400:] @ points[:1400].T).argmax(1)]
    return (nearest == labels[1400:]).float().mean().item(), module, log


def main() -> None:
    parser = argparse.ArgumentParser(description="Split batches over devices.")
    parser.add_argument("--folder", default="runs/dp", help="where metrics go")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    (one, first, log), (two, second, other) = (train(devices, 3 if args.quick else 20, args.folder) for devices in (1, 2))
    difference = max((a - b).abs().max().item() for a, b in zip(first.parameters(), second.parameters(), strict=True))
    print(f"nearest neighbours are right for {one:.3f} of the test images with one device, {two:.3f} with two")
    print(f"the weights differ by at most {difference:.1e}")
    if difference > 1e-6 or two < 0.9:
        raise SystemExit("the weights should differ by less than 1e-6, and at least 0.9 of the neighbours should be right")
    for path in (log, other):
        with open(path, newline="") as file:
            print(f"{len(list(csv.DictReader(file)))} rows of metrics")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
