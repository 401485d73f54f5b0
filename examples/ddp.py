"""Train in two processes on the digits of scikit-learn, and get what one process gets: the same accuracy.

python examples/ddp.py
python examples/ddp.py --folder runs/ddp --quick
torchrun --nproc-per-node 2 examples/ddp.py     # the same, started by torchrun
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen


class Digits(fulmen.Module):
    """A small classifier."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean(), sync_dist=True)  # over all ranks

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def accuracy(strategy: str, devices: int, epochs: int) -> tuple[float, fulmen.Trainer]:
    """Train, and test on images that were not trained on. The global batch has 48 images, whatever the number of ranks."""
    fulmen.seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    train, test = torch.utils.data.Subset(data, range(1440)), torch.utils.data.Subset(data, range(1440, len(data)))
    trainer = fulmen.Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=devices,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = Digits()
    trainer.fit(module, DataLoader(train, 48 // devices))
    return trainer.test(module, DataLoader(test, 64), verbose=False)[0]["accuracy"], trainer


def main() -> None:
    """Two processes, then one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/ddp")
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    arguments = parser.parse_args()
    epochs = 8 if arguments.quick else 20

    two, trainer = accuracy("ddp", 2, epochs)  # starts this program a second time, as rank 1
    if not trainer.is_global_zero:
        return
    one, _ = accuracy("single_device", 1, epochs)
    if abs(two - one) > 0.01 or two < 0.8:
        raise SystemExit(f"two processes reach {two:.3f} and one {one:.3f}: they should agree, above 0.8")
    print(f"accuracy: {two:.3f} with two processes, {one:.3f} with one")
    path = Path(arguments.folder) / "accuracy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"two processes": two, "one process": one}), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
