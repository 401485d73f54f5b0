"""Classify handwritten digits: data, a module, a trainer, and what a run leaves behind.

python examples/digits.py                   # train, test, predict: some 15 seconds
python examples/digits.py --resume          # go on from where the newest run was cut: Ctrl-C, kill, power
python examples/digits.py --max-epochs 5
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import LearningRateMonitor
from fulmen.loggers import CSVLogger


class Digits(fulmen.DataModule):
    """The 1,797 images of 8 x 8 pixels that scikit-learn ships: 60 % to train, 20 % to validate, 20 % to test."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16  # [image, channel, row, column], 0 to 1
        labels = torch.tensor(labels)
        rest, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
        train, val = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=0)
        self.train, self.val, self.test = (TensorDataset(images[part], labels[part]) for part in (train, val, test))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=256)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=256)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()


class Classifier(fulmen.Module):
    """A small convolutional network."""

    def __init__(self, width: int = 32, lr: float = 3e-3, dropout: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(1, 1, 8, 8)  # lets the summary show sizes
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * 16, 10))

    def forward(self, images):
        return self.head(self.features(images))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.evaluate(batch, "val")

    def test_step(self, batch, batch_idx):
        self.evaluate(batch, "test")

    def evaluate(self, batch, name):
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({f"{name}_loss": cross_entropy(logits, labels), f"{name}_acc": accuracy}, prog_bar=True)

    def predict_step(self, batch, batch_idx):
        images, _ = batch
        return self(images).argmax(1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)}


class StopWhenFlat(fulmen.Callback):
    """Stops when the validation accuracy has not risen for so many epochs."""

    def __init__(self, patience: int = 6) -> None:
        self.patience, self.best, self.waited = patience, 0.0, 0

    def on_train_start(self, trainer, module):
        self.decide(trainer)  # a run that is resumed may have come to its end before

    def on_train_epoch_end(self, trainer, module):
        accuracy = float(trainer.callback_metrics["val_acc"])
        self.best, self.waited = (accuracy, 0) if accuracy > self.best else (self.best, self.waited + 1)
        self.decide(trainer)

    def decide(self, trainer):
        if self.waited >= self.patience:
            trainer.request_stop(f"val_acc has not risen above {self.best:.4f} for {self.waited} epochs")

    def state_dict(self):  # kept in every checkpoint
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict):
        self.best, self.waited = state_dict["best"], state_dict["waited"]


def draw_learning_curves(folder: Path) -> Path:
    """A picture of the metrics in a run's folder."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, names in zip(figure.subplots(1, 2), (("train_loss", "val_loss"), ("val_acc",)), strict=True):
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            axis.plot(*zip(*points, strict=True), label=name, alpha=0.5 if name == "train_loss" else 1)
        axis.set(xlabel="optimizer step", yscale="log" if "val_loss" in names else "linear")
        axis.legend()
    figure.savefig(path := folder / "learning_curves.png", dpi=120)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify handwritten digits.")
    parser.add_argument("--max-epochs", type=int, default=30, help="at most so many passes over the data")
    parser.add_argument("--folder", default="runs/digits", help="where runs go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from where the newest run was cut")
    args = parser.parse_args()

    fulmen.seed_everything(args.seed)
    module, data = Classifier(), Digits()
    trainer = fulmen.Trainer(
        max_epochs=args.max_epochs,
        logger=CSVLogger(args.folder, name=None),
        callbacks=[StopWhenFlat(), LearningRateMonitor()],
        log_every_n_steps=5,
    )
    trainer.fit(module, datamodule=data, ckpt_path="last" if args.resume else None)
    where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
    if trainer.interrupted:
        print(f"{trainer.stop_reason} at {where}; go on from there: python examples/digits.py --resume")
        return
    print(f"training ended at {where}: {trainer.stop_reason}")

    accuracy = trainer.test(module, datamodule=data)[0]["test_acc"]
    predictions = torch.cat(trainer.predict(module, datamodule=data))
    folder = Path(trainer.log_dir)
    print(f"\ntest accuracy:    {accuracy:.4f}   (the first ten test images show {predictions[:10].tolist()})")
    print(f"run folder:       {folder}   (metrics.csv, config.json, hparams.yaml, checkpoints)")
    print(f"learning curves:  {draw_learning_curves(folder)}\n")
    print("next: run it again, cut it with Ctrl-C and add --resume; `fulmen plugins` lists the parts; docs/ explains them")


if __name__ == "__main__":
    main()
