"""Keep the best weights of a training, and continue one that was stopped.

python examples/checkpoint.py --folder runs/checkpoint      # some 10 seconds
python examples/checkpoint.py --quick                       # fewer epochs
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
from fulmen.callbacks import ModelCheckpoint


class Classifier(fulmen.Module):
    """Learns the training images by heart, so that the last weights are not the best on others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_loss", cross_entropy(self.net(images), labels))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loaders() -> tuple[DataLoader, DataLoader]:
    """Handwritten digits: 300 to train, the rest to validate."""
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train, val = TensorDataset(images[:300], labels[:300]), TensorDataset(images[300:], labels[300:])
    return DataLoader(train, batch_size=50, shuffle=True), DataLoader(val, batch_size=512)


def trainer_with(folder: Path, max_epochs: int) -> fulmen.Trainer:
    """A trainer that keeps the three best checkpoints and the newest, written in a thread."""
    saving = ModelCheckpoint(
        folder, filename="{epoch:02d}-{val_loss:.3f}", monitor="val_loss", save_top_k=3, save_last=True, asynchronous=True
    )
    return fulmen.Trainer(
        max_epochs=max_epochs,
        callbacks=saving,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep the best weights of a training.")
    parser.add_argument("--folder", default="runs/checkpoint", help="where checkpoints go")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()
    folder, epochs = Path(args.folder) / "best", 20 if args.quick else 60

    fulmen.seed_everything(0)
    trainer_with(folder, epochs // 2).fit(Classifier(), *loaders())  # stops half-way
    trainer = trainer_with(folder, epochs)
    trainer.fit(Classifier(), *loaders(), ckpt_path=folder / "last.ckpt")  # and goes on as if it had not

    saving, (_, val) = trainer.checkpoint_callback, loaders()
    for path, score in sorted(saving.best_k_models.items(), key=lambda each: each[1]):
        print(f"{score:.4f}  {path}")
    best = trainer.validate(Classifier(), val, ckpt_path=saving.best_model_path, verbose=False)[0]["val_loss"]
    last = trainer.validate(Classifier(), val, ckpt_path=saving.last_model_path, verbose=False)[0]["val_loss"]
    print(f"val_loss of the best weights {best:.4f}, of the last {last:.4f}")
    if trainer.current_epoch != epochs or len(saving.best_k_models) != 3:
        raise SystemExit("the training should have gone on to its end, with three best checkpoints")
    if abs(best - float(saving.best_model_score)) > 1e-6 or best > last:
        raise SystemExit("the best checkpoint should hold the weights that its score was measured on")
    for path in (*saving.best_k_models, saving.last_model_path):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
