"""Prune a classifier of handwritten digits a little more in each epoch, and watch how long it stays good.

python examples/pruning.py                # some ten seconds
python examples/pruning.py --folder runs/pruning --quick
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
from fulmen.callbacks import ModelPruning


class Classifier(fulmen.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class History(fulmen.Callback):
    """The sparsity during each epoch, and the accuracy after it."""

    def __init__(self, pruning):
        self.pruning, self.sparsity, self.accuracy = pruning, [], []

    def on_train_epoch_start(self, trainer, module):
        self.sparsity.append(self.pruning.sparsity())

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking and trainer.stage == "fit":
            self.accuracy.append(float(trainer.callback_metrics["accuracy"]))


def loaders():
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    train, val = random_split(data, [1300, len(data) - 1300], torch.Generator().manual_seed(0))
    return DataLoader(train, 32, shuffle=True), DataLoader(val, len(val))


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a classifier step by step.")
    parser.add_argument("--folder", default="runs/pruning", help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    fulmen.seed_everything(0)
    epochs = 8 if args.quick else 20
    pruning = ModelPruning(
        "l1_unstructured",
        parameter_names=["weight"],
        amount=0.15,  # of what is left, at the end of each epoch
        apply_pruning=lambda epoch: 1 < epoch < epochs - 1,  # learn a little first, and recover at the end
        use_lottery_ticket_hypothesis=False,
    )
    history, module, (train, val) = History(pruning), Classifier(), loaders()
    trainer = fulmen.Trainer(max_epochs=epochs, callbacks=[pruning, history], logger=False, enable_checkpointing=False)
    trainer.fit(module, train, val)

    accuracy = trainer.validate(module, val)[0]["accuracy"]  # masks are gone, zeros are in the weights
    weights = torch.cat([layer.weight.flatten() for layer in module.net if isinstance(layer, nn.Linear)])
    zeros = float((weights == 0).float().mean())
    print(f"{zeros:.1%} of {weights.numel()} weights are zero, and the accuracy is {accuracy:.4f}")
    if abs(zeros - (1 - 0.85 ** (epochs - 3))) > 0.001 or accuracy < 0.9:
        raise SystemExit("that is not what 15 % in each epoch should leave")
    figure = Figure(figsize=(8, 4), layout="constrained")
    left = figure.subplots()
    left.plot(range(1, epochs + 1), history.accuracy, color="C0")
    left.set(xlabel="epoch", ylim=(0, 1.02), xticks=range(1, epochs + 1))
    left.set_ylabel("validation accuracy", color="C0")
    right = left.twinx()
    right.bar(range(1, epochs + 1), history.sparsity, color="C1", alpha=0.4)
    right.set(ylim=(0, 1.02))
    right.set_ylabel("share of weights that are zero", color="C1")
    path = Path(args.folder) / "pruning.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
