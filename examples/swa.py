"""Train on handwritten digits at a restless learning rate, with and without averaged weights, and compare.

python examples/swa.py                # some fifteen seconds
python examples/swa.py --folder runs/swa --quick
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import fulmen
from fulmen.callbacks import EMAWeightAveraging, StochasticWeightAveraging


class Classifier(fulmen.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)  # large: the weights keep jumping around the minimum


class History(fulmen.Callback):
    """The accuracy after each epoch."""

    runs_last = True

    def __init__(self):
        self.accuracies = []

    def on_train_epoch_end(self, trainer, module):
        self.accuracies.append(float(trainer.callback_metrics["accuracy"]))


def loaders():
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    train, val = random_split(data, [900, len(data) - 900], torch.Generator().manual_seed(0))
    return DataLoader(train, 16, shuffle=True, drop_last=True), DataLoader(val, len(val))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare training with and without averaged weights.")
    parser.add_argument("--folder", default="runs/swa", help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    epochs = 8 if args.quick else 25
    runs = {
        "no averaging": [],
        "EMA": [EMAWeightAveraging(decay=0.99)],
        "SWA": [StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=0.5, annealing_epochs=2, evaluate_averaged=True)],
    }
    figure, final = Figure(figsize=(8, 4), layout="constrained"), {}
    axis = figure.subplots()
    for name, averaging in runs.items():
        fulmen.seed_everything(0)
        (train, val), history, module = loaders(), History(), Classifier()
        trainer = fulmen.Trainer(
            max_epochs=epochs,
            callbacks=[*averaging, history],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, train, val)
        final[name] = trainer.validate(module, val)[0]["accuracy"]  # of the averages, which have taken the module's place
        axis.plot(range(1, epochs + 1), history.accuracies, label=f"{name}: {final[name]:.4f} at the end")
    if min(final["EMA"], final["SWA"]) < final["no averaging"] - 0.01:
        raise SystemExit(f"averaged weights should not be worse: {final}")
    axis.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0.9, 1.0))
    axis.legend()
    path = Path(args.folder) / "swa.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
