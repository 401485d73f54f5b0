"""Watch a training in TensorBoard: losses, hyper-parameters, weights, mistakes as pictures, the graph.

python examples/tensorboard_digits.py --folder runs/tensorboard      # some 20 seconds
python examples/tensorboard_digits.py --quick                        # fewer epochs
tensorboard --logdir runs/tensorboard
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import fulmen
from fulmen.callbacks import HistogramMonitor
from fulmen.loggers import TensorBoardLogger


class Classifier(fulmen.Module):
    def __init__(self, lr: float, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.example_input_array = torch.zeros(1, 64)  # for the graph

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        found = self(images).argmax(1)
        self.log("val/accuracy", (found == labels).float().mean())
        wrong = images[found != labels][:8].view(-1, 1, 8, 8)
        if len(wrong):
            self.logger.log_image("mistakes", wrong, dataformats="NCHW")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch a training in TensorBoard.")
    parser.add_argument("--folder", default="runs/tensorboard", help="where the event files go")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    accuracies = {}
    for lr in (1e-4, 1e-2):
        fulmen.seed_everything(0)
        train, val = random_split(digits, [1500, 297])
        logger = TensorBoardLogger(args.folder, name="digits", log_graph=True, default_hp_metric=False)
        trainer = fulmen.Trainer(
            max_epochs=2 if args.quick else 10,
            logger=logger,
            callbacks=[HistogramMonitor(every_n_steps=10)],
            log_every_n_steps=5,
            enable_progress_bar=False,
        )
        trainer.fit(Classifier(lr), DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=297))

        written = EventAccumulator(logger.log_dir).Reload()  # what TensorBoard will see
        accuracies[lr] = written.Scalars("val/accuracy")[-1].value
        print(f"lr {lr}: val/accuracy {accuracies[lr]:.3f}")
        tags = written.Tags()
        if not (tags["graph"] and "mistakes" in tags["images"] and "weights/net.1.weight" in tags["histograms"]):
            raise SystemExit(f"graph, pictures and histograms should be in {logger.log_dir}")
    if accuracies[1e-2] < max(0.85, accuracies[1e-4]):
        raise SystemExit("the larger learning rate should have won")
    for path in sorted(Path(args.folder).rglob("*tfevents*")):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
