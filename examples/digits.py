"""Classify handwritten digits: data, a module, a trainer, and what a run leaves behind.

python examples/digits.py                   # train, test, predict
python examples/digits.py --resume          # go on from where a run was cut: Ctrl-C, kill, power
python examples/digits.py --max-epochs 5
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import LearningRateMonitor


class Digits(fulmen.DataModule):
    """The 1,797 images of 8 x 8 pixels that scikit-learn ships: 60 % to train, 20 % to validate, 20 % to test."""

    def __init__(self, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        seed = self.hparams.split_seed
        rest, test, rest_y, test_y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
        train, val, train_y, val_y = train_test_split(rest, rest_y, test_size=0.25, stratify=rest_y, random_state=seed)
        self.train, self.val, self.test = dataset(train, train_y), dataset(val, val_y), dataset(test, test_y)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 256)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 256)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 256)


def dataset(images, labels) -> TensorDataset:
    """Pixels from 0 to 1, as [N, 1, 8, 8], and labels, as [N]."""
    return TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))


class Classifier(fulmen.Module):
    """A small convolutional network."""

    def __init__(self, width: int = 32, lr: float = 3e-3, dropout: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width * 16, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def training_step(self, batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx: int) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch, batch_idx: int) -> None:
        self.evaluate(batch, "test")

    def evaluate(self, batch, name: str) -> None:
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({f"{name}_loss": nn.functional.cross_entropy(logits, labels), f"{name}_acc": accuracy}, prog_bar=True)

    def predict_step(self, batch, batch_idx: int) -> Tensor:
        return self(batch[0]).argmax(1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StopWhenGood(fulmen.Callback):
    """Stops when the validation has been almost without fault for some epochs in a row."""

    def __init__(self, accuracy: float = 0.985, epochs: int = 5) -> None:
        self.accuracy, self.epochs, self.reached = accuracy, epochs, 0

    def on_train_epoch_end(self, trainer, module) -> None:
        good = trainer.callback_metrics["val_acc"] >= self.accuracy
        self.reached = self.reached + 1 if good else 0
        if self.reached == self.epochs:
            trainer.request_stop(f"val_acc was at least {self.accuracy} for {self.epochs} epochs")

    def state_dict(self) -> dict:
        return {"reached": self.reached}

    def load_state_dict(self, state_dict: dict) -> None:
        self.reached = state_dict["reached"]


def draw_learning_curves(folder: Path) -> Path:
    """A picture of the metrics in a run's folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, names in zip(axes, (("train_loss_step", "train_loss_epoch", "val_loss"), ("val_acc",)), strict=True):
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            axis.plot(*zip(*points, strict=True), label=name, alpha=0.4 if name.endswith("_step") else 1.0)
        axis.set_xlabel("optimizer step")
        axis.legend()
    axes[0].set_yscale("log")
    path = folder / "learning_curves.png"
    figure.savefig(path, dpi=120)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify handwritten digits.")
    parser.add_argument("--max-epochs", type=int, default=20, help="at most so many passes over the data")
    parser.add_argument("--folder", default="runs/digits", help="where runs go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from where the newest run was cut")
    given = parser.parse_args()

    fulmen.seed_everything(given.seed)
    module, data = Classifier(), Digits()
    trainer = fulmen.Trainer(
        max_epochs=given.max_epochs,
        default_root_dir=given.folder,
        log_every_n_steps=5,
        callbacks=[StopWhenGood(), LearningRateMonitor()],
    )
    trainer.fit(module, datamodule=data, ckpt_path="last" if given.resume else None)
    print(f"stopped: {trainer.stop_reason}")
    if trainer.interrupted:
        print("go on with: python examples/digits.py --resume")
        return

    accuracy = trainer.test(module, datamodule=data)[0]["test_acc"]
    digits = torch.cat(trainer.predict(module, datamodule=data))
    folder = Path(trainer.log_dir)
    picture = draw_learning_curves(folder)
    print(f"\ntest accuracy: {accuracy:.4f}; the first ten test images show {digits[:10].tolist()}")
    print(f"metrics, configuration and checkpoints: {folder}\nlearning curves: {picture}\n")
    print("next: cut a run with Ctrl-C and add --resume | fulmen plugins | README.md")


if __name__ == "__main__":
    main()
